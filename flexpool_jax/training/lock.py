"""One process a workdir: a lock that the operating system drops with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from flexpool_jax.errors import UserError

# What file systems answer that have no such locks: some mounts of Lustre and NFS.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def hold_workdir(workdir: Path) -> Iterator[None]:
    """Creates the workdir and keeps other processes from training in it.

    On a file system without locks the run goes on without one, and says so.

    Raises:
        UserError: another living process holds it, or it cannot be written to.
    """
    path = workdir / ".lock"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"--workdir={workdir}: {error.filename}: {error.strerror}") from error
    try:
        _lock(descriptor, workdir)
        # Which process that is, for the one that is refused; on a full disk it stays unsaid.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, workdir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            logging.warning(
                "%s is on a file system without locks (%s): nothing keeps a second process from "
                "training in it.",
                workdir,
                error.strerror,
            )
            return
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        raise UserError(
            f"--workdir={workdir} is in use by another process (pid {holder or 'unknown'}); wait "
            "for it, or choose another folder"
        ) from None
