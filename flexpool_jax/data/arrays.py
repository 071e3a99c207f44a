"""Arrays of the user's own: an .npz file, or what a registered function returns.

They are loaded as they are and never prepared: there is nothing that another format would save.
"""

from __future__ import annotations

import functools
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flexpool_jax.data.dataset import Arrays, Split
from flexpool_jax.data.images import MODE_OF_CHANNELS, Fit
from flexpool_jax.errors import UserError

_NPZ_NAMES = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
_NAMES = {split: (f"the {split} images", f"the {split} labels") for split in _NPZ_NAMES}


def open_npz(raw_dir: Path | None, fit: Fit) -> Arrays:
    """Reads x_train, y_train, x_test, y_test and, where it is there, class_names from a .npz file.

    Args:
        raw_dir: The file.
        fit: The size to bring the images to.

    Raises:
        UserError: The file is missing or damaged, holds Python objects, or lacks an array; or an
            array is not what it has to be.
    """
    if raw_dir is None or not raw_dir.is_file():
        given = f"; there is no file {raw_dir}" if raw_dir else ""
        raise UserError(f"npz needs a .npz file in dataset.raw_dir{given}")
    wanted = [name for pair in _NPZ_NAMES.values() for name in pair]
    found: dict[str, np.ndarray] = {}
    reading = "it"
    try:
        with np.load(raw_dir, allow_pickle=False) as file:
            missing = [name for name in wanted if name not in file]
            if missing:
                # As literals: a damaged archive's names may hold anything.
                has = ", ".join(map(repr, file))[:200] or "nothing"
                raise UserError(
                    f"{raw_dir} has no {missing[0]}; needed: {', '.join(wanted)}; it has {has}"
                )
            for reading in (*wanted, *({"class_names"} & set(file))):
                found[reading] = file[reading]
    except UserError:
        raise
    except (
        OSError, ValueError, TypeError, AttributeError, EOFError, MemoryError, NotImplementedError,
        RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(
            f"{raw_dir} is not a whole .npz file of plain arrays; cannot read {reading} ({reason})"
        ) from error
    labels = found["y_train"]
    if "class_names" in found:
        class_names = found["class_names"].tolist()
    elif labels.size and np.issubdtype(labels.dtype, np.integer):
        # No more names than images, so that a label of a billion does not make a billion names.
        class_names = [str(label) for label in range(min(int(labels.max()) + 1, labels.size))]
    else:
        class_names = []
    splits = {split: (found[x], found[y]) for split, (x, y) in _NPZ_NAMES.items()}
    return _resized(_checked(str(raw_dir), splits, class_names, _NPZ_NAMES), fit)


def load_registered(name: str, load: Callable[[], Any], fit: Fit) -> Arrays:
    """Returns what a registered function gave when it was called first, resized.

    Raises:
        UserError: It returned something else than `registry.register_dataset` describes.
    """
    return _resized(_load_once(name, load), fit)


@functools.cache
def _load_once(name: str, load: Callable[[], Any]) -> Arrays:
    where, returned = f"data set {name!r}", load()
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise UserError(
            f"{where} must return a pair, the splits and the class names; got "
            f"{type(returned).__name__}"
        )
    return _checked(where, *returned, _NAMES)


def _checked(
    where: str, splits: Any, class_names: Any, array_names: Mapping[str, tuple[str, str]]
) -> Arrays:
    """Checks everything about the arrays that the rest of the program relies on."""
    if not isinstance(splits, Mapping) or set(splits) != {"train", "test"}:
        has = ", ".join(map(repr, splits)) if isinstance(splits, Mapping) else type(splits).__name__
        raise UserError(f"{where} must have the splits 'train' and 'test'; got {has or 'none'}")
    checked = {split: _checked_split(where, array_names[split], splits[split]) for split in splits}
    names = list(class_names) if isinstance(class_names, list | tuple) else class_names
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) and name.strip() for name in names)
        or len(set(names)) != len(names)
        or len(names) < 2
    ):
        shown = repr(class_names)[:80]
        raise UserError(
            f"{where} has the class names {shown}; allowed: a list of at least 2 different names"
        )
    for split, arrays in checked.items():
        low, high = arrays.labels.min(), arrays.labels.max()
        if low < 0 or high >= len(names):
            raise UserError(
                f"{where}: {array_names[split][1]} are from {low} to {high}; allowed: 0 to "
                f"{len(names) - 1}, indices of the {len(names)} class names"
            )
    shapes = {split: arrays.images.shape[1:] for split, arrays in checked.items()}
    if shapes["train"][-1] != shapes["test"][-1]:
        raise UserError(
            f"{where} has images of {shapes['train'][-1]} channels in train and "
            f"{shapes['test'][-1]} in test; allowed: the same number"
        )
    return Arrays(checked, tuple(names))


def _checked_split(where: str, array_names: tuple[str, str], split: Any) -> Split:
    x, y = array_names
    if not isinstance(split, tuple | list) or len(split) != 2:
        raise UserError(f"{where}: {x} must come in a pair with {y}; got {type(split).__name__}")
    pixels, labels = (np.asarray(array) for array in split)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 4
        or 0 in pixels.shape
        or pixels.shape[-1] not in MODE_OF_CHANNELS
    ):
        raise UserError(
            f"{where}: {x} are {pixels.dtype} {list(pixels.shape)}; allowed: uint8 [N, H, W, C] "
            "with C 1, 3 or 4, or uint8 [N, H, W], none of them 0"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != pixels.shape[:1]:
        raise UserError(
            f"{where}: {y} are {labels.dtype} {list(labels.shape)} for {len(pixels):,} images; "
            f"allowed: integers [{len(pixels)}]"
        )
    # Clipped, because a label beyond 32 bits must not become one that is allowed.
    return Split(pixels, labels.astype(np.int64).clip(-1, 2**31 - 1).astype(np.int32))


def _resized(arrays: Arrays, fit: Fit) -> Arrays:
    shapes = {split.images.shape[1:3] for split in arrays.splits.values()}
    if not fit.size and len(shapes) > 1:
        raise UserError(
            f"the images of train and test differ in size ({' and '.join(map(str, shapes))}); set "
            "dataset.image_size"
        )
    if not fit.size or shapes == {(fit.size, fit.size)}:
        return arrays
    resized = {name: split.resize(fit) for name, split in arrays.splits.items()}
    return Arrays(resized, arrays.class_names)
