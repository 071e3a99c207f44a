"""Step 3: `load_dataset` and `prepare_dataset`, which find, prepare and load a data set by name."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from flexpool_jax import files
from flexpool_jax.data.arrays import load_registered
from flexpool_jax.data.dataset import Arrays, Dataset, Split, hold_out
from flexpool_jax.data.description import describe
from flexpool_jax.data.images import RESIZES, Fit
from flexpool_jax.data.prepare import VERSION, prepare
from flexpool_jax.data.records import read_prepared
from flexpool_jax.data.registry import DATASETS, READERS, RawDir, Source
from flexpool_jax.errors import UnknownName, UserError, closest_name
from flexpool_jax.registration import resolve

# Fraction of the training split that becomes the test split if a data set has no test split.
_TEST_FRACTION = 0.2

_TFDS_NAME = re.compile(r"(?P<name>\w+)(?:/(?P<config>[\w.+-]+))?(?::(?P<version>[\d.]+))?")

_Path = str | os.PathLike[str]


def load_dataset(
    name: str,
    data_dir: _Path,
    raw_dir: _Path = "",
    *,
    image_size: int = 0,
    resize: str = "stretch",
    center_crop: int = 0,
    crop_training: bool = True,
    holdout: float = 0.0,
    seed: int = 0,
    max_bytes: float = math.inf,
) -> Dataset:
    """Loads a data set, and prepares it first if it is not prepared yet.

    Args:
        name: A name in `DATASETS`, or a TFDS data set, NAME[/CONFIG][:VERSION], that was prepared
            as ArrayRecord under data_dir.
        data_dir: The folder of prepared data sets. `~` is the home folder. The data set npz and
            registered data sets do not use it, because they are never prepared.
        raw_dir: The folder with the published files; empty downloads them. If the data set is
            already prepared, this folder is not used. For image_folder: the tree of images, which
            is listed each time and prepared again if it has changed. For npz: the .npz file.
        image_size: Side in pixels to which images are resized; 0 uses the data set's own default,
            see `Source.default_image_size`.
        resize: "stretch" resizes to a square whatever the proportions, by area averaging when
            images shrink; "crop" resizes the short side and cuts out the middle square, see
            `images.Fit`.
        center_crop: Side in pixels of the square that is cut from the middle of each image after
            resizing; 0 does not crop.
        crop_training: Whether ``center_crop`` applies to the training images too.
        holdout: If above 0, this fraction of each class of the training split is used as `test`,
            and the published test split is not used.
        seed: Seed of the random draw of held-out examples. For a data set without a test split,
            also the seed of the draw of its test split.
        max_bytes: Largest size of the images in memory. If the images of a prepared data set are
            larger, they stay in their files and are read when they are needed (`StoredImages`).
            Their mean, deviation and digest need one pass over all images, and are then saved in
            the prepared folder.

    Returns:
        The splits, and the statistics of the training split.

    Raises:
        UserError: The name is unknown, an option is invalid, or the data cannot be prepared or
            read.
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
    if resize not in RESIZES:
        raise UserError(f"resize is {resize!r}; allowed: {', '.join(RESIZES)}")
    root = _path("data_dir", data_dir)
    raw = _path("raw_dir", raw_dir) if raw_dir else None
    arrays = _read(name, root, raw, Fit(image_size, crops=resize == "crop"), max_bytes)
    train, test = arrays.splits["train"], arrays.splits.get("test")
    if test is None:
        train, test = hold_out(train, _TEST_FRACTION, seed, arrays.class_names)
    if holdout:
        train, test = hold_out(train, holdout, seed, arrays.class_names)
    if center_crop:
        test = test.center_crop(center_crop)
        train = train.center_crop(center_crop) if crop_training else train
    train, test = _read_only(train), _read_only(test)
    mean, std, digest = describe(train, test, arrays.class_names)
    dataset = Dataset(
        name,
        train,
        test,
        arrays.class_names,
        mean,
        std,
        arrays.superclasses,
        arrays.folder,
        test_is_drawn=holdout > 0 or "test" not in arrays.splits,
    )
    # Fills the cached property, so that the digest is not computed a second time.
    vars(dataset)["digest"] = digest
    return dataset


def _read_only(split: Split) -> Split:
    """The same split; NumPy refuses to change its arrays, which would make the digest wrong."""
    images, labels = split.images, split.labels.view()
    labels.setflags(write=False)
    if isinstance(images, np.ndarray):
        images = images.view()
        images.setflags(write=False)
    return Split(images, labels)


def prepare_dataset(name: str, data_dir: _Path, raw_dir: _Path = "", **options: Any) -> Path | None:
    """Downloads and converts a data set, so that the next `load_dataset` is quick.

    This function calls `load_dataset`, which also saves decoded images or statistics in the
    prepared folder. Args and errors are those of `load_dataset`.

    Returns:
        The prepared folder, a TFDS data set of ArrayRecord files; None for the user's own arrays,
        which are checked but not prepared.
    """
    return load_dataset(name, data_dir, raw_dir, **options).folder


def check_raw_dir(name: str, raw_dir: _Path) -> None:
    """Checks that the user's own files, of image_folder or npz, exist; reads none of them.

    For other data sets nothing is checked: they may be prepared already, or can be downloaded.

    Raises:
        UserError: raw_dir is empty or does not exist. The message is that of `load_dataset`.
    """
    known = DATASETS.get(name)
    if isinstance(known, RawDir):
        resolve(known.check, READERS)(_path("raw_dir", raw_dir) if raw_dir else None)


