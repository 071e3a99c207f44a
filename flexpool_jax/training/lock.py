"""One process a workdir: a lock that the operating system drops with the process that holds it."""

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

# What file systems without such locks answer: some mounts of Lustre and NFS.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def hold_workdir(workdir: Path) -> Iterator[None]:
    """Creates the workdir and keeps other processes from training in it.

    On a file system without locks the run continues without one, and says so.

    Raises:
        UserError: another living process holds it, or it cannot be written to.
    """
    path = workdir / ".lock"
    # The fallback, a lock that consists in the file's existence, would outlive a killed process.
    lock = filelock.FileLock(path, mode=0o644, blocking=False, fallback_to_soft=False)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        holder = path.read_text(errors="replace").strip()
        raise UserError(
            f"--workdir={workdir} is in use by another process (pid {holder or 'unknown'}); wait "
            "for it, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        if error.errno not in _NO_LOCKS:
            raise UserError(f"--workdir={workdir}: {error.filename}: {error.strerror}") from error
        print(
            f"{workdir} is on a file system without locks ({error.strerror}): nothing keeps a "
            "second process from training in it",
            file=sys.stderr,
        )
    try:
        # For the message to a process that is refused; a full disk may keep it from being written.
        with contextlib.suppress(OSError):
            path.write_text(f"{os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()
