"""`digits`: scikit-learn's copy of the optical recognition of handwritten digits data set."""

from __future__ import annotations

import numpy as np

from flexpool_jax.data.dataset import stratified_split
from flexpool_jax.data.images import encode_png
from flexpool_jax.data.source import Contents, Example, RawFile, Source

# Fixed once and for all, so that every result on this data set is on the same test images.
_TEST_FRACTION, _SPLIT_SEED = 0.2, 0


def read_digits(files: tuple[RawFile, ...]) -> Contents:
    """Reads the 8x8 scans that scikit-learn ships, with values 0 to 16 brought to 0 to 255."""
    del files  # They come with the package.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int32)
    train, test = stratified_split(labels, _TEST_FRACTION, _SPLIT_SEED)

    def example(index: int) -> Example:
        return Example(encode_png(images[index]), int(labels[index]))

    return Contents(map(example, train), map(example, test), class_names="0123456789")


# 1,797 scans of ten digits; four fifths of each class are for training.
DIGITS = Source(
    name="digits",
    description="1,797 scans of handwritten digits, 8x8, as scikit-learn ships them.",
    homepage="https://archive.ics.uci.edu/dataset/80",
    image_shape=(8, 8, 1),
    num_classes=10,
    num_examples={"train": 1438, "test": 359},
    read=read_digits,
    # The CIFAR ResNets shrink their input fourfold.
    default_image_size=32,
)
