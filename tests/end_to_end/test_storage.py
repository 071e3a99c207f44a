"""Disks that are full and folders that must not be written to: one line, and nothing saved is lost.

For root, whom no permission stops, commands are started without the privileges that make it so.
"""

import contextlib
import shutil
import subprocess

import pytest

from tests.end_to_end.conftest import SMALL


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own, of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder]
    if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(path):
    """Writes to a file until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def last_line(output):
    assert "Traceback" not in output, output
    return output.splitlines()[-1]


def test_an_evaluation_on_a_full_disk_is_printed_and_leaves_no_file(
    launch, finished_run, small_disk
):
    workdir = shutil.copytree(finished_run, small_disk / "run")
    fill(small_disk / "filling")
    output = launch.run(f"--workdir={workdir}", "--mode=eval")
    assert "step 33)" in output
    assert "evaluation.json: No space left on device" in output
    assert not list(workdir.glob("*evaluation*"))


def test_a_full_disk_under_the_data_folder_is_named_and_with_room_it_goes_on(launch, small_disk):
    arguments = (*SMALL, "--mode=prepare", f"--config.dataset.data_dir={small_disk}")
    fill(small_disk / "filling")
    process = launch.start(*arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{small_disk}" in last_line(output)
    assert "No space left on device" in last_line(output)
    (small_disk / "filling").unlink()
    assert "is prepared in" in launch.run(*arguments)


@pytest.mark.parametrize(
    ("forbidden", "mode", "arguments"),
    [
        ("", 0o000, ["--workdir={forbidden}/run"]),
        ("", 0o500, ["--workdir={forbidden}"]),
        ("data", 0o500, ["--config.dataset.data_dir={forbidden}", "--mode=prepare"]),
        ("run/config.json", 0o000, ["--workdir={tmp}/run"]),
        ("run/config.json", 0o000, ["--workdir={tmp}/run", "--mode=eval"]),
        ("run/.lock", 0o000, ["--workdir={tmp}/run"]),
        ("run/metrics.jsonl", 0o400, ["--workdir={tmp}/run", "--config.num_epochs=4"]),
        ("run/checkpoints", 0o000, ["--workdir={tmp}/run", "--config.num_epochs=4"]),
        ("run/checkpoints", 0o500, ["--workdir={tmp}/run", "--config.num_epochs=4"]),
        ("run/checkpoints", 0o000, ["--workdir={tmp}/run", "--mode=eval"]),
    ],
)
def test_what_may_not_be_read_or_written_is_named_in_one_line(
    launch, finished_run, tmp_path, unprivileged, forbidden, mode, arguments
):
    if forbidden.startswith("run"):
        shutil.copytree(finished_run, tmp_path / "run")
    path = tmp_path / forbidden
    if forbidden == "data":
        path.mkdir()
    old_mode = path.stat().st_mode
    path.chmod(mode)
    names = {"forbidden": path, "tmp": tmp_path}
    config = () if forbidden.startswith("run") else SMALL
    output = launch.run(
        *config, *(a.format(**names) for a in arguments), before=unprivileged, status=2
    )
    path.chmod(old_mode)
    assert str(path) in last_line(output)
