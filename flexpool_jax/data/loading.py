"""`load_dataset` and `prepare_dataset`: a name in, arrays or a prepared folder out."""

from __future__ import annotations

import os
from pathlib import Path

from flexpool_jax.data import builder, image_folder, tfds_sets
from flexpool_jax.data.cifar import CIFAR10, CIFAR100
from flexpool_jax.data.dataset import Dataset, Superclasses, channel_statistics, hold_out
from flexpool_jax.data.digits import DIGITS
from flexpool_jax.data.fashion_mnist import FASHION_MNIST
from flexpool_jax.data.reading import Prepared, read_prepared
from flexpool_jax.data.source import Source
from flexpool_jax.data.tiny_imagenet import TINY_IMAGENET
from flexpool_jax.errors import UserError

SOURCES = {
    source.name: source for source in (DIGITS, FASHION_MNIST, CIFAR10, CIFAR100, TINY_IMAGENET)
}

# Every data set that this project prepares itself.
DATASETS = (*SOURCES, image_folder.NAME)

# What becomes the test split where a data set has none.
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
        data_dir: The folder of prepared data sets. `~` is the home folder.
        raw_dir: A folder with the published files; empty downloads them. Not looked at once the
            data set is prepared. For image_folder: the tree of images, which is looked at each
            time, and prepared again if it has changed.
        image_size: Side in pixels to which images are resized, by area averaging when they
            shrink; 0 leaves it to the data set, see `Source.default_image_size`.
        holdout: If above 0, this fraction of each class of the training split becomes `test` in
            place of the test split, which is then not looked at.
        seed: Of the draw of what is held out, or of the test split of a data set that has none.

    Returns:
        The splits, with the statistics of the training split alone.

    Raises:
        UserError: The name is unknown, or the data cannot be prepared or read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as data_dir:
        ...     dataset = load_dataset("digits", data_dir)
        >>> dataset.train.images.shape, dataset.test.images.shape, dataset.num_classes
        ((1438, 32, 32, 1), (359, 32, 32, 1), 10)
    """
    if not 0 <= holdout < 1:
        raise UserError(f"holdout is {holdout}; allowed: 0 or more, below 1")
    prepared = read_prepared(*_prepare(name, data_dir, raw_dir, image_size))
    return _as_dataset(name, prepared, holdout, seed)


def prepare_dataset(
    name: str, data_dir: _Path, raw_dir: _Path = "", *, image_size: int = 0
) -> Path:
    """Downloads and converts a data set, so that the next `load_dataset` is quick.

    Args and errors are those of `load_dataset`.

    Returns:
        The prepared folder, a TFDS data set of ArrayRecord files.
    """
    folder, size = _prepare(name, data_dir, raw_dir, image_size)
    # Decoded once here, where there is time, and not where the training is to start.
    read_prepared(folder, size)
    return folder


def load_source(
    source: Source, data_dir: _Path, raw_dir: _Path = "", *, image_size: int = 0
) -> Dataset:
    """Loads a source that need not be one of `DATASETS`; arguments as for `load_dataset`."""
    folder = builder.prepare(source, _path(data_dir), _path(raw_dir) if raw_dir else None)
    prepared = read_prepared(folder, image_size or source.default_image_size)
    return _as_dataset(source.name, prepared, holdout=0, seed=0)


def _prepare(name: str, data_dir: _Path, raw_dir: _Path, image_size: int) -> tuple[Path, int]:
    """Returns the prepared folder and the side in pixels at which to read it."""
    root, raw = _path(data_dir), _path(raw_dir) if raw_dir else None
    if name == image_folder.NAME:
        return _prepare_image_folder(root, raw, image_size), 0
    source = SOURCES.get(name)
    if source is None:
        folder = tfds_sets.find_prepared(name, root)
        if folder is None:
            raise tfds_sets.unknown_dataset(name, root, DATASETS)
        return folder, image_size
    size = image_size or source.default_image_size
    if not builder.is_prepared(builder.prepared_folder(root, name)):
        # TFDS has builders of some of these names: what they prepared is as good.
        folder = tfds_sets.find_prepared(name, root)
        if folder is not None:
            return folder, size
    return builder.prepare(source, root, raw), size


def _prepare_image_folder(data_dir: Path, raw_dir: Path | None, image_size: int) -> Path:
    images = image_folder.open_image_folder(raw_dir, image_size)
    folder = builder.prepared_folder(data_dir, image_folder.NAME, images.variant)
    if builder.is_prepared(folder):
        return folder
    return builder.prepare(image_folder.image_folder_source(images), data_dir, raw_dir)


def _path(path: _Path) -> Path:
    return Path(path).expanduser().absolute()


def _as_dataset(name: str, prepared: Prepared, holdout: float, seed: int) -> Dataset:
    train, test = prepared.splits["train"], prepared.splits.get("test")
    if test is None:
        train, test = hold_out(train, _TEST_FRACTION, seed)
    if holdout:
        train, test = hold_out(train, holdout, seed)
    mean, std = channel_statistics(train.images)
    superclasses = None
    if prepared.superclass_names:
        superclasses = Superclasses(prepared.superclass_names, prepared.superclass_of_class)
    return Dataset(name, train, test, prepared.class_names, mean, std, superclasses)
