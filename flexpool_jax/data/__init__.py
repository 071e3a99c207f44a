"""Image classification data as NumPy arrays, prepared once and without TensorFlow.

A data set passes through three steps, which `load.load_dataset` takes in this order; once it is
prepared, it begins with the third:

1. Find or download: `download` finds the published files in `dataset.raw_dir`, or downloads them.
2. Prepare: a function of `readers` reads these files, and `prepare` has TFDS write what it gives
   as ArrayRecord, once.
3. Load: `records` reads the prepared folder into a `Dataset`: arrays in memory, or `stored` images
   where these would take too much of it. Arrays of the user's own (`arrays`) begin here.

To add a data set, touch two files: an entry in `registry` says what it is, where its files are and
which function reads them; that function is a module of `readers`.

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
