"""Image classification data as NumPy arrays, prepared once and without TensorFlow.

`registry` lists the data sets. The steps, in order: `download` finds or downloads the published
files, `prepare` writes them as ArrayRecord, `load` reads those with `records` into a `Dataset`.
Nothing here imports JAX but `flexpool_jax.data.augment`, which is not imported from here, and
Grain, which is imported when images are streamed.
"""

from flexpool_jax.data.dataset import Dataset, Split, Superclasses
from flexpool_jax.data.load import load_dataset, memory_for_images, prepare_dataset
from flexpool_jax.data.registry import DATASETS, register_dataset
from flexpool_jax.data.superclasses import read_superclass_mapping

__all__ = [
    "DATASETS",
    "Dataset",
    "Split",
    "Superclasses",
    "load_dataset",
    "memory_for_images",
    "prepare_dataset",
    "read_superclass_mapping",
    "register_dataset",
]
