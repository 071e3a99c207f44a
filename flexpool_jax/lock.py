"""File locks that the operating system releases when the process that holds them ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock

from flexpool_jax import layout
from flexpool_jax.errors import UserError

# Errors from file systems without such locks, such as some mounts of Lustre and NFS.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def hold(path: Path, activity: str, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock, and removes the lock's file at the end.

    On a file system without locks, prints a message and continues without a lock.

    Args:
        path: Path of the lock's file, in an existing folder.
        activity: Activity that the lock protects, for messages, such as "writing to the same file".
        wait: Whether to print a message and wait while another process holds the lock.

    Raises:
        filelock.Timeout: Another living process holds the lock, and ``wait`` is False.
        OSError: The lock's file cannot be created.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "lock")
        >>> with hold(path, "writing to the same file"):
        ...     path.exists()
        True
        >>> path.exists()
        False
    """
    try:
        lock = _acquire(path, activity)
    except filelock.Timeout:
        if not wait:
            raise
        waiting = f"waiting for another process, which is {activity} ({path})"
        print(waiting, file=sys.stderr, flush=True)
        lock = _acquire(path, activity, blocking=True)
    try:
        yield
    finally:
        # The file is removed while the lock is still held, so that another process's lock is never
        # removed. filelock notices in a waiting process that the file is gone, and tries again.
        path.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def hold_workdir(workdir: Path) -> Iterator[None]:
    """Creates the workdir and keeps other processes from training in it.

    The lock's file stays afterwards; it names the process that holds or held the lock.

    Raises:
        UserError: Another living process holds the lock, or the workdir cannot be written to.
        OSError: The disk is full.
    """
    path = workdir / layout.LOCK_FILE
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path, "training in it")
    except filelock.Timeout:
        holder = path.read_text(errors="replace").strip()
        raise UserError(
            f"--workdir={workdir} is in use by another process (pid {holder or 'unknown'}); wait "
            "for it, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"--workdir={workdir}: {error.filename}: {error.strerror}") from error
    try:
        # The text is for the message to a process that is refused. It is left out on a full disk.
        with contextlib.suppress(OSError):
            path.write_text(f"{os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def _acquire(path: Path, activity: str, *, blocking: bool = False) -> filelock.BaseFileLock:
    # filelock's fallback is held as long as the file exists, and would outlive a killed process.
    lock = filelock.FileLock(path, mode=0o644, fallback_to_soft=False)
    try:
        lock.acquire(blocking=blocking)
    except OSError as error:
        if isinstance(error, filelock.Timeout) or error.errno not in _NO_LOCKS:
            raise
        print(
            f"{path.parent} is on a file system without locks ({error.strerror}): nothing keeps a "
            f"second process from {activity}",
            file=sys.stderr,
        )
    return lock