def memory_for_images(placement: str, device_bytes: float = math.inf, copies: int = 1) -> float:
    """Largest size in bytes of images that are loaded into memory; larger ones are streamed.

    "device" means no limit and "stream" 0. "auto" means a quarter of the smaller of two sizes: the
    device's memory, and the machine's memory divided by the number of copies.

    Args:
        placement: "device", "stream" or "auto"; see dataset.placement in configs/default.py.
        device_bytes: Memory of the device in bytes; infinity if it has no memory of its own.
        copies: Number of copies of the images that the machine's memory must hold.

    Example:
        >>> memory_for_images("device"), memory_for_images("auto", device_bytes=80e6)
        (inf, 20000000.0)
    """
    if placement != "auto":
        return math.inf if placement == "device" else 0
    return min(_host_bytes() / copies, device_bytes) / 4


def _host_bytes() -> int:
    """Memory in bytes of this machine, or of the container or job that the process runs in."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    root = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError):
        group = root / Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
        for folder in (group, *group.parents):
            # The file contains "max" if there is no limit. Some folders have no such file.
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / "memory.max").read_text()))
    return min(limits)


def _read(name: str, data_dir: Path, raw_dir: Path | None, fit: Fit, max_bytes: float) -> Arrays:
    """Reads a data set, and prepares it if needed; the user's own arrays are only resized."""
    match DATASETS.get(name):
        case RawDir(function):
            opened = resolve(function, READERS)(raw_dir, fit)
            if isinstance(opened, Arrays):
                return opened
            folder = prepare(opened, data_dir, raw_dir)
            fit = fit if fit.crops else Fit(0)
        case Source() as source:
            # TFDS has builders for some of these names; a data set that they prepared also works.
            found = find_prepared(f"{name}:{VERSION}", data_dir) or find_prepared(name, data_dir)
            folder = found or prepare(source, data_dir, raw_dir)
            fit = dataclasses.replace(fit, size=fit.size or source.default_image_size)
        case None:
            found = find_prepared(name, data_dir)
            if found is None:
                raise unknown_dataset(name, data_dir)
            folder = found
        case load:
            return load_registered(name, load).resize(fit)
    return read_prepared(folder, fit, max_bytes)


def _path(field: str, path: _Path) -> Path:
    if "://" in str(path):
        raise UserError(
            f"dataset.{field}={str(path)!r}; allowed: the path of a folder or file on this machine"
        )
    return files.expanded(path).absolute()


def find_prepared(name: str, data_dir: Path) -> Path | None:
    """Finds a data set that TFDS prepared as ArrayRecord: DATA_DIR/NAME[/CONFIG]/VERSION.

    Args:
        name: NAME or NAME/CONFIG, optionally followed by :VERSION. Without a version, the newest
            prepared version is found.
        data_dir: The folder of prepared data sets.

    Returns:
        The prepared folder, or None if there is none.

    Raises:
        UserError: The name does not name a config, and several configs are prepared.
    """
    match = _TFDS_NAME.fullmatch(name)
    if match is None:
        return None
    root, version = data_dir / match["name"], match["version"]
    if match["config"]:
        return _newest(root / match["config"], version)
    found = _newest(root, version)
    if found is not None or not root.is_dir():
        return found
    configs = {
        folder.name: newest
        for folder in sorted(root.iterdir())
        if (newest := _newest(folder, version)) is not None
    }
    if len(configs) > 1:
        names = ", ".join(f"{match['name']}/{config}" for config in configs)
        raise UserError(f"{root} holds several configs of {name!r}; name one of: {names}")
    return next(iter(configs.values()), None)


def _newest(folder: Path, version: str | None) -> Path | None:
    """Returns the subfolder with the newest version that is stored as ArrayRecord, or None."""
    found = [
        info.parent
        for info in folder.glob(f"{version or '*'}/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name) and _is_array_record(info)
    ]
    return max(found, key=lambda path: [int(x) for x in path.name.split(".")], default=None)


def _is_array_record(info: Path) -> bool:
    try:
        return json.loads(info.read_text(encoding="utf-8")).get("fileFormat") == "array_record"
    except (OSError, ValueError, AttributeError):
        return False


def unknown_dataset(name: str, data_dir: Path) -> UserError:
    """Builds the error for a name that is neither registered nor prepared under data_dir.

    If TFDS knows the name, the message says how to prepare it; otherwise it shows the closest match
    among the data sets that are registered or prepared.
    """
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    names = ", ".join(DATASETS)
    base = name.partition("/")[0].partition(":")[0]
    if base in known:
        return UserError(
            f"{name!r} is not prepared as ArrayRecord under {data_dir}, and its preparation needs "
            f"TensorFlow; in an environment that has it, run: tfds build {name} "
            f"--file_format=array_record --data_dir={data_dir} (without TensorFlow: {names})"
        )
    match = closest_name(base, [*DATASETS, *(path.name for path in data_dir.glob("*/"))])
    hint = f" did you mean {match!r}?" if match else ""
    return UnknownName(
        f"unknown data set {name!r};{hint} allowed: {names}, or a TFDS data set prepared as "
        f"ArrayRecord under {data_dir}"
    )
