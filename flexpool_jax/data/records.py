"""Reading a prepared folder, with a cache of the decoded images in the same folder.

Decoding the images takes seconds, and reading decoded arrays is faster. The arrays are cached in
one uncompressed .npz file in the prepared folder. A rename puts the complete file in place, and its
entries have a CRC-32, so that a damaged cache is noticed and written again. The cache is used only
if the names, sizes and times of change of the prepared files are those it was made from. If the
images would take too much memory, only the labels are read and cached.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flexpool_jax import files
from flexpool_jax.data import images
from flexpool_jax.data.dataset import Arrays, Split, Superclasses
from flexpool_jax.data.images import Fit
from flexpool_jax.data.stored import ARRAYS_PREFIX, StoredImages, damaged
from flexpool_jax.errors import UserError, one_line

# Version of the cache. Increase it when other arrays are read from the same prepared files.
_FORMAT = 1
_CHUNK = 1000


def read_prepared(folder: Path, fit: Fit, max_bytes: float = math.inf) -> Arrays:
    """Reads a folder that TFDS prepared as ArrayRecord, or its cached arrays.

    Args:
        folder: The folder with dataset_info.json and the ArrayRecord files.
        fit: How the images are resized.
        max_bytes: Largest size of the images in memory. If they are larger, they are not read: the
            splits then hold `StoredImages`.

    Raises:
        UserError: The folder is damaged, or is not an image classification data set; its images
            differ in size and ``fit`` does not change it, or do not fit into memory.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        features = builder.info.features
        _check_features(features, folder)
        _check_class_names(builder.info, folder)
        names = _split_names(builder, folder)
        stored = _stored(builder, folder, names, fit)
        is_read = sum(split.nbytes for split in stored.values()) <= max_bytes
        arrays = _kept_or_read(builder, folder, names, stored, fit if is_read else None)
    except (UserError, ImportError):
        raise
    except MemoryError as error:
        raise UserError(
            f"{folder}: the images do not fit into memory ({one_line(error)}); allowed: "
            "--config.dataset.placement=stream, or a smaller --config.dataset.image_size"
        ) from error
    except Exception as error:
        # Readers of damaged records, metadata or images raise many types of exceptions.
        raise damaged(folder, error) from error
    superclasses, of_class = None, arrays["superclass_of_class"]
    if len(of_class):
        superclasses = Superclasses(tuple(features["coarse_label"].names), of_class)
    splits = {
        role: Split(arrays[f"{role}_images"] if is_read else stored[role], arrays[f"{role}_labels"])
        for role in names
    }
    return Arrays(splits, tuple(features["label"].names), superclasses, folder)


def _stored(builder: Any, folder: Path, names: dict[str, str], fit: Fit) -> dict[str, StoredImages]:
    """Returns the images of each split as `StoredImages`, which are not read yet."""
    import tensorflow_datasets as tfds

    # TFDS does not decode: Pillow is as fast, and several threads can decode with it.
    decoders = {"image": tfds.decode.SkipDecoding()}
    records = {
        role: builder.as_data_source(name, decoders=decoders) for role, name in names.items()
    }
    height, width, channels = builder.info.features["image"].shape
    if fit.size:
        height = width = fit.size
    elif not height or not width:  # Sizes may differ: all must then have the size of the first.
        height, width = images.decode(records["train"][0]["image"], channels).shape[:2]
    decode = functools.partial(images.decode, channels=channels, fit=fit)
    key = _key(folder, names, fit)
    return {
        role: StoredImages(
            records[role],
            np.arange(len(records[role])),
            decode,
            (height, width, channels),
            folder,
            f"{key} {name}",
        )
        for role, name in names.items()
    }


def _split_names(builder: Any, folder: Path) -> dict[str, str]:
    """Maps "train" and, if there is a test split, "test" to the data set's names of the splits.

    The validation split is used if there is no test split, or if the test split has no labels, as
    in ImageNet.
    """
    available = builder.info.splits
    if "train" not in available:
        raise UserError(
            f"{folder} has no training split; it has {', '.join(available) or 'none at all'}"
        )
    tests = [name for name in ("test", "validation") if name in available]
    if len(tests) == 2 and not _is_labelled(builder, "test"):
        tests.remove("test")
    return {"train": "train"} | ({"test": tests[0]} if tests else {})


def _is_labelled(builder: Any, split: str) -> bool:
    """Whether the first record of a split has a label; TFDS writes -1 where there is none."""
    import tensorflow_datasets as tfds

    records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return not len(records) or records[0]["label"] >= 0


def _check_features(features: Any, folder: Path) -> None:
    """Raises UserError unless each example has a uint8 image and one label."""
    import tensorflow_datasets as tfds

    has = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    if not isinstance(has.get("image"), tfds.features.Image) or not isinstance(
        has.get("label"), tfds.features.ClassLabel
    ):
        raise UserError(
            f"{folder} is not an image classification data set: it has the features "
            f"{', '.join(has) or 'none'}; needed: image and label"
        )
    image = has["image"]
    if image.np_dtype != np.uint8 or image.shape[-1] not in images.MODE_OF_CHANNELS:
        raise UserError(
            f"{folder} has images of {image.shape[-1]} channels, {np.dtype(image.np_dtype)}; "
            f"allowed: uint8 with {', '.join(map(str, images.MODE_OF_CHANNELS))}"
        )


