"""Several processes that train one run: the same numbers as one, and no hang when one is lost."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.end_to_end.conftest import ROOT, assert_same_run, read_metrics

EXIT_STOPPED = 75
# Where process 0 is gone, JAX may abort a process before it can choose its status.
ABORTED_OR_STOPPED = {EXIT_STOPPED, -signal.SIGABRT}


class Group:
    """The processes of one run, each with its output; process i is the i-th."""

    def __init__(self, commands, before=(), delay=0.0, **environment):
        self.processes = []
        for i, command in enumerate(commands):
            time.sleep(delay if i else 0)
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, *(before or ["launch.py"]), *command],
                    cwd=ROOT,
                    env={**os.environ, "PROCESS": str(i), **environment},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )

    def finish(self, seconds=300):
        """Waits for all; returns their exit statuses and their outputs."""
        outputs = []
        try:
            for process in self.processes:
                outputs.append(process.communicate(timeout=seconds)[0])
        finally:
            for process in self.processes:
                process.kill()
        return [process.returncode for process in self.processes], outputs


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def flags_of(count):
    """The flags that make each of ``count`` processes one of a run."""
    address = f"127.0.0.1:{free_port()}"
    return [
        (f"--coordinator_address={address}", f"--num_processes={count}", f"--process_id={i}")
        for i in range(count)
    ]


def start(count, *arguments, **environment):
    return Group([(*flags, *arguments) for flags in flags_of(count)], **environment)


def run(count, *arguments, **environment):
    """Runs a command in ``count`` processes to its end; returns what process 0 printed."""
    if count == 1:
        statuses, outputs = Group([arguments], **environment).finish()
    else:
        statuses, outputs = start(count, *arguments, **environment).finish()
    assert statuses == [0] * count, outputs
    for output in outputs[1:]:
        assert not re.sub(r"\[Gloo\].*\n", "", output)
    return outputs[0]


def said(output):
    """What the program itself said at its end."""
    return [line for line in output.splitlines() if line.startswith("launch.py: ")]


@pytest.mark.parametrize("placement", ["device", pytest.param("stream", marks=pytest.mark.slow)])
def test_two_processes_are_bit_by_bit_one_process_with_two_devices(
    placement, tiny_config, tmp_path
):
    command = (f"--config={tiny_config}", "--config.dropout_rate=0.2", "--config.augment.flip=True")
    one, two = tmp_path / "one", tmp_path / "two"
    devices = "--xla_force_host_platform_device_count=2"
    run(1, *command, f"--workdir={one}", XLA_FLAGS=devices)
    output = run(2, *command, f"--config.dataset.placement={placement}", f"--workdir={two}")
    assert "device: 2 x cpu (cpu) in 2 processes" in output
    assert_same_run(one, two)
    # Each of the 43 test images counts once, in batches of 12.
    found = np.load(two / "predictions.npz")
    accuracy = np.mean(found["labels"] == found["predictions"])
    assert read_metrics(two, "test")[-1]["accuracy"] == accuracy
    output = run(
        2,
        f"--config={tiny_config}",
        "--config.dropout_rate=0.2",
        "--config.augment.flip=True",
        f"--workdir={two}",
        "--mode=eval",
        delay=3,  # The second comes late.
    )
    assert f"test accuracy {100 * accuracy:.2f} %" in output
    assert "(43 images, step 20)" in output


@pytest.mark.slow
def test_one_two_and_four_processes_agree_and_continue_each_others_runs(tiny_config, tmp_path):
    command = (f"--config={tiny_config}", "--config.optimizer.name=sgd", "--config.num_epochs=1")
    curves = []
    for count in (1, 2, 4):
        workdir = tmp_path / str(count)
        run(count, *command, f"--workdir={workdir}")
        curves.append([line["loss"] for line in read_metrics(workdir, "train")])
    assert len(curves[0]) == 10
    np.testing.assert_allclose(curves[1:], [curves[0]] * 2, rtol=1e-5)
    ends = []
    for before, after in ((4, 1), (1, 2), (2, 4)):
        workdir = tmp_path / str(before)
        output = run(after, *command[:2], f"--workdir={workdir}")
        assert "resuming after step 10" in output
        ends.append([line["loss"] for line in read_metrics(workdir, "train")])
    assert len(ends[0]) == 20
    np.testing.assert_allclose(ends[1:], [ends[0]] * 2, rtol=1e-4)


@pytest.mark.slow
def test_a_run_that_is_past_its_superclasses_continues_with_the_classes(tiny_config, tmp_path):
    mapping = tmp_path / "mapping.json"
    mapping.write_text(json.dumps({"a": "vowel", "b": "consonant", "c": "consonant"}))
    command = (
        f"--config={tiny_config}",
        "--config.superclass.epochs=1",
        f"--config.superclass.mapping={mapping}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert "phase: 2 superclasses" in run(2, *command)
    output = run(2, *command, "--config.num_epochs=3")
    assert "superclasses" not in output
    assert json.loads((tmp_path / "run/result.json").read_text())["epochs"] == 3


def test_processes_that_were_not_started_alike_say_so_in_one_line(tiny_config, tmp_path):
    pairs = [
        (
            "--config.seed=1",
            f"--workdir={tmp_path / 'run'}",
            "process 1 .* config.seed is 1 \\(0\\)",
        ),
        ("--config.seed=0", f"--workdir={tmp_path / 'other'}", "--workdir=.*/other of process 1"),
    ]
    groups = []
    for seed, workdir, words in pairs:
        first, second = flags_of(2)
        same = (f"--config={tiny_config}", "--config.seed=0", f"--workdir={tmp_path / 'run'}")
        commands = [(*first, *same), (*second, *same[:1], seed, workdir)]
        group = Group(commands, delay=2)
        groups.append((group, words))
    for group, words in groups:
        statuses, outputs = group.finish()
        assert statuses == [2, 2], outputs
        for output in outputs:
            assert len(said(output)) == 1
            assert re.search(words, said(output)[0])
            assert "Traceback" not in output


# launch.py with fewer seconds than the hundreds that a cluster may need.
IMPATIENT = """\
import os, runpy, sys
from flexpool_jax.training import processes
processes.JOINING_SECONDS = int(os.environ.get("JOINING", 4))
processes.HEARTBEAT_SECONDS = 4
sys.argv[0] = "launch.py"
runpy.run_path("launch.py", run_name="__main__")
"""

# launch.py with a mistake, in one process, in what it does before the first step or at the 15th.
FAILING = """\
import os, runpy, sys
from flexpool_jax.training import metrics, setup
def failing(function, is_time):
    def call(*args, **named):
        if is_time(args) and os.environ["FAILS"] == os.environ["PROCESS"]:
            raise RuntimeError("a mistake in a program")
        return function(*args, **named)
    return call
