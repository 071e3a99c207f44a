"""One process a workdir, with real processes."""

import errno
import os
import subprocess
import sys

import filelock
import pytest

from flexpool_jax.errors import UserError
from flexpool_jax.training.lock import hold_workdir

HOLD = """
import sys
from pathlib import Path
from flexpool_jax.training.lock import hold_workdir
with hold_workdir(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the workdir."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_workdir_in_use_is_refused_and_the_holder_named(holder, tmp_path):
    with (
        pytest.raises(UserError, match=rf"in use by another process \(pid {holder.pid} on "),
        hold_workdir(tmp_path),
    ):
        pass


def test_the_lock_of_a_killed_process_is_not_in_the_way(holder, tmp_path):
    holder.kill()
    holder.wait()
    with hold_workdir(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")


def test_a_workdir_can_be_held_again(tmp_path):
    for _ in range(2):
        with hold_workdir(tmp_path / "new"):
            pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_the_run_continues_and_says_so(tmp_path, monkeypatch, capsys, number):
    def fail(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fail)
    with hold_workdir(tmp_path):
        pass
    assert "file system without locks" in capsys.readouterr().err


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run"), hold_workdir(tmp_path / "file" / "run"):
        pass


def test_a_full_disk_is_not_a_mistake_of_the_user(tmp_path, monkeypatch):
    def fail(lock, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    with pytest.raises(OSError, match="No space") as caught, hold_workdir(tmp_path):
        pass
    assert not isinstance(caught.value, UserError)
