"""Reading a prepared folder into arrays, and keeping the decoded arrays beside it.

Decoding the images takes seconds; reading the arrays again does not. They are kept in one
uncompressed .npz file in the prepared folder, whose entries carry a CRC-32 and which is put in
place by a rename, so a torn, truncated or damaged file is noticed and made anew. It is only taken
if it was made from the very files that lie there now, by name, size and time of change.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flexpool_jax.data import images
from flexpool_jax.data.dataset import Split
from flexpool_jax.errors import UserError

# Raise it when the same prepared files give other arrays.
_FORMAT = 1
_CHUNK = 1000
_ARRAYS_PREFIX = "decoded_"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The contents of a prepared folder.

    Attributes:
        splits: "train" and, where the data set has one, "test".
        class_names: The name of each class.
        superclass_names: The name of each superclass; empty if there are none.
        superclass_of_class: int32 [num_classes], or empty.
    """

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    superclass_names: tuple[str, ...]
    superclass_of_class: np.ndarray


def read_prepared(folder: Path, size: int) -> Prepared:
    """Reads a folder that TFDS prepared as ArrayRecord, or the arrays kept from last time.

    Args:
        folder: Holds dataset_info.json and the ArrayRecord files.
        size: Side that images are resized to; 0 keeps them as they are stored.

    Raises:
        UserError: The folder is damaged, or is no image classification data set.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        _check_features(builder.info.features, folder)
        split_names = _split_names(builder.info.splits, folder)
        arrays = _kept_or_decoded(builder, folder, split_names, size)
    except UserError:
        raise
    except Exception as error:
        # Whatever a reader of damaged records, metadata or images may raise.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{folder} is damaged ({reason}); delete this folder, and it is prepared again"
        ) from error
    features = builder.info.features
    has_superclasses = len(arrays["superclass_of_class"]) > 0
    return Prepared(
        {role: Split(arrays[f"{role}_images"], arrays[f"{role}_labels"]) for role in split_names},
        tuple(features["label"].names),
        tuple(features["coarse_label"].names) if has_superclasses else (),
        arrays["superclass_of_class"],
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
            f"{folder} is no image classification data set: it has the features "
            f"{', '.join(has) or 'none'}; needed: image and label"
        )
    image = has["image"]
    if image.np_dtype != np.uint8 or image.shape[-1] not in images.MODE_OF_CHANNELS:
        raise UserError(
            f"{folder} has images of {image.shape[-1]} channels, {np.dtype(image.np_dtype)}; "
            f"allowed: uint8 with {', '.join(map(str, images.MODE_OF_CHANNELS))}"
        )


def _kept_or_decoded(
    builder: Any, folder: Path, split_names: dict[str, str], size: int
) -> dict[str, np.ndarray]:
    kept_in = folder / f"{_ARRAYS_PREFIX}{size or 'as_stored'}.npz"
    key = _key(folder, split_names, size)
    arrays = _read_kept(kept_in, key, split_names)
    if arrays is None:
        arrays = _decode(builder, split_names, size)
        # A data folder that others prepared may be read-only, and a disk full: then without.
        with contextlib.suppress(OSError):
            _keep(kept_in, key, arrays)
    return arrays


def _key(folder: Path, split_names: dict[str, str], size: int) -> str:
    """Identifies the prepared files as they lie there, and what is made of them."""
    stats = [
        (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
        for entry in sorted(folder.iterdir())
        if entry.is_file() and _ARRAYS_PREFIX not in entry.name
    ]
    return hashlib.sha256(repr((_FORMAT, split_names, size, stats)).encode()).hexdigest()


def _read_kept(path: Path, key: str, roles: Iterable[str]) -> dict[str, np.ndarray] | None:
    names = [f"{role}_{what}" for role in roles for what in ("images", "labels")]
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            return {name: file[name] for name in (*names, "superclass_of_class")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _keep(path: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes the arrays under another name, to the disk, and only then renames them."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink()  # Of a process that was killed here; a living one fails, and goes on.
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


def _decode(builder: Any, split_names: dict[str, str], size: int) -> dict[str, np.ndarray]:
    arrays = {}
    num_classes = builder.info.features["label"].num_classes
    superclass_of_class = np.full(num_classes, -1, np.int32)
    for role, name in split_names.items():
        arrays[f"{role}_images"], labels, superclasses = _read_examples(builder, name, size)
        if labels.min() < 0 or labels.max() >= num_classes:
            raise UserError(
                f"{builder.data_path} has labels from {labels.min()} to {labels.max()} in its "
                f"{name} split; allowed: 0 to {num_classes - 1}"
            )
        arrays[f"{role}_labels"] = labels
        if superclasses is not None:
            superclass_of_class[labels] = superclasses
    if superclass_of_class.min() < 0:
        superclass_of_class = superclass_of_class[:0]
    return arrays | {"superclass_of_class": superclass_of_class}


def _read_examples(
    builder: Any, split: str, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns a split's images uint8 [N, H, W, C], labels int32 [N] and superclasses."""
    import tensorflow_datasets as tfds

    # Without TFDS's decoding: Pillow's is as fast, and threads share the work.
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    if len(source) == 0:
        raise UserError(f"{builder.data_path} has no images in its {split} split")
    channels = builder.info.features["image"].shape[-1]
    decode = functools.partial(images.decode, channels=channels, size=size)
    labels = np.empty(len(source), np.int32)
    superclasses = np.empty(len(source), np.int32) if "coarse_label" in source[0] else None
    decoded: np.ndarray | None = None
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for start in range(0, len(source), _CHUNK):
            positions = range(start, min(start + _CHUNK, len(source)))
            examples = source.__getitems__(list(positions))
            labels[start : positions.stop] = [example["label"] for example in examples]
            if superclasses is not None:
                coarse = [example["coarse_label"] for example in examples]
                superclasses[start : positions.stop] = coarse
            chunk = pool.map(decode, [example["image"] for example in examples], chunksize=50)
            for position, image in zip(positions, chunk, strict=True):
                if decoded is None:
                    decoded = np.empty((len(source), *image.shape), np.uint8)
                if image.shape != decoded.shape[1:]:
                    raise UserError(
                        f"the images in {builder.data_path} differ in size ({image.shape} beside "
                        f"{decoded.shape[1:]}); set dataset.image_size"
                    )
                decoded[position] = image
    assert decoded is not None
    return decoded, labels, superclasses
