"""A lock that the operating system drops with the process that holds it."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import filelock

# What file systems without such locks answer: some mounts of Lustre and NFS.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def acquire(path: Path, danger: str, *, wait: bool = False) -> filelock.BaseFileLock:
    """Takes a lock; the caller releases it.

    On a file system without locks it says so and continues without one.

    Args:
        path: The lock's file; its folder exists.
        danger: What a second process could do without a lock, for that line.
        wait: Whether to wait for another process that holds it.

    Raises:
        filelock.Timeout: Another living process holds it.
        OSError: The file cannot be made.

    Example:
        >>> import tempfile
        >>> lock = acquire(Path(tempfile.mkdtemp(), "lock"), "writing to the same file")
        >>> lock.is_locked
        True
        >>> lock.release()
    """
    # The fallback, a lock that consists in the file's existence, would outlive a killed process.
    lock = filelock.FileLock(path, mode=0o644, fallback_to_soft=False)
    try:
        lock.acquire(blocking=wait)
    except OSError as error:
        if isinstance(error, filelock.Timeout) or error.errno not in _NO_LOCKS:
            raise
        print(
            f"{path.parent} is on a file system without locks ({error.strerror}): nothing keeps a "
            f"second process from {danger}",
            file=sys.stderr,
        )
    return lock
