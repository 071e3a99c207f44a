"""One process at a time: a lock that the operating system drops with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock

# What file systems without such locks answer: some mounts of Lustre and NFS.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Holds a lock, waiting for it if need be, and removes its file at the end.

    On a file system without locks it says so and continues without one.

    Args:
        path: The lock's file.

    Raises:
        OSError: The file cannot be made.
    """
    # An existence lock, filelock's fallback, would outlive a killed process.
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        _acquire(lock)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _say(
            f"{path.parent} is on a file system without locks ({error.strerror}): nothing keeps a "
            "second process from preparing the same data set"
        )
    try:
        yield
    finally:
        # Removed while it is still held: filelock notices, and nobody else's lock is removed.
        path.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: filelock.BaseFileLock) -> None:
    with contextlib.suppress(filelock.Timeout):
        lock.acquire(blocking=False)
        return
    _say(f"waiting for another process that prepares the same data set ({lock.lock_file})")
    lock.acquire()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
