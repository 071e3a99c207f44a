"""Reading a prepared folder, and keeping beside it what was decoded.

Decoding the images takes seconds; reading the arrays again does not. They are kept in one
uncompressed .npz file in the prepared folder, whose entries carry a CRC-32 and which is put in
place by a rename, so that a torn, truncated or damaged file is noticed and made anew. It is only
taken if it was made from the very files that lie there now, by name, size and time of change. Of
images that would take too much memory only the labels are read and kept in this way.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import zipfile
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flexpool_jax import files
from flexpool_jax.data import images
from flexpool_jax.data.dataset import Arrays, Split, Superclasses
from flexpool_jax.data.images import Fit
from flexpool_jax.data.stored import ARRAYS_PREFIX, StoredImages, damaged
from flexpool_jax.errors import UserError

# Raise it when the same prepared files give other arrays.
_FORMAT = 1
_CHUNK = 1000


def read_prepared(folder: Path, fit: Fit, max_bytes: float = math.inf) -> Arrays:
    """Reads a folder that TFDS prepared as ArrayRecord, or the arrays kept from last time.

    Args:
        folder: Holds dataset_info.json and the ArrayRecord files.
        fit: The size to bring the images to.
        max_bytes: If the images would take more, they are not read into memory: the splits then
            hold `StoredImages`.

    Raises:
        UserError: The folder is damaged, or is not an image classification data set.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        features = builder.info.features
        _check_features(features, folder)
        _check_class_names(builder.info, folder)
        names = _split_names(builder.info.splits, folder)
        stored = _stored(builder, folder, names, fit)
        is_read = sum(split.nbytes for split in stored.values()) <= max_bytes
        arrays = _kept_or_read(builder, folder, names, stored, fit if is_read else None)
    except UserError:
        raise
    except Exception as error:
        # Whatever a reader of damaged records, metadata or images may raise.
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
    """The images of each split, not read yet."""
    import tensorflow_datasets as tfds

    # Undecoded: Pillow is as fast as TFDS, and threads share the work.
    decoders = {"image": tfds.decode.SkipDecoding()}
    records = {
        role: builder.as_data_source(name, decoders=decoders) for role, name in names.items()
    }
    height, width, channels = builder.info.features["image"].shape
    if fit.size:
        height = width = fit.size
    elif not height or not width:  # Where they may differ, all must be as the first one is.
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


def _split_names(available: Collection[str], folder: Path) -> dict[str, str]:
    """Returns what the data set calls the training split and, where there is one, the test split.

    Some sets, such as ImageNet, publish labels for a validation split only.
    """
    if "train" not in available:
        raise UserError(
            f"{folder} has no training split; it has {', '.join(available) or 'none at all'}"
        )
    test = [("test", name) for name in ("test", "validation") if name in available]
    return dict([("train", "train"), *test[:1]])


def _check_features(features: Any, folder: Path) -> None:
    """Refuses what is not an image and one label each."""
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
    """Refuses files of class names that are cut short or missing, which TFDS does not notice."""
    for name in {"label", "coarse_label"} & set(info.features):
        path, feature = folder / f"{name}.labels.txt", info.features[name]
        # A data set of TFDS's own need not name its classes.
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
    """Returns the labels, the superclasses and, unless ``fit`` is None, the images."""
    kept_in = folder / f"{ARRAYS_PREFIX}{'labels' if fit is None else fit}.npz"
    key = _key(folder, names, fit)
    parts = ("labels",) if fit is None else ("images", "labels")
    wanted = [f"{role}_{part}" for role in names for part in parts]
    arrays = _read_kept(kept_in, key, [*wanted, "superclass_of_class"])
    if arrays is None:
        arrays = _read_labels(builder, names, stored)
        if fit is not None:
            arrays |= {f"{role}_images": np.asarray(split) for role, split in stored.items()}
        # A data folder that others prepared may be read-only, and a disk full: then without.
        with contextlib.suppress(OSError):
            _keep(kept_in, key, arrays)
    return arrays


def _key(folder: Path, split_names: dict[str, str], fit: Fit | None) -> str:
    """Identifies the prepared files as they lie there, and what is made of them."""
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
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _keep(path: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink()  # Of a process that was killed; a living one fails, and does without.
    with files.writing_whole(path) as file:
        np.savez(file, key=np.array(key), **arrays)  # type: ignore[arg-type]


def _read_labels(
    builder: Any, names: dict[str, str], stored: dict[str, StoredImages]
) -> dict[str, np.ndarray]:
    """Returns each split's labels, int32 [N], and each class's superclass, if there are any."""
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
