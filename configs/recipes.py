"""Combines a training recipe with the config of any data set; used by the *_recipe.py files.

The argument of a recipe contains the name of a data set's config and the words of a variant, in any
order: `configs/he_recipe.py:cifar100,flexpool,reg`. The default data set is CIFAR-10.
"""

import importlib
from pathlib import Path

from ml_collections import ConfigDict

from flexpool_jax.configuration import variants
from flexpool_jax.data.registry import DATASETS
from flexpool_jax.errors import UserError

# Names of the data sets that have a config in this folder.
DATASET_CONFIGS = tuple(
    name for name in DATASETS if Path(__file__).with_name(f"{name}.py").is_file()
)


def split_argument(argument: str) -> tuple[ConfigDict, str]:
    """Returns the config of the data set that the argument names, and the words of the variant.

    Args:
        argument: Words separated by commas: at most one of `DATASET_CONFIGS`, and the words of a
            variant.

    Raises:
        UserError: A word is neither a data set nor a word of a variant, or there are two data sets.

    Example:
        >>> config, variant = split_argument("flexpool,cifar100,reg")
        >>> config.dataset.name, variant
        ('cifar100', 'flexpool,reg')
    """
    words = variants.split_variant(argument)
    for word in words:
        variants.check_word(word, also=DATASET_CONFIGS)
    datasets = [word for word in words if word in DATASET_CONFIGS]
    if len(datasets) > 1:
        raise UserError(f"{argument!r} names {len(datasets)} data sets; allowed: one")
    module = importlib.import_module(f"configs.{datasets[0] if datasets else 'cifar10'}")
    return module.get_config(), ",".join(word for word in words if word not in DATASET_CONFIGS)
