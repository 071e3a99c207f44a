"""Runs that are killed or told to stop go on as if nothing had happened."""

import signal
import time

import pytest

from tests.end_to_end.conftest import SMALL, assert_same_run, read_metrics


def wait_for(condition, process, seconds=120):
    """Waits until a condition holds or the process has ended."""
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


# Moments of a run, told by what stands in its workdir.
MOMENTS = {
    "before the first step": lambda workdir: (workdir / "config.json").exists(),
    "in the first epoch": lambda workdir: (workdir / "checkpoints").exists(),
    "while the first checkpoint is written": lambda workdir: any(
        "tmp" in path.name for path in workdir.glob("checkpoints/*")
    ),
    "after the first checkpoint": lambda workdir: (workdir / "checkpoints" / "11").exists(),
    "in the last epoch": lambda workdir: (workdir / "checkpoints" / "22").exists(),
}


def test_killed_again_and_again_it_ends_bit_by_bit_as_if_it_had_not_been(
    launch, finished_run, tmp_path
):
    command = (*SMALL, f"--workdir={tmp_path}")
    for reached in MOMENTS.values():
        process = launch.start(*command)
        wait_for(lambda reached=reached: reached(tmp_path), process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    launch.run(*command)
    assert_same_run(tmp_path, finished_run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_and_leaves_with_status_75(launch, finished_run, tmp_path, number):
    command = (*SMALL, f"--workdir={tmp_path}")
    process = launch.start(*command)
    wait_for(lambda: (tmp_path / "checkpoints" / "11").exists(), process)
    time.sleep(0.2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75, output
    assert "Traceback" not in output
    step = int(output.split("saved at step ")[1].split()[0])
    assert 11 <= step < 33
    launch.run(*command)
    tests = [line for line in read_metrics(tmp_path) if line["split"] == "test"]
    assert tests == [line for line in read_metrics(finished_run) if line["split"] == "test"]


def test_told_to_stop_while_it_compiles_it_leaves_at_once(launch, finished_run, tmp_path):
    # A batch size that no other test uses, so that no compiled program is at hand.
    process = launch.start(*SMALL, "--config.batch_size=130", f"--workdir={tmp_path}")
    wait_for(lambda: (tmp_path / "checkpoints").exists(), process)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75, output
    assert time.monotonic() - started < 5


def test_a_second_process_is_refused_while_the_first_lives(launch, tmp_path):
    command = (*SMALL, f"--workdir={tmp_path}")
    first = launch.start(*command)
    wait_for(lambda: (tmp_path / "config.json").exists(), first)
    output = launch.run(*command, status=2)
    assert f"pid {first.pid}" in output
    first.kill()
    first.communicate()
    launch.run(*command, "--config.num_epochs=1")
