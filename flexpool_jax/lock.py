"""Locks that the operating system drops with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock

from flexpool_jax.errors import UserError

LOCK_FILE = ".lock"
# What file systems without such locks answer: some mounts of Lustre and NFS.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def hold(path: Path, danger: str, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock, and removes its file at the end.

    On a file system without locks it says so and continues without one.

    Args:
        path: The lock's file; its folder exists.
        danger: What a second process could do without a lock, for messages.
        wait: Whether to wait, and say so, while another process holds it.

    Raises:
        filelock.Timeout: Another living process holds it, and ``wait`` is False.
        OSError: The file cannot be made.

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
        lock = _acquire(path, danger)
    except filelock.Timeout:
        if not wait:
            raise
        waiting = f"waiting for another process, which is {danger} ({path})"
        print(waiting, file=sys.stderr, flush=True)
        lock = _acquire(path, danger, blocking=True)
    try:
        yield
    finally:
        # Removed while it is still held: filelock notices, and nobody else's lock is removed.
        path.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def hold_workdir(workdir: Path) -> Iterator[None]:
    """Creates the workdir and keeps other processes from training in it.

    The lock's file stays; it says which process holds or held it.

    Raises:
        UserError: Another living process holds it, or it cannot be written to.
        OSError: The disk is full.
    """
    path = workdir / LOCK_FILE
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
        # For the message to a process that is refused; a full disk may keep it from being written.
        with contextlib.suppress(OSError):
            path.write_text(f"{os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def _acquire(path: Path, danger: str, *, blocking: bool = False) -> filelock.BaseFileLock:
    # The fallback, a lock that consists in the file's existence, would outlive a killed process.
    lock = filelock.FileLock(path, mode=0o644, fallback_to_soft=False)
    try:
        lock.acquire(blocking=blocking)
    except OSError as error:
        if isinstance(error, filelock.Timeout) or error.errno not in _NO_LOCKS:
            raise
        print(
            f"{path.parent} is on a file system without locks ({error.strerror}): nothing keeps a "
            f"second process from {danger}",
            file=sys.stderr,
        )
    return lock
