"""A run continues with the same command, however it ended, and ends as if nothing had happened."""

import shutil
import signal
import time

import pytest

from tests.black_box.conftest import (
    catches,
    metrics,
    outcome,
    read_json,
    run_in_process,
    saved_steps,
    start_process,
)

# Long enough to be caught in the middle, since each of its epochs is saved.
LONG = ("--config.num_epochs=40", "--config.checkpoint_every_epochs=4")


@pytest.fixture(scope="module")
def long_run(launcher, tmp_path_factory):
    """The workdir of a long run that nothing disturbed."""
    return launcher.train(tmp_path_factory.mktemp("long") / "run", *LONG)


def wait_for_lines(workdir, process, number, seconds=60):
    """Waits until metrics.jsonl has so many lines."""
    deadline = time.monotonic() + seconds
    path = workdir / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < number:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def start_and_wait(launcher, workdir, lines=6):
    command = launcher.small(*LONG, f"--workdir={workdir}", variant="flexpool,reg")
    process = start_process(*command)
    wait_for_lines(workdir, process, lines)
    return command, process


def end(process):
    """Waits for a process's end; returns its exit status and what it wrote."""
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in output
    return process.returncode, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_and_leaves_with_75(launcher, long_run, tmp_path, number):
    command, process = start_and_wait(launcher, tmp_path)
    process.send_signal(number)
    status, output = end(process)
    assert status == 75
    assert str(saved_steps(tmp_path)[-1]) in output.splitlines()[-1]
    assert not (tmp_path / "result.json").exists()
    done = run_in_process(*command)
    assert done.status == 0, done.output
    assert metrics(tmp_path, "test") == metrics(long_run, "test")
    assert outcome(tmp_path) == outcome(long_run)


def test_killed_it_ends_to_the_last_digit_as_if_it_had_not_been(launcher, long_run, tmp_path):
    command, process = start_and_wait(launcher, tmp_path, lines=13)
    process.send_signal(signal.SIGSTOP)
    refused = run_in_process(*command)  # One process a workdir, while the first lives.
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert refused.status == 2
    assert str(process.pid) in refused.last_line
    done = run_in_process(*command)
    assert done.status == 0, done.output
    assert metrics(tmp_path) == metrics(long_run)
    assert outcome(tmp_path) == outcome(long_run)


def test_a_second_interrupt_stops_at_once(launcher, tmp_path):
    _, process = start_and_wait(launcher, tmp_path, lines=1)
    process.send_signal(signal.SIGSTOP)  # Both are there when it looks.
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    assert process.returncode == 130


def test_the_latest_two_checkpoints_and_the_best_are_kept(long_run):
    accuracies = {line["step"]: line["accuracy"] for line in metrics(long_run, "test")}
    steps = saved_steps(long_run)
    assert {36 * 11, 40 * 11} <= set(steps)
    assert len(steps) <= 3
    assert max(accuracies.values()) in [accuracies[step] for step in steps]


def test_more_epochs_continue_a_finished_run(launcher, small_copy):
    before = metrics(small_copy)
    done = run_in_process(*launcher.small(f"--workdir={small_copy}", "--config.num_epochs=4"))
    assert done.status == 0, done.output
    assert "step 33" in done.stderr
    assert metrics(small_copy)[: len(before)] == before
    assert [line["step"] for line in metrics(small_copy, "test")] == [11, 22, 33, 44]
    assert read_json(small_copy / "config.json")["num_epochs"] == 4


def test_a_finished_run_is_not_run_again(launcher, small_copy):
    before = (small_copy / "result.json").read_bytes(), (small_copy / "metrics.jsonl").read_bytes()
    done = run_in_process(*launcher.small(f"--workdir={small_copy}"))
    assert done.status == 0
    assert "finished" in done.output
    after = (small_copy / "result.json").read_bytes(), (small_copy / "metrics.jsonl").read_bytes()
    assert after == before


def test_a_run_continues_with_its_workdir_alone(resnet_run, resnet_copy):
    # As a kill after the first epoch leaves it.
    shutil.rmtree(resnet_copy / "checkpoints" / "44")
    (resnet_copy / "result.json").unlink()
    done = run_in_process(f"--workdir={resnet_copy}")
    assert done.status == 0, done.output
    assert "step 22" in done.stderr
    assert metrics(resnet_copy) == metrics(resnet_run)
    assert outcome(resnet_copy) == outcome(resnet_run)


def test_a_run_continues_with_overrides_and_without_its_config(resnet_copy):
    shutil.rmtree(resnet_copy / "checkpoints" / "44")
    done = run_in_process(f"--workdir={resnet_copy}", "--config.log_every_steps=15")
    assert done.status == 0, done.output
    assert [line["step"] for line in metrics(resnet_copy, "train")] == [22, 30, 44]
    config = read_json(resnet_copy / "config.json")
    assert (config["log_every_steps"], config["learning_rate"]) == (15, 1e-3)


@pytest.mark.parametrize("override", ["seed=1", "pool=avg", "dataset.holdout=0.5"])
def test_what_makes_the_model_or_the_data_cannot_change(launcher, small_copy, refuses, override):
    command = launcher.small(f"--workdir={small_copy}", f"--config.{override}")
    if override.startswith("pool="):
        command.append("--config.pool_reg=0")
    name, _, value = override.partition("=")
    refuses(*command, words=[name, value])


def test_checkpoints_without_their_config_are_not_overwritten(launcher, small_copy, refuses):
    (small_copy / "config.json").unlink()
    refuses(*launcher.small(f"--workdir={small_copy}"), words=["config.json"])


def test_evaluation_and_preparation_can_be_stopped(launcher, resnet_copy, tmp_path):
    for command in (
        [f"--workdir={resnet_copy}", "--mode=eval", "--config.eval_batch_size=1"],
        [*launcher.resnet("--mode=prepare"), f"--config.dataset.data_dir={tmp_path / 'data'}"],
    ):
        process = start_process(*command)
        while not catches(process, signal.SIGTERM):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        status, _ = end(process)
        assert status == 75
