"""`digits`: scikit-learn's copy of the optical recognition of handwritten digits data set."""

from __future__ import annotations

import numpy as np

from flexpool_jax.data.dataset import stratified_split
from flexpool_jax.data.download import RawFile
from flexpool_jax.data.images import encode_png
from flexpool_jax.data.registry import Contents, Example

# Never to be changed, so that all results on this data set are on the same test images.
_TEST_FRACTION, _SPLIT_SEED = 0.2, 0


def read_digits(files: tuple[RawFile, ...]) -> Contents:
    """Reads the 8x8 scans in scikit-learn, and scales their values from 0..16 to 0..255."""
    del files  # No files: the images are part of scikit-learn.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    train, test = stratified_split(bunch.target, _TEST_FRACTION, _SPLIT_SEED)

    def example(index: int) -> Example:
        return Example(encode_png(images[index]), int(bunch.target[index]))

    splits = {"train": map(example, train), "test": map(example, test)}
    return Contents((8, 8, 1), "0123456789", splits)
