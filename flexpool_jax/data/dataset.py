"""What leaves this package: two splits of uint8 images and int32 labels, and their statistics."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flexpool_jax.data.description import describe
from flexpool_jax.data.images import Fit, map_in_threads, resize_array
from flexpool_jax.data.stored import StoredImages
from flexpool_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Split:
    """Some examples of a data set.

    Attributes:
        images: uint8 [N, H, W, C], values 0 to 255: an array in memory, or images that are read
            when they are indexed.
        labels: int32 [N], indices of classes, in memory.
    """

    images: np.ndarray | StoredImages
    labels: np.ndarray

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.labels)

    def take(self, positions: np.ndarray) -> Split:
        """The examples at some positions, in that order."""
        images = self.images
        is_stored = isinstance(images, StoredImages)
        return Split(
            images.take(positions) if is_stored else images[positions], self.labels[positions]
        )

    def center_crop(self, side: int) -> Split:
        """The middle of every image, side × side pixels.

        Raises:
            UserError: The images are smaller.
        """
        images = self.images
        height, width = images.shape[1:3]
        if side > min(height, width):
            raise UserError(
                f"center_crop is {side}, and the images have {height} x {width} pixels; allowed: "
                f"at most {min(height, width)}"
            )
        if isinstance(images, StoredImages):
            return Split(images.center_crop(side), self.labels)
        top, left = (height - side) // 2, (width - side) // 2
        return Split(images[:, top : top + side, left : left + side], self.labels)

    def resize(self, fit: Fit) -> Split:
        """The images brought to a square of another size, in memory."""
        images = np.empty((len(self), fit.size, fit.size, self.images.shape[-1]), np.uint8)
        resized = map_in_threads(functools.partial(resize_array, fit=fit), self.images)
        for place, image in zip(images, resized, strict=True):
            place[...] = image
        return Split(images, self.labels)


def black_split(count: int, image_shape: tuple[int, int, int]) -> Split:
    """Black images [H, W, C] of class 0, which take no memory, where none will be looked at."""
    return Split(
        np.broadcast_to(np.uint8(0), (count, *image_shape)), np.broadcast_to(np.int32(0), count)
    )


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
        folder: The prepared folder that it was read from, if it was.
    """

    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
    superclasses: Superclasses | None = None
    folder: Path | None = None

    def resize(self, fit: Fit) -> Arrays:
        """All images brought to one size.

        Raises:
            UserError: ``fit`` leaves them as they are, and they differ in size.
        """
        shapes = {split.images.shape[1:3] for split in self.splits.values()}
        if not fit.size and len(shapes) > 1:
            raise UserError(
                f"the images of train and test differ in size ({' and '.join(map(str, shapes))}); "
                "set dataset.image_size"
            )
        if not fit.size or shapes == {(fit.size, fit.size)}:
            return self
        resized = {name: split.resize(fit) for name, split in self.splits.items()}
        return dataclasses.replace(self, splits=resized)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification data set.

    Attributes:
        name: What it was loaded as.
        train: The training split. Its images may be larger than those of `test`, for random crops.
        test: The test split, or the part of the training split that stands in for it.
        class_names: The name of each class; a label is an index of it.
        mean: float32 [C], the mean of images / 255 over the training split.
        std: float32 [C], their standard deviation; 1 where a channel is constant.
        superclasses: The data set's own grouping of its classes, if it has one.
        folder: The prepared folder that it was read from, if it was.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    superclasses: Superclasses | None = None
    folder: Path | None = None

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over the images, labels and class names, 64 hexadecimal digits.

        Equal digests mean equal examples in the same order, split in the same way.
        """
        return describe(self.train, self.test, self.class_names).digest

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image as the network takes it."""
        height, width, channels = self.test.images.shape[1:]
        return height, width, channels


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

    Args and errors are those of `stratified_split`.
    """
    left, drawn = stratified_split(train.labels, fraction, seed, class_names)
    return train.take(left), train.take(drawn)
