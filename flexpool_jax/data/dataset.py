"""What leaves this package: two splits of uint8 images and int32 labels, and their statistics."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from flexpool_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Split:
    """Some examples of a data set, as NumPy arrays in memory.

    Attributes:
        images: uint8 [N, H, W, C], values 0 to 255.
        labels: int32 [N], indices of classes.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Superclasses:
    """A grouping of the classes, for training on superclasses first (section 4.2 of the paper).

    Attributes:
        names: The name of each superclass.
        of_class: int32 [num_classes], the index of each class's superclass.
    """

    names: tuple[str, ...]
    of_class: np.ndarray


@dataclasses.dataclass(frozen=True)
class Arrays:
    """The whole of a data set as it was read, before anything is held out of it.

    Attributes:
        splits: "train" and, where the data set has one, "test".
        class_names: The name of each class.
        superclasses: The data set's own grouping of its classes, if it has one.
    """

    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
    superclasses: Superclasses | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification data set in memory.

    Attributes:
        name: What it was loaded as.
        train: The training split.
        test: The test split, or the part of the training split that stands in for it.
        class_names: The name of each class; a label is an index of it.
        mean: float32 [C], the mean of images / 255 over the training split.
        std: float32 [C], their standard deviation; 1 where a channel is constant.
        superclasses: The data set's own grouping of its classes, if it has one.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    superclasses: Superclasses | None = None

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over the images, labels and class names, 64 hexadecimal digits.

        Equal digests mean equal examples in the same order, split in the same way.
        """
        sha = hashlib.sha256(repr(self.class_names).encode())
        for split in (self.train, self.test):
            sha.update(repr(split.images.shape).encode())
            sha.update(np.ascontiguousarray(split.images).data)
            sha.update(np.ascontiguousarray(split.labels, np.int32).data)
        return sha.hexdigest()

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes each channel's mean and standard deviation of images / 255.

    Args:
        images: uint8 [N, H, W, C], with N, H and W at least 1.

    Returns:
        Mean and standard deviation, float32 [C] each. They are exact to rounding: the counts of
        the 256 values are summed, not the values. A constant channel has 1 for its deviation, so
        that dividing by it gives zeros.

    Example:
        >>> images = np.array([[[[0, 7]], [[255, 7]]]], dtype=np.uint8)
        >>> mean, std = channel_statistics(images)
        >>> print(mean.round(4), std)
        [0.5    0.0275] [0.5 1. ]
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    # In slices, because bincount copies what it counts as 64-bit integers.
    step = max(1, 2**23 // int(np.prod(images.shape[1:])))
    for start in range(0, len(images), step):
        for channel in range(channels):
            values = images[start : start + step, :, :, channel].ravel()
            counts[channel] += np.bincount(values, minlength=256)
    frequencies = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    mean = frequencies @ values
    std = np.sqrt((frequencies * (values - mean[:, None]) ** 2).sum(axis=1))
    std[np.count_nonzero(counts, axis=1) == 1] = 1.0
    return mean.astype(np.float32), std.astype(np.float32)


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, class_names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the same fraction of every class.

    Args:
        labels: int [N].
        fraction: Share of each class to draw, in (0, 1); rounded, but at least one example is
            drawn of every class and one left.
        seed: The draw depends on it and on the labels alone.
        class_names: What an error calls the classes; their labels if it is left out.

    Returns:
        The positions that are left and those that are drawn, each ascending.

    Raises:
        UserError: A class has one example only.

    Example:
        >>> labels = np.array([0] * 10 + [1] * 5)
        >>> left, drawn = stratified_split(labels, 0.2, seed=0)
        >>> np.bincount(labels[left]).tolist(), np.bincount(labels[drawn]).tolist()
        ([8, 4], [2, 1])
    """
    generator = np.random.default_rng([seed, 0x5711])
    is_drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            name = repr(class_names[label]) if class_names else label
            raise UserError(
                f"class {name} has {len(members)} training image; a split needs at least 2 of "
                "every class"
            )
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        is_drawn[generator.permutation(members)[:count]] = True
    return np.flatnonzero(~is_drawn), np.flatnonzero(is_drawn)


def hold_out(
    train: Split, fraction: float, seed: int, class_names: Sequence[str] = ()
) -> tuple[Split, Split]:
    """Divides a split in two by class: what is left of it, and the fraction held out.

    Args are those of `stratified_split`.

    Raises:
        UserError: The fraction is outside (0, 1), or a class has one example only.
    """
    if not 0 < fraction < 1:
        raise UserError(f"holdout is {fraction}; allowed: 0 or more, below 1")
    left, drawn = stratified_split(train.labels, fraction, seed, class_names)
    return (
        Split(train.images[left], train.labels[left]),
        Split(train.images[drawn], train.labels[drawn]),
    )
