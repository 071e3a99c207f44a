"""Image classification data as NumPy arrays, prepared once and without TensorFlow.

`load.load_dataset` takes three steps in this order. If the data set is already prepared, it takes
only the third:

1. Find or download: `download` finds the published files in `dataset.raw_dir`, or downloads them.
2. Prepare: a function in `readers` reads these files, and `prepare` has TFDS write the examples
   as ArrayRecord, once.
3. Load: `records` reads the prepared folder into a `Dataset`. The images are arrays in memory, or
   `stored` images if the arrays would take too much memory. The user's own arrays (`arrays`) need
   only this step.

To add a data set, edit two files: an entry in `registry` says what the data set is, where its files
are and which function reads them; that function is in a module of `readers`.

JAX is imported only by `flexpool_jax.data.augment`, which this package does not import, and by
Grain, which is imported when images are streamed.
"""

from flexpool_jax.data.dataset import Dataset, Split, Superclasses
from flexpool_jax.data.load import check_raw_dir, load_dataset, memory_for_images, prepare_dataset
from flexpool_jax.data.registry import DATASETS, register_dataset
from flexpool_jax.data.superclasses import read_superclass_mapping

__all__ = [
    "DATASETS",
    "Dataset",
    "Split",
    "Superclasses",
    "check_raw_dir",
    "load_dataset",
    "memory_for_images",
    "prepare_dataset",
    "read_superclass_mapping",
    "register_dataset",
]
