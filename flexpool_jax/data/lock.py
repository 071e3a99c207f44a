"""One process at a time prepares a data set."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock

from flexpool_jax.lock import acquire

_DANGER = "preparing the same data set"


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Holds a lock, waiting for it if need be, and removes its file at the end.

    Raises:
        OSError: The file cannot be made.
    """
    try:
        lock = acquire(path, _DANGER)
    except filelock.Timeout:
        print(
            f"waiting for another process that prepares the same data set ({path})",
            file=sys.stderr,
            flush=True,
        )
        lock = acquire(path, _DANGER, wait=True)
    try:
        yield
    finally:
        # Removed while it is still held: filelock notices, and nobody else's lock is removed.
        path.unlink(missing_ok=True)
        lock.release()
