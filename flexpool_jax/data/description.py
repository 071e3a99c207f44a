"""Mean, standard deviation and digest of a data set; those of stored images are kept in a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flexpool_jax import files
from flexpool_jax.data.stored import ARRAYS_PREFIX, CHUNK_BYTES, StoredImages

if TYPE_CHECKING:
    from flexpool_jax.data.dataset import Split


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


# By their keys, for folders that cannot be written to.
_described: dict[str, Description] = {}


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

        digest = digest_of(train, test, class_names, look)
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


def digest_of(
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