def _check_class_names(info: Any, folder: Path) -> None:
    """Raises UserError if a file of class names is truncated or missing; TFDS does not notice."""
    for name in {"label", "coarse_label"} & set(info.features):
        path, feature = folder / f"{name}.labels.txt", info.features[name]
        # A data set that TFDS defines may have no class names; ours always have.
        if path.exists() or info.as_proto.module_name.startswith("flexpool_jax."):
            is_cut = not path.read_bytes().endswith(b"\n")
            if is_cut or len(feature.names) != feature.num_classes:
                raise damaged(folder, f"{path.name} is cut short")


def _kept_or_read(
    builder: Any,
    folder: Path,
    names: dict[str, str],
    stored: dict[str, StoredImages],
    fit: Fit | None,
) -> dict[str, np.ndarray]:
    """Reads the arrays "{train,test}_labels", "superclass_of_class" and "{train,test}_images".

    They are read from the cache if possible. The images are left out if ``fit`` is None.
    """
    kept_in = folder / f"{ARRAYS_PREFIX}{'labels' if fit is None else fit}.npz"
    key = _key(folder, names, fit)
    parts = ("labels",) if fit is None else ("images", "labels")
    wanted = [f"{role}_{part}" for role in names for part in parts]
    arrays = _read_kept(kept_in, key, [*wanted, "superclass_of_class"])
    # A damaged header may name a smaller shape. NumPy then reads only a part of the entry, and
    # zipfile compares the CRC-32 only at its end.
    shapes: dict[str, tuple[int, ...]] = {}
    for role, split in stored.items():
        shapes |= {f"{role}_images": split.shape, f"{role}_labels": split.shape[:1]}
    if arrays is None or any(arrays[name].shape != shapes[name] for name in wanted):
        arrays = _read_labels(builder, names, stored)
        if fit is not None:
            arrays |= {f"{role}_images": np.asarray(split) for role, split in stored.items()}
        # Not cached if the folder is read-only or the disk is full.
        with contextlib.suppress(OSError):
            _keep(kept_in, key, arrays)
    return arrays


def _key(folder: Path, split_names: dict[str, str], fit: Fit | None) -> str:
    """Returns a SHA-256 of the prepared files' names, sizes and times of change, and of ``fit``."""
    made = fit.size if fit is not None and not fit.crops else str(fit)
    stats = [
        (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
        for entry in sorted(folder.iterdir())
        if entry.is_file() and ARRAYS_PREFIX not in entry.name
    ]
    return hashlib.sha256(repr((_FORMAT, split_names, made, stats)).encode()).hexdigest()


def _read_kept(path: Path, key: str, names: Iterable[str]) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            return {name: file[name] for name in names}
    except Exception:  # NumPy raises many types of exceptions for damaged files.
        return None


def _keep(path: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    for leftover in path.parent.glob(f".{path.name}.*"):
        # The file of a killed process. If a process still writes it, that process does not cache.
        leftover.unlink()
    with files.writing_whole(path) as file:
        np.savez(file, key=np.array(key), **arrays)  # type: ignore[arg-type]
        # Readable for others who share the folder, whatever the umask.
        os.fchmod(file.fileno(), 0o664)


def _read_labels(
    builder: Any, names: dict[str, str], stored: dict[str, StoredImages]
) -> dict[str, np.ndarray]:
    """Returns the labels of each split, int32 [N], and the superclass of each class.

    The array "superclass_of_class" is int32 [num_classes], or empty if there are no superclasses.
    """
    num_classes = builder.info.features["label"].num_classes
    superclass_of_class = np.full(num_classes, -1, np.int32)
    arrays: dict[str, np.ndarray] = {}
    for role, name in names.items():
        records, count = stored[role].records, len(stored[role])
        if not count:
            raise UserError(f"{builder.data_path} has no images in its {name} split")
        labels, superclasses = np.empty(count, np.int32), np.empty(count, np.int32)
        for start in range(0, count, _CHUNK):
            chunk = range(start, min(start + _CHUNK, count))
            for index, record in zip(chunk, records.__getitems__(list(chunk)), strict=True):
                labels[index] = record["label"]
                superclasses[index] = record.get("coarse_label", -1)
        if labels.min() < 0 or labels.max() >= num_classes:
            reason = f"{name} has labels from {labels.min()} to {labels.max()}"
            raise damaged(builder.data_path, f"{reason}; allowed: 0 to {num_classes - 1}")
        arrays[f"{role}_labels"] = labels
        superclass_of_class[labels] = superclasses
    if superclass_of_class.min() < 0:
        superclass_of_class = superclass_of_class[:0]
    return arrays | {"superclass_of_class": superclass_of_class}
