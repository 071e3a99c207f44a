"""What leaves this package: two splits of uint8 images and int32 labels, and their statistics."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flexpool_jax import files
from flexpool_jax.data.stored import ARRAYS_PREFIX, CHUNK_BYTES, StoredImages
from flexpool_jax.errors import UserError

# Descriptions of stored images by their key, for folders that cannot be written to.
_described: dict[str, Description] = {}


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
    """A classification data set.

    Attributes:
        name: What it was loaded as.
        train: The training split. Its images may be larger than those of `test`, for random crops.
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
        if isinstance(self.train.images, StoredImages):
            return describe(self.train, self.test, self.class_names).digest
        return _digest(self.train, self.test, self.class_names)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image as the network takes it."""
        height, width, channels = self.test.images.shape[1:]
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
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for chunk in _chunks(images):
        counts += _counts(chunk)
    return _statistics(counts)


class Description(NamedTuple):
    """What one look at every image of a data set tells.

    Attributes:
        mean, std: See `channel_statistics`, of the training images.
        digest: See `Dataset.digest`.
    """

    mean: np.ndarray
    std: np.ndarray
    digest: str


def describe(train: Split, test: Split, class_names: Sequence[str]) -> Description:
    """Looks once at every image of two stored splits, and keeps the result beside their files."""
    train_images, test_images = train.images, test.images
    assert isinstance(train_images, StoredImages)
    assert isinstance(test_images, StoredImages)
    sha = hashlib.sha256(repr((class_names, train_images.key, test_images.key)).encode())
    for split, images in ((train, train_images), (test, test_images)):
        sha.update(np.ascontiguousarray(images.positions, np.int64).data)
        sha.update(np.ascontiguousarray(split.labels, np.int32).data)
    key = sha.hexdigest()
    path = train_images.folder / f"{ARRAYS_PREFIX}description_{key[:16]}.json"
    found = _described.get(key) or _read_description(path, key)
    if found is None:
        count = len(train) + len(test)
        print(
            f"reading {count:,} images once, for their mean, deviation and digest",
            file=sys.stderr,
            flush=True,
        )
        counts = np.zeros((train_images.shape[-1], 256), np.int64)

        def look(chunk: np.ndarray) -> None:
            counts[...] += _counts(chunk)

        digest = _digest(train, test, class_names, look)
        found = Description(*_statistics(counts), digest)
        # A data folder that others prepared may be read-only, and a disk full: then without.
        with contextlib.suppress(OSError):
            kept = {"mean": found.mean.tolist(), "std": found.std.tolist(), "digest": digest}
            files.write_json(path, files.sealed({"key": key, **kept}))
    _described[key] = found
    return found


def _read_description(path: Path, key: str) -> Description | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] != key or not files.seal_holds(kept):
            return None
        mean, std = (np.asarray(kept[name], np.float32) for name in ("mean", "std"))
        return Description(mean, std, str(kept["digest"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _digest(
    train: Split,
    test: Split,
    class_names: Sequence[str],
    look: Callable[[np.ndarray], None] = lambda chunk: None,
) -> str:
    """See `Dataset.digest`; ``look`` is shown the training images, some at a time."""
    sha = hashlib.sha256(repr(class_names).encode())
    for split in (train, test):
        sha.update(repr(split.images.shape).encode())
        for chunk in _chunks(split.images):
            sha.update(np.ascontiguousarray(chunk).data)
            if split is train:
                look(chunk)
        sha.update(np.ascontiguousarray(split.labels, np.int32).data)
    return sha.hexdigest()


def _chunks(images: np.ndarray | StoredImages) -> Iterator[np.ndarray]:
    """All images in order, some at a time."""
    if isinstance(images, StoredImages):
        yield from images.chunks()
        return
    step = max(1, CHUNK_BYTES // int(np.prod(images.shape[1:])))
    for start in range(0, len(images), step):
        yield images[start : start + step]


def _counts(images: np.ndarray) -> np.ndarray:
    """How often each channel has each value: [C, 256]."""
    return np.stack(
        [
            np.bincount(images[..., channel].ravel(), minlength=256)
            for channel in range(images.shape[-1])
        ]
    )


def _statistics(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of values / 255 from the counts [C, 256]."""
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
    return train.take(left), train.take(drawn)