if os.environ["WHEN"] == "start":
    setup.create_model = failing(setup.create_model, lambda args: True)
else:
    metrics.Meter.add = failing(metrics.Meter.add, lambda args: args[1] == 15)
sys.argv[0] = "launch.py"
runpy.run_path("launch.py", run_name="__main__")
"""


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_whose_peer_never_comes_leaves_in_time(index, tiny_config, tmp_path):
    command = (*flags_of(2)[index], f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}")
    statuses, outputs = Group([command], before=("-c", IMPATIENT)).finish()
    assert statuses == [EXIT_STOPPED]
    assert [
        "not all processes of this run were there within 4 s" in line for line in said(outputs[0])
    ] == [True]
    assert not (tmp_path / "run").exists()


def test_without_a_cluster_there_is_nothing_to_detect(tiny_config, tmp_path):
    command = ("--distributed", f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}")
    statuses, outputs = Group([command]).finish()
    assert statuses == [2]
    assert re.fullmatch("launch.py: --distributed: JAX cannot join .*\n", outputs[0])
    assert not (tmp_path / "run").exists()


def test_a_process_that_is_killed_before_the_first_step_is_missed(tiny_config, tmp_path):
    command = (f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}")
    group = start(2, *command, before=("-c", IMPATIENT), KILLED="1", JOINING="30")
    statuses, outputs = group.finish(120)
    assert statuses[1] == -signal.SIGKILL, outputs[1]
    assert statuses[0] in ABORTED_OR_STOPPED, outputs[0]


@pytest.mark.parametrize(
    ("index", "when"),
    [
        (1, "start"),
        pytest.param(0, "start", marks=pytest.mark.slow),
        (1, "training"),
        pytest.param(0, "training", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_fails_ends_the_others(index, when, tiny_config, tmp_path):
    command = (f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}")
    group = start(2, *command, before=("-c", FAILING), FAILS=str(index), WHEN=when)
    statuses, outputs = group.finish()
    assert statuses[index] == 1, outputs
    assert "RuntimeError: a mistake in a program" in outputs[index]
    allowed = {EXIT_STOPPED} if index or when == "start" else ABORTED_OR_STOPPED
    assert statuses[1 - index] in allowed, outputs
    if statuses[1 - index] == EXIT_STOPPED:
        (line,) = said(outputs[1 - index])
        words = f"process {index}: a mistake" if when == "start" else "another process"
        assert words in line
    if when == "training":
        assert [path.name for path in (tmp_path / "run").glob("checkpoints/*")] == ["10"]


LONG = "--config.num_epochs=24"


def wait_for_step(workdir, step, group):
    deadline = time.monotonic() + 300
    while not any(
        path.name.isdigit() and int(path.name) >= step for path in workdir.glob("checkpoints/*")
    ):
        assert [process.poll() for process in group.processes] == [None, None]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_whichever_process_is_lost_the_same_command_ends_as_if_none_had_been(tiny_config, tmp_path):
    command = (f"--config={tiny_config}", LONG)
    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "run"
    run(2, *command, f"--workdir={undisturbed}")
    faults = [
        (1, signal.SIGTERM, {EXIT_STOPPED}, {EXIT_STOPPED}),
        (1, signal.SIGKILL, {-signal.SIGKILL}, {EXIT_STOPPED}),
        (0, signal.SIGINT, {EXIT_STOPPED}, {EXIT_STOPPED}),
        (0, signal.SIGKILL, {-signal.SIGKILL}, ABORTED_OR_STOPPED),
    ]
    step = 0
    for index, number, own, others in faults:
        group = start(2, *command, f"--workdir={workdir}")
        wait_for_step(workdir, step + 10, group)
        group.processes[index].send_signal(number)
        sent = time.monotonic()
        statuses, outputs = group.finish()
        assert time.monotonic() - sent < 60
        assert statuses[index] in own, outputs
        assert statuses[1 - index] in others, outputs
        if statuses[1 - index] == EXIT_STOPPED:
            last = said(outputs[1 - index])
            assert len(last) == 1
            assert ("told to stop at step" if own == others else "another process") in last[0]
        step = max(int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())
        assert step < 240
    run(2, *command, f"--workdir={workdir}")
    assert_same_run(workdir, undisturbed)
