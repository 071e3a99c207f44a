"""Handles what Orbax does not: damaged folders, steps saved twice, and errors of the disk.

Damaged checkpoints are never deleted; they are moved to checkpoints_damaged/ for inspection.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging as absl_logging

from flexpool_jax import layout
from flexpool_jax.errors import UserError

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


# Parts of TensorStore's messages, for errors of the disk that Orbax does not raise as an OSError.
_ERRNO_OF_TEXT = {
    "RESOURCE_EXHAUSTED: Error writing": errno.ENOSPC,
    "PERMISSION_DENIED": errno.EACCES,
    **{os.strerror(n): n for n in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)},
}


def _checkpoints(workdir: Path) -> Path:
    return workdir / layout.CHECKPOINTS_FOLDER


def check_folder(workdir: Path, *, read_only: bool) -> None:
    """Checks that the folder of checkpoints, if it exists, is a folder and can be used.

    Raises:
        UserError: the path is not a folder, or the permission to read or write is missing.
    """
    folder = _checkpoints(workdir)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder, so that no checkpoint can be there")
    if not os.access(folder, os.R_OK | os.X_OK | (0 if read_only else os.W_OK)):
        raise UserError(f"no permission to {'read' if read_only else 'write to'} {folder}")


def supersede(workdir: Path, step: int) -> None:
    """Moves a checkpoint away so that its step can be saved again; see `recover_superseded`."""
    checkpoints, superseded = _checkpoints(workdir), workdir / layout.SUPERSEDED_FOLDER
    superseded.mkdir(exist_ok=True)
    (checkpoints / str(step)).rename(superseded / str(step))


def recover_superseded(workdir: Path) -> None:
    """Moves superseded checkpoints back if no newer one was completed; deletes the others."""
    checkpoints = _checkpoints(workdir)
    saved = [int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal()]
    for old in (workdir / layout.SUPERSEDED_FOLDER).glob("*"):
        if not old.name.isdecimal():  # Not a checkpoint, but for example .DS_Store.
            continue
        if max(saved, default=-1) >= int(old.name):
            shutil.rmtree(old)
        else:
            old.rename(checkpoints / old.name)


def set_aside(workdir: Path, step: int) -> None:
    """Moves a damaged checkpoint to checkpoints_damaged/, so that its step can be saved again."""
    target = workdir / layout.DAMAGED_FOLDER
    target.mkdir(exist_ok=True)
    number = 0
    while (target / f"{step}.{number}").exists():
        number += 1
    (_checkpoints(workdir) / str(step)).rename(target / f"{step}.{number}")


def steps_with_unreadable_metrics(workdir: Path) -> list[tuple[int, str]]:
    """Lists the steps whose metrics are unreadable or were altered, each with the reason.

    When Orbax opens a folder, it reads the metrics of every checkpoint, and fails if it cannot read
    them. From the metrics it decides which checkpoint is the best and which may be deleted.
    """
    damaged = []
    for path in _checkpoints(workdir).glob("*/metrics/metrics"):
        folder = path.parents[1]
        if not folder.name.isdigit():
            continue
        accuracy = _accuracy_in(path, None)
        if not isinstance(accuracy, int | float) or not math.isfinite(accuracy):
            damaged.append((int(folder.name), "its metrics cannot be read"))
        # If the progress cannot be read, restoring will report that.
        elif _accuracy_in(folder / "progress" / "metadata", accuracy) != accuracy:
            damaged.append((int(folder.name), "its accuracy is not what was saved"))
    return sorted(damaged)


def _accuracy_in(file: Path, default: float | None) -> Any:
    """The value of "accuracy" in a JSON file, which may be null; the default if it is damaged."""
    try:
        return json.loads(file.read_bytes())["accuracy"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return default


@contextlib.contextmanager
def naming_folder(folder: Path) -> Iterator[None]:
    """Turns an OSError or ValueError with a known error number into an OSError with the folder."""
    try:
        yield
    except (OSError, ValueError) as error:
        text = str(error)
        number = getattr(error, "errno", None)
        number = number or next((n for part, n in _ERRNO_OF_TEXT.items() if part in text), None)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(folder)) from error


@functools.cache
def suppress_repeated_messages() -> None:
    """Suppresses log messages about errors that are also raised."""
    absl_logging.get_absl_logger().addFilter(_is_news)
    logging.getLogger("asyncio").addFilter(_is_news)
    show = sys.unraisablehook

    def show_unless_loop_is_closed(unraisable: UnraisableHookArgs) -> None:
        # The error has closed the event loop, but each thread of TensorStore still reports to it.
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_unless_loop_is_closed


def _is_news(record: logging.LogRecord) -> bool:
    """A log filter: False for tracebacks of errors and for warnings about what was asked for.

    These are read-only folders, and checkpoints before the first evaluation.
    """
    if record.name == "asyncio":
        # If several reads fail, only the error of the first is raised.
        return "never retrieved" not in record.getMessage()
    if f"{os.sep}orbax{os.sep}" not in record.pathname:
        return True
    if record.levelno >= logging.ERROR:
        return not record.exc_info
    expected = ("read_only", "read only", "tracked_metric")
    return not any(part in str(record.msg) for part in expected)
