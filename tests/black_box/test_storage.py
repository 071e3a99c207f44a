"""Disks that are full, and files and folders that are in the way or must not be touched."""

import shutil
import subprocess

import pytest

from tests.black_box.conftest import (
    outcome,
    read_json,
    run_in_process,
    run_process,
)


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of some kilobytes, or changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(kilobytes):
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={kilobytes}k"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode:
            pytest.skip("may not mount a file system")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_the_run_and_with_room_it_continues(launcher, resnet_run, small_disk):
    # A checkpoint takes about 3.3 MB: the first fits, the second does not.
    workdir = small_disk(5000) / "run"
    command = launcher.resnet(f"--workdir={workdir}")
    status, output = run_process(*command)
    assert status == 1, output
    assert "No space left on device" in output.splitlines()[-1]
    assert str(workdir) in output.splitlines()[-1]
    assert "Traceback" not in output
    small_disk(50_000)
    done = run_in_process(*command)
    assert done.status == 0, done.output
    assert "step 22" in done.stderr
    assert outcome(workdir) == outcome(resnet_run)


def test_the_run_of_another_user_can_be_evaluated(resnet_copy, unprivileged):
    folders = [resnet_copy, *(path for path in resnet_copy.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    status, output = run_process(f"--workdir={resnet_copy}", "--mode=eval", before=unprivileged)
    for folder in folders:
        folder.chmod(0o700)
    assert status == 0, output
    assert f"{100 * outcome(resnet_copy)[0]:.2f} %" in output
    assert "evaluation.json" in output


@pytest.mark.parametrize("workdir", ["{file}", "{file}/run", "s3://bucket/run", ""])
def test_a_workdir_that_cannot_be_a_folder_is_refused(launcher, refuses, tmp_path, workdir):
    (tmp_path / "file").write_text("")
    given = workdir.format(file=tmp_path / "file")
    refuses(*launcher.small(f"--workdir={given}"), words=["--workdir"])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_file_in_the_place_of_the_checkpoints_is_named(resnet_copy, mode):
    shutil.rmtree(resnet_copy / "checkpoints")
    (resnet_copy / "checkpoints").write_text("")
    done = run_in_process(f"--workdir={resnet_copy}", f"--mode={mode}")
    assert done.status == 2
    assert "checkpoint" in done.last_line
    assert "Traceback" not in done.stderr


def test_a_file_in_the_place_of_the_data_folder_is_named(launcher, refuses, tmp_path):
    (tmp_path / "file").write_text("")
    refuses(
        *launcher.small(f"--workdir={tmp_path}/run", f"--config.dataset.data_dir={tmp_path}/file"),
        words=[tmp_path / "file"],
    )


def test_a_tilde_is_the_home_folder(launcher, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    done = run_in_process(*launcher.small("--workdir=~/run"))
    assert done.status == 0, done.output
    assert read_json(tmp_path / "run/result.json")["epochs"] == 3
