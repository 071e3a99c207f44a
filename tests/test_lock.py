"""Locks, with real processes."""

import errno
import os
import subprocess
import sys
import threading
import time

import filelock
import pytest

from flexpool_jax.errors import UserError
from flexpool_jax.lock import hold, hold_workdir

HOLD = """
import sys
from pathlib import Path
from flexpool_jax.lock import hold, hold_workdir
with {what}:
    print("held", flush=True)
    sys.stdin.read()
"""


def in_another_process(what, path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(what=what), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    return process


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the workdir."""
    process = in_another_process("hold_workdir(Path(sys.argv[1]))", tmp_path)
    yield process
    process.kill()
    process.communicate()


def test_one_holder_at_a_time_though_each_removes_the_file(tmp_path):
    path = tmp_path / "lock"
    inside, most = 0, 0

    def work():
        nonlocal inside, most
        for _ in range(20):
            with hold(path, "counting", wait=True):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not path.exists()


def test_a_file_left_by_a_killed_process_is_not_a_lock(tmp_path):
    (tmp_path / "lock").write_text("")
    with hold(tmp_path / "lock", "counting"):
        pass


def test_one_process_waits_for_another_if_it_is_to_and_says_so(tmp_path, capfd):
    path = tmp_path / "lock"
    with in_another_process("hold(Path(sys.argv[1]), 'counting')", path) as other:
        with pytest.raises(filelock.Timeout), hold(path, "counting"):
            pass
        released = threading.Event()

        def release():
            released.set()
            other.stdin.close()

        threading.Timer(0.5, release).start()
        with hold(path, "counting", wait=True):
            assert released.is_set()
        assert other.wait(timeout=60) == 0
    assert "waiting for another process, which is counting" in capfd.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_it_says_so_and_continues(tmp_path, monkeypatch, capsys, number):
    def fail(descriptor, operation):
        raise OSError(number, "no locks here")

    monkeypatch.setattr("fcntl.flock", fail)
    with hold_workdir(tmp_path):
        inside = True
    assert inside
    error = capsys.readouterr().err
    assert f"{tmp_path} is on a file system without locks (no locks here)" in error
    assert len(error.splitlines()) == 1


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), hold(tmp_path / "file" / "lock", "counting"):
        pass


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
