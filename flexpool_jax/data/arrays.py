"""The user's own arrays: loading those of a registered function, and checking any arrays.

Such arrays are used directly and never prepared, because another format would not save time.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flexpool_jax.data.dataset import Arrays, Dataset, Split
from flexpool_jax.data.images import MODE_OF_CHANNELS
from flexpool_jax.errors import UserError

_NAMES = {split: (f"the {split} images", f"the {split} labels") for split in ("train", "test")}


@functools.cache
def load_registered(name: str, load: Callable[[], Any]) -> Arrays:
    """Returns the arrays of a registered function, which is called only once.

    Raises:
        UserError: The function did not return what `registry.register_dataset` describes.
    """
    where, returned = f"data set {name!r}", load()
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise UserError(
            f"{where} must return a pair, the splits and the class names; got "
            f"{type(returned).__name__}"
        )
    return check_arrays(where, *returned, _NAMES)


def check_arrays(
    where: str,
    splits: Any,
    class_names: Any,
    array_names: Mapping[str, tuple[str, str]],
    *,
    any_channels: bool = False,
) -> Arrays:
    """Checks the types, shapes, labels and class names of arrays.

    Args:
        where: Name of the source of the arrays, for error messages.
        splits: Images and labels of each split, see `registry.register_dataset`.
        class_names: Names of the classes, see `registry.register_dataset`.
        array_names: Names of the images and of the labels of each split, for error messages.
        any_channels: Whether images may have other numbers of channels than 1, 3 and 4.

    Returns:
        The arrays, with images uint8 [N, H, W, C] and labels int32 [N].

    Raises:
        UserError: The splits, arrays or class names are not what `registry.register_dataset`
            describes.
    """
    if not isinstance(splits, Mapping) or set(splits) != {"train", "test"}:
        has = ", ".join(map(repr, splits)) if isinstance(splits, Mapping) else type(splits).__name__
        raise UserError(f"{where} must have the splits 'train' and 'test'; got {has or 'none'}")
    checked = {
        split: _checked_split(where, array_names[split], splits[split], any_channels)
        for split in splits
    }
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


def check_dataset(dataset: Dataset) -> Dataset:
    """Checks a data set that a program passes in place of the one that its config names.

    Returns:
        The data set, with labels int32 [N], and float32 mean and std.

    Raises:
        UserError: an array has a wrong dtype or shape, or a label is not the index of a class.
    """
    where = f"data set {dataset.name!r}"
    splits = {"train": dataset.train, "test": dataset.test}
    # Stored images were checked when they were prepared; reading all of them would take long.
    if all(isinstance(split.images, np.ndarray) for split in splits.values()):
        pairs = {name: (split.images, split.labels) for name, split in splits.items()}
        arrays = check_arrays(where, pairs, dataset.class_names, _NAMES, any_channels=True)
        train, test = arrays.splits["train"], arrays.splits["test"]
        dataset = dataclasses.replace(
            dataset, train=train, test=test, class_names=arrays.class_names
        )
    channels = dataset.image_shape[-1]
    for name, array, least in (("mean", dataset.mean, -math.inf), ("std", dataset.std, 0)):
        numbers = np.asarray(array)
        is_float = np.issubdtype(numbers.dtype, np.floating) and numbers.shape == (channels,)
        if not is_float or not np.isfinite(numbers).all() or not (numbers > least).all():
            allowed = f"{channels} finite floats" + " above 0" * (name == "std")
            raise UserError(f"{where}: {name} is {array!r}; allowed: {allowed}")
    mean, std = (np.asarray(array, np.float32) for array in (dataset.mean, dataset.std))
    return dataclasses.replace(dataset, mean=mean, std=std)


def _checked_split(
    where: str, array_names: tuple[str, str], split: Any, any_channels: bool
) -> Split:
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
        or (pixels.shape[-1] not in MODE_OF_CHANNELS and not any_channels)
    ):
        channels = "" if any_channels else " with C 1, 3 or 4"
        raise UserError(
            f"{where}: {x} are {pixels.dtype} {list(pixels.shape)}; allowed: uint8 "
            f"[N, H, W, C]{channels}, or uint8 [N, H, W], none of them 0"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != pixels.shape[:1]:
        raise UserError(
            f"{where}: {y} are {labels.dtype} {list(labels.shape)} for {len(pixels):,} images; "
            f"allowed: integers [{len(pixels)}]"
        )
    # Clipped, because a label that does not fit into 32 bits must not wrap around to a valid label.
    return Split(pixels, labels.astype(np.int64).clip(-1, 2**31 - 1).astype(np.int32))
