"""`Dataset`: two splits of uint8 images and int32 labels, with class names and statistics."""

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
    """Images and labels: a whole split of a data set or a part of it.

    Attributes:
        images: uint8 [N, H, W, C], values 0 to 255: an array in memory, or `StoredImages`, which
            are read from disk when they are indexed.
        labels: int32 [N], indices of classes, in memory.
    """

    images: np.ndarray | StoredImages
    labels: np.ndarray

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.labels)

    def take(self, positions: np.ndarray) -> Split:
        """Returns the examples at the given positions, in the order of the positions."""
        images = self.images
        is_stored = isinstance(images, StoredImages)
        return Split(
            images.take(positions) if is_stored else images[positions], self.labels[positions]
        )

    def center_crop(self, side: int) -> Split:
        """Cuts the middle side × side pixels out of every image.

        Raises:
            UserError: The images are smaller than side × side.
        """
        images = self.images
        height, width = images.shape[1:3]
        if side > min(height, width):
            raise UserError(
                f"center_crop is {side}, and the images have {height} x {width} pixels; allowed: "
                f"at most {min(height, width)}"
            )
        top, left = (height - side) // 2, (width - side) // 2

        def crop(image: np.ndarray) -> np.ndarray:
            return image[..., top : top + side, left : left + side, :]

        if isinstance(images, StoredImages):
            return Split(images.changed(crop, side, f"cropped to {side}"), self.labels)
        return Split(crop(images), self.labels)

    def resize(self, fit: Fit) -> Split:
        """Resizes every image to fit.size × fit.size; stored images when they are read."""
        resize = functools.partial(resize_array, fit=fit)
        if isinstance(self.images, StoredImages):
            return Split(self.images.changed(resize, fit.size, f"resized to {fit}"), self.labels)
        images = np.empty((len(self), fit.size, fit.size, self.images.shape[-1]), np.uint8)
        for place, image in zip(images, map_in_threads(resize, self.images), strict=True):
            place[...] = image
        return Split(images, self.labels)


def black_split(count: int, image_shape: tuple[int, int, int]) -> Split:
    """Returns black images [H, W, C] of class 0 that take no memory: a split for its shape only."""
    return Split(
        np.broadcast_to(np.uint8(0), (count, *image_shape)), np.broadcast_to(np.int32(0), count)
    )


@dataclasses.dataclass(frozen=True)
class Superclasses:
    """A grouping of the classes, for training on superclasses first (section 4.2 of the paper).

    Attributes:
        names: Names of the superclasses.
        of_class: int32 [num_classes], the index in ``names`` of each class's superclass.
    """

    names: tuple[str, ...]
    of_class: np.ndarray


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A whole data set as it was read, before examples are held out.

    Attributes:
        splits: The split "train" and, if the data set has a test split, "test".
        class_names: Names of the classes; a label is an index of this tuple.
        superclasses: The data set's own grouping of its classes; None if it has none.
        folder: The prepared folder that was read; None for the user's own arrays.
    """

    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
    superclasses: Superclasses | None = None
    folder: Path | None = None

    def resize(self, fit: Fit) -> Arrays:
        """Resizes all images as ``fit`` says; returns ``self`` if nothing changes.

        Raises:
            UserError: ``fit.size`` is 0, and the sizes of the two splits differ.
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
        name: The name under which the data set was loaded.
        train: The training split. Its images may be larger than those of `test`, for random crops.
        test: The test split, or the part of the training split that is used in its place.
        class_names: Names of the classes; a label is an index of this tuple.
        mean: float32 [C], mean of the training images after division by 255.
        std: float32 [C], standard deviation of the training images after division by 255; 1 for a
            channel that is constant.
        superclasses: The data set's own grouping of its classes; None if it has none.
        folder: The prepared folder that was read; None for the user's own arrays.
        test_is_drawn: Whether the seed drew `test` from the training images: held-out images, or
            the test split of a data set that has none of its own. It then differs between seeds.

    Raises:
        UserError: There are more than 32,768 classes.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    superclasses: Superclasses | None = None
    folder: Path | None = None
    test_is_drawn: bool = False

    def __post_init__(self) -> None:
        most = np.iinfo(np.int16).max + 1
        if self.num_classes > most:
            raise UserError(
                f"data set {self.name!r} has {self.num_classes:,} classes; allowed: at most "
                f"{most:,}, because predictions.npz holds int16"
            )

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over the images, labels and class names, as 64 hexadecimal digits.

        Equal digests mean equal examples in the same order and the same splits.
        """
        return describe(self.train, self.test, self.class_names).digest

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a test image, the shape that the network is built for."""
        height, width, channels = self.test.images.shape[1:]
        return height, width, channels


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, class_names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the same fraction of the examples of every class.

    Args:
        labels: int [N].
        fraction: Share of each class to draw, in (0, 1). The number of examples is rounded, but at
            least one example of each class is drawn and at least one is not.
        seed: Seed of the draw. The result depends only on the seed, the labels and the fraction.
        class_names: Names of the classes for the error message; without them it shows the label.

    Returns:
        Two int arrays of positions in ``labels``, both ascending: the examples that are not drawn,
        and the examples that are drawn.

    Raises:
        UserError: The fraction is outside (0, 1), or a class has only one example.

    Example:
        >>> labels = np.array([0] * 10 + [1] * 5)
        >>> left, drawn = stratified_split(labels, 0.2, seed=0)
        >>> np.bincount(labels[left]).tolist(), np.bincount(labels[drawn]).tolist()
        ([8, 4], [2, 1])
    """
    if not 0 < fraction < 1:
        raise UserError(f"fraction is {fraction}; allowed: above 0 and below 1")
    generator = np.random.default_rng([seed, 0x5711])
    is_drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            name = repr(class_names[label]) if class_names else label
            raise UserError(
                f"class {name} has {len(members)} training image; a split needs at least 2 of "
                "every class: add images of this class, or leave it out"
            )
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        is_drawn[generator.permutation(members)[:count]] = True
    return np.flatnonzero(~is_drawn), np.flatnonzero(is_drawn)


def hold_out(
    train: Split, fraction: float, seed: int, class_names: Sequence[str] = ()
) -> tuple[Split, Split]:
    """Divides a split into the remaining examples and the held-out fraction of each class.

    Args and errors are those of `stratified_split`, with a split in place of labels.
    """
    left, drawn = stratified_split(train.labels, fraction, seed, class_names)
    return train.take(left), train.take(drawn)
