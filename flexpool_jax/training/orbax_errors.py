"""What Orbax and TensorStore make of an error of the disk, turned into one that says where."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import logging as absl_logging

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

# What TensorStore's messages begin with or contain, where Orbax hands on no OSError.
_ERRNO_OF_TEXT = {
    "RESOURCE_EXHAUSTED: Error writing": errno.ENOSPC,
    "PERMISSION_DENIED": errno.EACCES,
    **{os.strerror(n): n for n in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)},
}


@contextlib.contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Turns an error of the disk, of whatever class, into an OSError that names the folder."""
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
def say_once() -> None:
    """Keeps from standard error what is said there of an error that is raised as well."""
    absl_logging.get_absl_logger().addFilter(_is_news)
    logging.getLogger("asyncio").addFilter(_is_news)
    show = sys.unraisablehook

    def show_unless_loop_is_closed(unraisable: UnraisableHookArgs) -> None:
        # TensorStore's threads report to an event loop that has ended with the error, one by one.
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_unless_loop_is_closed


def _is_news(record: logging.LogRecord) -> bool:
    """Drops tracebacks of errors, and warnings that what is read-only is not written."""
    if record.name == "asyncio":
        # Of several reads that fail only the first one's error is raised.
        return "never retrieved" not in record.getMessage()
    if f"{os.sep}orbax{os.sep}" not in record.pathname:
        return True
    if record.levelno >= logging.ERROR:
        return not record.exc_info
    return "read_only" not in str(record.msg) and "read only" not in str(record.msg)
