"""A run's configuration: read from files and the command line, checked, kept in the workdir.

JAX is imported only to read a variant and to check pools, optimizers and schedules.
"""

from flexpool_jax.configuration.fields import FIELDS as FIELDS
from flexpool_jax.configuration.fields import dataset_options as dataset_options
from flexpool_jax.configuration.fields import field_names as field_names
from flexpool_jax.configuration.fields import get_field as get_field
from flexpool_jax.configuration.loading import config_files as config_files
from flexpool_jax.configuration.loading import load_config as load_config
from flexpool_jax.configuration.overrides import apply_overrides as apply_overrides
from flexpool_jax.configuration.validation import check_batch_size as check_batch_size
from flexpool_jax.configuration.validation import check_files as check_files
from flexpool_jax.configuration.validation import (
    check_pool_reg_stability as check_pool_reg_stability,
)
from flexpool_jax.configuration.validation import resolve as resolve
from flexpool_jax.configuration.workdir import check_resume as check_resume
from flexpool_jax.configuration.workdir import check_workdir as check_workdir
from flexpool_jax.configuration.workdir import compare_with_workdir as compare_with_workdir
from flexpool_jax.configuration.workdir import config_from_json as config_from_json
from flexpool_jax.configuration.workdir import config_path as config_path
from flexpool_jax.configuration.workdir import digest as digest
from flexpool_jax.configuration.workdir import has_checkpoint as has_checkpoint
from flexpool_jax.configuration.workdir import has_effect as has_effect
from flexpool_jax.configuration.workdir import read_config as read_config
from flexpool_jax.configuration.workdir import write_config as write_config
