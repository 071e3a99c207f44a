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
import os
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flexpool_jax.data import images
from flexpool_jax.data.dataset import Arrays, Split, Superclasses
from flexpool_jax.data.images import Fit
from flexpool_jax.data.stored import ARRAYS_PREFIX, StoredImages
from flexpool_jax.errors import UserError

# Raise it when the same prepared files give other arrays.
_FORMAT = 1
_CHUNK = 1000
_NO_IMAGE = np.empty((0, 0, 0), np.uint8)


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
        split_names = _split_names(builder.info.splits, folder)
        shape = _image_shape(builder, fit)
        count = sum(builder.info.splits[name].num_examples for name in split_names.values())
        is_stored = count * math.prod(shape) > max_bytes
        arrays = _kept_or_decoded(builder, folder, split_names, None if is_stored else fit)
    except UserError:
        raise
    except Exception as error:
        # Whatever a reader of damaged records, metadata or images may raise.
        raise _damaged(
            folder, " ".join(str(error).split())[:200] or type(error).__name__
        ) from error
    superclasses, of_class = None, arrays["superclass_of_class"]
    if len(of_class):
        superclasses = Superclasses(tuple(features["coarse_label"].names), of_class)
    splits = {}
    for role, name in split_names.items():
        labels = arrays[f"{role}_labels"]
        if is_stored:
            key = f"{_key(folder, split_names, fit)} {name}"
            splits[role] = Split(_stored(builder, name, len(labels), shape, fit, key), labels)
        else:
            splits[role] = Split(arrays[f"{role}_images"], labels)
    return Arrays(splits, tuple(features["label"].names), superclasses, folder)


def _image_shape(builder: Any, fit: Fit) -> tuple[int, int, int]:
    """Height, width and channels of the images; those of the first one where they may differ."""
    height, width, channels = builder.info.features["image"].shape
    if fit.size:
        return fit.size, fit.size, channels
    if not height or not width:
        height, width = images.decode(_records(builder, "train")[0]["image"], channels).shape[:2]
    return height, width, channels


def _records(builder: Any, split: str) -> Any:
    """A split's records, undecoded: Pillow is as fast as TFDS, and threads share the work."""
    import tensorflow_datasets as tfds

    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def _stored(
    builder: Any, split: str, count: int, shape: tuple[int, int, int], fit: Fit, key: str
) -> StoredImages:
    decode = functools.partial(images.decode, channels=shape[2], fit=fit)
    positions = np.arange(count)
    return StoredImages(
        _records(builder, split), positions, decode, shape, Path(builder.data_path), key
    )


def _damaged(folder: Path, reason: str) -> UserError:
    return UserError(
        f"{folder} is damaged ({reason}); delete this folder, and it is prepared again"
    )


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
                raise _damaged(folder, f"{path.name} is cut short")


def _kept_or_decoded(
    builder: Any, folder: Path, split_names: dict[str, str], fit: Fit | None
) -> dict[str, np.ndarray]:
    """Returns the labels, the superclasses and, unless ``fit`` is None, the images."""
    kept_in = folder / f"{ARRAYS_PREFIX}{'labels' if fit is None else fit}.npz"
    key = _key(folder, split_names, fit)
    what = ("labels",) if fit is None else ("images", "labels")
    names = [f"{role}_{part}" for role in split_names for part in what]
    arrays = _read_kept(kept_in, key, [*names, "superclass_of_class"])
    if arrays is None:
        arrays = _decode(builder, split_names, fit)
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
    """Writes the arrays under another name, to the disk, and only then renames them."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink()  # Of a process that was killed; a living one fails, and does without.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
        try:
            np.savez(f, key=np.array(key), **arrays)  # type: ignore[arg-type]
            f.flush()
            os.fsync(f.fileno())
            Path(f.name).chmod(0o664)
            Path(f.name).replace(path)
        except BaseException:
            Path(f.name).unlink(missing_ok=True)
            raise


def _decode(builder: Any, split_names: dict[str, str], fit: Fit | None) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    num_classes = builder.info.features["label"].num_classes
    superclass_of_class = np.full(num_classes, -1, np.int32)
    for role, name in split_names.items():
        decoded, labels, superclasses = _read_examples(builder, name, fit)
        if labels.min() < 0 or labels.max() >= num_classes:
            reason = f"{name} has labels from {labels.min()} to {labels.max()}"
            raise _damaged(builder.data_path, f"{reason}; allowed: 0 to {num_classes - 1}")
        arrays[f"{role}_labels"] = labels
        if fit is not None:
            arrays[f"{role}_images"] = decoded
        superclass_of_class[labels] = superclasses
    if superclass_of_class.min() < 0:
        superclass_of_class = superclass_of_class[:0]
    return arrays | {"superclass_of_class": superclass_of_class}


def _read_examples(
    builder: Any, split: str, fit: Fit | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a split's images uint8 [N, H, W, C], labels int32 [N] and superclasses, -1 for none.

    Args:
        builder: Of the prepared folder.
        split: Its name.
        fit: The size of the images; None returns none of them.

    Raises:
        UserError: The images differ in size, or there are none.
    """
    source = _records(builder, split)
    channels = builder.info.features["image"].shape[-1]

    def records() -> Iterator[dict[str, Any]]:
        for start in range(0, len(source), _CHUNK):
            yield from source.__getitems__(list(range(start, min(start + _CHUNK, len(source)))))

    def decode(record: dict[str, Any]) -> tuple[np.ndarray, int, int]:
        image = _NO_IMAGE if fit is None else images.decode(record["image"], channels, fit)
        return image, record["label"], record.get("coarse_label", -1)

    labels, superclasses = np.empty(len(source), np.int32), np.empty(len(source), np.int32)
    decoded: np.ndarray | None = None
    for index, example in enumerate(images.map_in_threads(decode, records())):
        image, labels[index], superclasses[index] = example
        if decoded is None:
            decoded = np.empty((len(source), *image.shape), np.uint8)
        if image.shape != decoded.shape[1:]:
            raise UserError(
                f"the images in {builder.data_path} differ in size ({image.shape} beside "
                f"{decoded.shape[1:]}); set dataset.image_size"
            )
        decoded[index] = image
    if decoded is None:
        raise UserError(f"{builder.data_path} has no images in its {split} split")
    return decoded, labels, superclasses
