"""Image classification data as NumPy arrays, prepared once and without TensorFlow.

Nothing here imports JAX; `flexpool_jax.data.augment`, which does, is not imported from here.
"""

from flexpool_jax.data.dataset import Dataset, Split, Superclasses
from flexpool_jax.data.loading import DATASETS, load_dataset, prepare_dataset
from flexpool_jax.data.superclass_mapping import read_superclass_mapping

__all__ = [
    "DATASETS",
    "Dataset",
    "Split",
    "Superclasses",
    "load_dataset",
    "prepare_dataset",
    "read_superclass_mapping",
]
