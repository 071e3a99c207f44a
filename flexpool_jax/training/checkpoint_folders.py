"""The folders of a workdir's checkpoints, beneath Orbax: damaged ones, and those being replaced.

Whatever is in the way is moved, never deleted: `DAMAGED_FOLDER` keeps it for whoever wants to look.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

from absl import logging

from flexpool_jax.errors import UserError

FOLDER = "checkpoints"
DAMAGED_FOLDER = "checkpoints_damaged"
SUPERSEDED_FOLDER = "checkpoints_superseded"


def check_folder(workdir: Path, *, read_only: bool) -> None:
    """Refuses what is no folder of checkpoints, or none to save to, before the work is done.

    Raises:
        UserError: it is a file, or a permission is missing.
    """
    folder = workdir / FOLDER
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder, so that no checkpoint can be there")
    if not os.access(folder, os.R_OK | os.X_OK | (0 if read_only else os.W_OK)):
        raise UserError(f"no permission to {'read' if read_only else 'write to'} {folder}")


def supersede(workdir: Path, step: int) -> None:
    """Makes way for saving a step again, keeping what it holds until the new one is whole."""
    (workdir / SUPERSEDED_FOLDER).mkdir(exist_ok=True)
    (workdir / FOLDER / str(step)).rename(workdir / SUPERSEDED_FOLDER / str(step))


def recover_superseded(workdir: Path) -> None:
    """Brings back a superseded step whose replacement was never finished, and drops the others."""
    for old in (workdir / SUPERSEDED_FOLDER).glob("*"):
        if (workdir / FOLDER / old.name).exists():
            shutil.rmtree(old)
        else:
            old.rename(workdir / FOLDER / old.name)


def set_aside(workdir: Path, step: int) -> None:
    """Moves a damaged step out of the way of the one that will be saved again, deleting nothing."""
    target = workdir / DAMAGED_FOLDER
    target.mkdir(exist_ok=True)
    number = 0
    while (target / f"{step}.{number}").exists():
        number += 1
    (workdir / FOLDER / str(step)).rename(target / f"{step}.{number}")


def set_aside_unreadable_metrics(workdir: Path) -> None:
    """Sets aside the steps whose accuracy is not what was saved with them.

    Orbax reads every step's metrics when it opens a folder, fails if it cannot, and decides by them
    which checkpoint is the best and which may be deleted.
    """
    for step, reason in steps_with_unreadable_metrics(workdir):
        logging.warning("Checkpoint step %s is damaged: %s.", step, reason)
        set_aside(workdir, step)


def steps_with_unreadable_metrics(workdir: Path) -> list[tuple[int, str]]:
    """The steps that Orbax would stumble over, or judge by a wrong accuracy, and why."""
    damaged = []
    for path in (workdir / FOLDER).glob("*/metrics/metrics"):
        folder = path.parents[1]
        if not folder.name.isdigit():
            continue
        try:
            accuracy = json.loads(path.read_bytes())["accuracy"]
            readable = isinstance(accuracy, int | float) and math.isfinite(accuracy)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            readable = False
        if not readable:
            damaged.append((int(folder.name), "its metrics cannot be read"))
        elif accuracy != _saved_accuracy(folder, accuracy):
            damaged.append((int(folder.name), "its accuracy is not what was saved"))
    return sorted(damaged)


def _saved_accuracy(folder: Path, accuracy: float) -> float | None:
    """The accuracy that the progress beside holds; the given one if that cannot be read."""
    try:
        return json.loads((folder / "progress" / "metadata").read_bytes())["accuracy"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return accuracy  # What is wrong with the progress is found when it is restored.
