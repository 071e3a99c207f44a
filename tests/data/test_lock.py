import errno
import fcntl
import subprocess
import sys
import threading
import time

import pytest

from flexpool_jax.data.lock import hold_lock


def test_one_holder_at_a_time_though_each_removes_the_file(tmp_path):
    path = tmp_path / "lock"
    inside, most = 0, 0

    def work():
        nonlocal inside, most
        for _ in range(20):
            with hold_lock(path):
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
    with hold_lock(tmp_path / "lock"):
        pass


def test_one_process_waits_for_another_and_says_so(tmp_path, capfd):
    hold = (
        "import pathlib, sys, time\n"
        "from flexpool_jax.data.lock import hold_lock\n"
        "with hold_lock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(1)\n"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with hold_lock(tmp_path / "lock"):
            assert other.wait(timeout=0.5) == 0
    assert "waiting for another process that prepares the same data set" in capfd.readouterr().err
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_it_says_so_and_continues(code, tmp_path, monkeypatch, capsys):
    def flock(descriptor, operation):
        raise OSError(code, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with hold_lock(tmp_path / "lock"):
        inside = True
    assert inside
    error = capsys.readouterr().err
    assert f"{tmp_path} is on a file system without locks (no locks here)" in error
    assert len(error.splitlines()) == 1


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), hold_lock(tmp_path / "file" / "lock"):
        pass
