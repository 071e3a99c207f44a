"""`npz`: images and labels in a .npz file, as `numpy.savez` writes it, which is never prepared."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flexpool_jax.data.arrays import check_arrays
from flexpool_jax.data.dataset import Arrays
from flexpool_jax.data.images import Fit
from flexpool_jax.errors import UserError, one_line

_NAMES = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}


def open_npz(raw_dir: Path | None, fit: Fit) -> Arrays:
    """Reads x_train, y_train, x_test, y_test and, if present, class_names from a .npz file.

    Args:
        raw_dir: The .npz file.
        fit: How the images are resized.

    Raises:
        UserError: The file is missing or damaged, holds Python objects or lacks an array, or an
            array has a wrong dtype, shape or value.
    """
    raw_dir = check_file(raw_dir)
    wanted = [name for pair in _NAMES.values() for name in pair]
    found: dict[str, np.ndarray] = {}
    reading = "it"
    try:
        with np.load(raw_dir, allow_pickle=False) as file:
            missing = [name for name in wanted if name not in file]
            if missing:
                # Names are shown with repr, because those of a damaged archive may hold any bytes.
                has = ", ".join(map(repr, file))[:200] or "nothing"
                raise UserError(
                    f"{raw_dir} has no {missing[0]}; needed: {', '.join(wanted)}; it has {has}"
                )
            for reading in (*wanted, *({"class_names"} & set(file))):
                found[reading] = file[reading]
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(
            f"{raw_dir}: {reading} does not fit into memory ({one_line(error)}); allowed: smaller "
            "arrays, or the images as files (configs/image_folder.py)"
        ) from error
    except Exception as error:  # NumPy raises many types of exceptions for damaged files.
        raise UserError(
            f"{raw_dir} is not a whole .npz file of plain arrays; cannot read {reading} "
            f"({one_line(error)})"
        ) from error
    labels = found["y_train"]
    if "class_names" in found:
        class_names = found["class_names"].tolist()
    elif labels.size and np.issubdtype(labels.dtype, np.integer):
        highest = int(labels.max())
        if not 0 < highest < labels.size:
            raise UserError(
                f"{raw_dir} has {labels.size} labels y_train up to {highest} and no class_names; "
                "allowed: labels 0 to K - 1 of K classes, at least 2, or the names of the classes "
                "in class_names"
            )
        class_names = [str(label) for label in range(highest + 1)]
    else:
        class_names = []
    splits = {split: (found[x], found[y]) for split, (x, y) in _NAMES.items()}
    return check_arrays(str(raw_dir), splits, class_names, _NAMES).resize(fit)


def check_file(raw_dir: Path | None) -> Path:
    """Returns the path of the .npz file; raises UserError if it is None or not a file."""
    if raw_dir is None or not raw_dir.is_file():
        given = f"; there is no file {raw_dir}" if raw_dir else ""
        raise UserError(f"npz needs a file: --config.dataset.raw_dir=FILE.npz{given}")
    return raw_dir
