"""Step 3: `load_dataset` and `prepare_dataset`, from a name to arrays or a prepared folder."""

from __future__ import annotations

import os
from pathlib import Path

from flexpool_jax.data import registry
from flexpool_jax.data.arrays import load_registered
from flexpool_jax.data.dataset import Arrays, Dataset, channel_statistics, hold_out
from flexpool_jax.data.prepare import VERSION, find_prepared, prepare, unknown_dataset
from flexpool_jax.data.records import read_prepared
from flexpool_jax.data.registry import RawDir, Registered, Source
from flexpool_jax.errors import UserError

# The part of the training split that becomes the test split where a data set has none.
_TEST_FRACTION = 0.2

_Path = str | os.PathLike[str]


def load_dataset(
    name: str,
    data_dir: _Path,
    raw_dir: _Path = "",
    *,
    image_size: int = 0,
    holdout: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Loads a data set into memory, and prepares it first if that has not been done.

    Args:
        name: One of `DATASETS`, or a TFDS data set, NAME[/CONFIG][:VERSION], that was prepared as
            ArrayRecord under data_dir.
        data_dir: The folder of prepared data sets. `~` is the home folder. Not used by npz and
            registered data sets, which are loaded as they are.
        raw_dir: A folder with the published files; empty downloads them. Not looked at once the
            data set is prepared. For image_folder: the tree of images, which is looked at each
            time, and prepared again if it has changed. For npz: the file.
        image_size: Side in pixels to which images are resized, by area averaging when they
            shrink; 0 leaves it to the data set, see `Source.default_image_size`.
        holdout: If above 0, this fraction of each class of the training split becomes `test` in
            place of the test split, which is then not looked at.
        seed: Of the draw of what is held out, or of the test split of a data set that has none.

    Returns:
        The splits, with the statistics of the training split alone.

    Raises:
        UserError: The name is unknown, or the data cannot be prepared or read.
        OSError: The disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as data_dir:
        ...     dataset = load_dataset("digits", data_dir)
        >>> dataset.train.images.shape, dataset.test.images.shape, dataset.num_classes
        ((1438, 32, 32, 1), (359, 32, 32, 1), 10)
    """
    if not 0 <= holdout < 1:
        raise UserError(f"holdout is {holdout}; allowed: 0 or more, below 1")
    opened, size = _open(name, data_dir, raw_dir, image_size)
    arrays = opened if isinstance(opened, Arrays) else read_prepared(opened, size)
    return _as_dataset(name, arrays, holdout, seed)


def prepare_dataset(
    name: str, data_dir: _Path, raw_dir: _Path = "", *, image_size: int = 0
) -> Path | None:
    """Downloads and converts a data set, so that the next `load_dataset` is quick.

    Args and errors are those of `load_dataset`.

    Returns:
        The prepared folder, a TFDS data set of ArrayRecord files; None for arrays, which are
        checked and loaded as they are.
    """
    opened, size = _open(name, data_dir, raw_dir, image_size)
    if isinstance(opened, Arrays):
        return None
    # Decoded here already, so that a training starts at once.
    read_prepared(opened, size)
    return opened


def _open(name: str, data_dir: _Path, raw_dir: _Path, image_size: int) -> tuple[Path | Arrays, int]:
    """Returns the prepared folder, and the side at which to read it, or the arrays themselves."""
    root = _path("data_dir", data_dir)
    raw = _path("raw_dir", raw_dir) if raw_dir else None
    match registry.DATASETS.get(name):
        case Registered(load):
            return load_registered(name, load, image_size), 0
        case RawDir(function):
            opened = registry.resolve(function)(raw, image_size)
            return (opened if isinstance(opened, Arrays) else prepare(opened, root, raw)), 0
        case Source() as source:
            # TFDS has builders of some of these names: what they prepared is as good.
            folder = find_prepared(f"{name}:{VERSION}", root) or find_prepared(name, root)
            return folder or prepare(source, root, raw), image_size or source.default_image_size
    folder = find_prepared(name, root)
    if folder is None:
        raise unknown_dataset(name, root)
    return folder, image_size


def _path(field: str, path: _Path) -> Path:
    if "://" in str(path):
        raise UserError(
            f"dataset.{field}={str(path)!r}; allowed: the path of a folder or file on this machine"
        )
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 (~name may be unknown)


def _as_dataset(name: str, arrays: Arrays, holdout: float, seed: int) -> Dataset:
    train, test = arrays.splits["train"], arrays.splits.get("test")
    if test is None:
        train, test = hold_out(train, _TEST_FRACTION, seed, arrays.class_names)
    if holdout:
        train, test = hold_out(train, holdout, seed, arrays.class_names)
    mean, std = channel_statistics(train.images)
    return Dataset(name, train, test, arrays.class_names, mean, std, arrays.superclasses)
