"""One process a workdir."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from flexpool_jax.errors import UserError
from flexpool_jax.lock import acquire

LOCK_FILE = ".lock"


@contextlib.contextmanager
def hold_workdir(workdir: Path) -> Iterator[None]:
    """Creates the workdir and keeps other processes from training in it.

    Raises:
        UserError: another living process holds it, or it cannot be written to.
    """
    path = workdir / LOCK_FILE
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = acquire(path, "training in it")
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
