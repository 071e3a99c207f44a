"""One process at a time: a lock that the operating system drops with the process that holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Holds a lock, waiting for it if need be, and removes its file at the end.

    Args:
        path: The lock's file. Its folder must exist.

    Raises:
        OSError: The file cannot be made.
    """
    descriptor = _acquire(path)
    try:
        yield
    finally:
        # Removed while it is still held, so that nobody's lock goes with it.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    told = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    print(
                        f"waiting for another process that prepares the same data set ({path})",
                        file=sys.stderr,
                        flush=True,
                    )
                    told = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_file_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Its holder removed the file meanwhile: this lock would keep nobody else out.
        os.close(descriptor)


def _is_file_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
