"""How a training recipe takes up any data set's config: shared by the *_recipe.py files.

A recipe's argument names a data set's config beside the variant's words, in any order:
`configs/he_recipe.py:cifar100,flexpool,reg`. Without one it is CIFAR-10.
"""

import importlib
from pathlib import Path

from ml_collections import ConfigDict

from flexpool_jax.configuration import variants
from flexpool_jax.data.registry import DATASETS
from flexpool_jax.errors import UserError

# The data sets that have a config beside this file.
DATASET_CONFIGS = tuple(
    name for name in DATASETS if Path(__file__).with_name(f"{name}.py").is_file()
)


def split_argument(argument: str) -> tuple[ConfigDict, str]:
    """Returns the config of the data set that the argument names, and the words of the variant.

    Args:
        argument: Words separated by commas: at most one of `DATASET_CONFIGS`, the rest a variant.

    Raises:
        UserError: For a word that is neither, or when two data sets are named.

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
