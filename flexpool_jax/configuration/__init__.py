"""The config of a run: reading files and the command line, checking, and saving in the workdir.

JAX is imported only to read a variant and to check fields that hold names of pools, optimizers,
schedules and the like.
"""

from flexpool_jax.configuration.fields import FIELDS, dataset_options, field_names, get_field
from flexpool_jax.configuration.loading import config_files, load_config
from flexpool_jax.configuration.overrides import apply_overrides, overrides_of
from flexpool_jax.configuration.validation import (
    check_batch_size,
    check_pool_reg_stability,
    config_of_run,
    resolve,
    resolve_training_files,
)
from flexpool_jax.configuration.workdir import (
    Change,
    check_resume,
    check_saving,
    check_workdir,
    compare_with_workdir,
    config_from_json,
    config_path,
    digest,
    has_any_checkpoint,
    has_checkpoint,
    has_effect,
    has_saved_state,
    phases_begun,
    read_config,
    write_config,
)

__all__ = [
    "FIELDS",
    "Change",
    "apply_overrides",
    "check_batch_size",
    "check_pool_reg_stability",
    "check_resume",
    "check_saving",
    "check_workdir",
    "compare_with_workdir",
    "config_files",
    "config_from_json",
    "config_of_run",
    "config_path",
    "dataset_options",
    "digest",
    "field_names",
    "get_field",
    "has_any_checkpoint",
    "has_checkpoint",
    "has_effect",
    "has_saved_state",
    "load_config",
    "overrides_of",
    "phases_begun",
    "read_config",
    "resolve",
    "resolve_training_files",
    "write_config",
]
