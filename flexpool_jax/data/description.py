"""Mean, standard deviation and digest of a data set; for stored images, cached in a file."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flexpool_jax import files
from flexpool_jax.data.stored import ARRAYS_PREFIX, StoredImages, chunks
from flexpool_jax.errors import UserError

if TYPE_CHECKING:
    from flexpool_jax.data.dataset import Split


class Description(NamedTuple):
    """Statistics and digest of a data set, computed in one pass over all images.

    Attributes:
        mean: float32 [C], mean of the training images after division by 255.
        std: float32 [C], standard deviation of the training images after division by 255; 1 for a
            constant channel, whose normalised values are then 0.
        digest: SHA-256 of the data set, see `Dataset.digest`.
    """

    mean: np.ndarray
    std: np.ndarray
    digest: str


# By key, for the case that the folder cannot be written to.
_cache: dict[str, Description] = {}


def describe(train: Split, test: Split, class_names: Sequence[str]) -> Description:
    """Computes statistics and digest in one pass over all images.

    For `StoredImages`, the result is saved in the folder of the images and read from there the
    next time.

    Example:
        >>> from flexpool_jax.data import Split
        >>> images = np.array([[[[0, 7]], [[255, 7]]]], dtype=np.uint8)
        >>> split = Split(images, np.zeros(1, np.int32))
        >>> mean, std, _ = describe(split, split, ["one"])
        >>> print(mean.round(4), std)
        [0.5    0.0275] [0.5 1. ]
    """
    if not isinstance(train.images, StoredImages) or not isinstance(test.images, StoredImages):
        return _compute(train, test, class_names)
    sha = hashlib.sha256(repr((class_names, train.images.key, test.images.key)).encode())
    for images, labels in ((train.images, train.labels), (test.images, test.labels)):
        sha.update(np.ascontiguousarray(images.positions, np.int64).data)
        sha.update(np.ascontiguousarray(labels, np.int32).data)
    key = sha.hexdigest()
    path = train.images.folder / f"{ARRAYS_PREFIX}description_{key[:16]}.json"
    found = _cache.get(key) or _read_description(path, key)
    if found is None:
        count = len(train) + len(test)
        print(
            f"reading {count:,} images once, for their mean, deviation and digest",
            file=sys.stderr,
            flush=True,
        )
        found = _compute(train, test, class_names)
        # Not saved if the folder is read-only or the disk is full: the next call computes it again.
        with contextlib.suppress(OSError):
            mean, std = found.mean.tolist(), found.std.tolist()
            kept = {"key": key, "mean": mean, "std": std, "digest": found.digest}
            files.write_json(path, files.with_digest(kept))
    _cache[key] = found
    return found


def _read_description(path: Path, key: str) -> Description | None:
    try:
        kept = files.read_json(path)
        if kept is None or kept["key"] != key or not files.digest_matches(kept):
            return None
        mean, std = (np.asarray(kept[name], np.float32) for name in ("mean", "std"))
        return Description(mean, std, str(kept["digest"]))
    except (ValueError, TypeError, KeyError):
        return None


def _compute(train: Split, test: Split, class_names: Sequence[str]) -> Description:
    if train.images.dtype != np.uint8 or test.images.dtype != np.uint8:
        raise UserError(
            f"the images are {train.images.dtype} (training) and {test.images.dtype} (test); "
            "allowed: uint8"
        )
    # Count how often each of the 256 values occurs in each channel: unlike sums of floating-point
    # values, counts are exact.
    counts = np.zeros((train.images.shape[-1], 256), np.int64)
    sha = hashlib.sha256(repr(class_names).encode())
    for split in (train, test):
        sha.update(repr(split.images.shape).encode())
        for chunk in chunks(split.images):
            sha.update(np.ascontiguousarray(chunk).data)
            if split is train:
                for channel, count in enumerate(counts):
                    count += np.bincount(chunk[..., channel].ravel(), minlength=256)
        sha.update(np.ascontiguousarray(split.labels, np.int32).data)
    frequencies = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    mean = frequencies @ values
    std = np.sqrt((frequencies * (values - mean[:, None]) ** 2).sum(axis=1))
    std[np.count_nonzero(counts, axis=1) == 1] = 1.0
    return Description(mean.astype(np.float32), std.astype(np.float32), sha.hexdigest())
