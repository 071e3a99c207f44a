"""Runs that are killed or told to stop go on as if nothing had happened."""

import signal
import time

from tests.end_to_end.conftest import SMALL, assert_same_run


def wait_for(condition, process, seconds=120):
    """Waits until a condition holds or the process has ended."""
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


# Moments of a run, told by what stands in its workdir.
MOMENTS = {
    "while the first checkpoint is written": lambda workdir: any(
        "tmp" in path.name for path in workdir.glob("checkpoints/*")
    ),
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


def test_told_to_stop_while_it_compiles_it_leaves_at_once(launch, monkeypatch, tmp_path):
    # A folder of its own, so that no compiled program is at hand.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    process = launch.start(*SMALL, f"--workdir={tmp_path}/run")
    wait_for(lambda: (tmp_path / "run/checkpoints").exists(), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    # After the first step there would have been something to save.
    assert "told to stop with nothing to save" in output
