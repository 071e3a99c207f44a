"""The files that a run writes, its first lines, and its progress line on a real terminal."""

import contextlib
import fcntl
import io
import json
import logging
import math
import os
import pty
import re
import struct
import sys
import termios
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from flexpool_jax.training import first_lines, reporting
from flexpool_jax.training.console import Progress, format_seconds
from flexpool_jax.training.reporting import MetricsWriter


def metrics_lines(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def write_steps(log, *steps):
    for step in steps:
        log.write(step=step, epoch=step / 10, split="train", loss=1 / step, accuracy=0.5)


def test_each_line_is_an_object_of_its_own_and_readable_at_once(tmp_path):
    with MetricsWriter(tmp_path / "new" / "workdir", tensorboard=False) as log:
        write_steps(log, 1, 2)
        # Before anything is closed: a run that is killed has its lines.
        lines = metrics_lines(tmp_path / "new" / "workdir")
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[1] == {"step": 2, "epoch": 0.2, "split": "train", "loss": 0.5, "accuracy": 0.5}


def test_values_that_json_lacks_become_null_and_array_scalars_numbers(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=True) as log:
        log.write(
            step=1,
            epoch=0.1,
            split="train",
            loss=math.nan,
            sac=-math.inf,
            images_per_second=None,
            accuracy=np.float32(0.25),
            regularizer=jnp.float32(2.0),
        )
    (line,) = metrics_lines(tmp_path)
    assert line["loss"] is line["sac"] is line["images_per_second"] is None
    assert line["accuracy"] == 0.25
    assert line["regularizer"] == 2.0


def test_resuming_cuts_off_what_was_written_after_the_checkpoint(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False, resume_bytes=0) as log:
        write_steps(log, 1, 2)
        position = log.position()
        write_steps(log, 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "epo')  # killed while it wrote
    with MetricsWriter(tmp_path, tensorboard=False, resume_bytes=position) as log:
        assert log.position() == position
        write_steps(log, 3, 4)
    assert [line["step"] for line in metrics_lines(tmp_path)] == [1, 2, 3, 4]


def test_position_is_the_length_of_the_file(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as log:
        assert log.position() == 0
        write_steps(log, 1, 2)
        assert log.position() == (tmp_path / "metrics.jsonl").stat().st_size > 0


@pytest.mark.parametrize(("resume_bytes", "kept"), [(None, [1, 2]), (10_000, [1, 2]), (0, [])])
def test_a_torn_last_line_is_dropped_whatever_the_position(tmp_path, resume_bytes, kept):
    with MetricsWriter(tmp_path, tensorboard=False) as log:
        write_steps(log, 1, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')
    with MetricsWriter(tmp_path, tensorboard=False, resume_bytes=resume_bytes) as log:
        write_steps(log, 9)
    assert [line["step"] for line in metrics_lines(tmp_path)] == [*kept, 9]


def tensorboard_events(workdir):
    """Reads event files as TFRecord lays them down: length, its checksum, data, its checksum."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda path: path.stat().st_ino):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            events.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return events


def test_tensorboard_gets_every_finite_value_under_its_split_without_tensorflow(tmp_path):
    with MetricsWriter(tmp_path) as log:
        write_steps(log, 1, 2)
        log.write(step=2, epoch=0.2, split="test", loss=math.nan, accuracy=0.75)
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in tensorboard_events(tmp_path)
        for value in event.summary.value
    }
    assert scalars == {
        ("train/loss", 1): 1.0,
        ("train/loss", 2): 0.5,
        ("train/accuracy", 1): 0.5,
        ("train/accuracy", 2): 0.5,
        ("test/accuracy", 2): 0.75,
    }
    assert "tensorflow" not in sys.modules


def test_what_precedes_a_checkpoint_is_in_tensorboards_file_before_it_is_closed(tmp_path):
    with MetricsWriter(tmp_path) as log:
        write_steps(log, 1, 2)
        log.position()
        events = tensorboard_events(tmp_path)
    assert {event.step for event in events if event.summary.value} == {1, 2}


def test_a_resumed_run_tells_tensorboard_from_where_to_forget_and_keeps_older_files(tmp_path):
    for first_step in (1, 3):
        # Twice within one second: neither file may take the other's place.
        with MetricsWriter(tmp_path, purge_step=first_step) as log:
            write_steps(log, first_step, first_step + 1)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    events = tensorboard_events(tmp_path)
    starts = {event.step for event in events if event.HasField("session_log")}
    assert starts == {1, 3}
    assert {event.step for event in events if event.summary.value} == {1, 2, 3, 4}


def test_without_tensorboard_there_are_no_event_files(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as log:
        write_steps(log, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_result_is_replaced_whole_and_read_back(tmp_path):
    assert reporting.read_result(tmp_path) is None
    reporting.write_result(tmp_path, accuracy=0.5, config={"weights": (0.1, 0.9)})
    reporting.write_result(tmp_path, accuracy=np.float32(0.75), loss=math.nan, device="cpu")
    assert reporting.read_result(tmp_path) == {"accuracy": 0.75, "loss": None, "device": "cpu"}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path):
    reporting.write_result(tmp_path, accuracy=0.5)
    with pytest.raises(TypeError):
        reporting.write_result(tmp_path, accuracy=object())
    assert reporting.read_result(tmp_path) == {"accuracy": 0.5}


@pytest.mark.parametrize("text", ["", '{"accuracy": 0.', "[1]", "\x00"])
def test_a_damaged_result_reads_as_none(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    assert reporting.read_result(tmp_path) is None


def test_versions_name_what_runs():
    versions = reporting.versions()
    assert versions["jax"] == jax.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "not installed" not in versions.values()


# --- the progress line ---


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def make_progress(clock, stream, **changes):
    options = {"total_steps": 40, "steps_per_epoch": 10, "batch_size": 100, **changes}
    return Progress(**options, stream=stream, clock=clock)


def advance(progress, clock, steps, seconds_per_step=1.0, loss=0.5, accuracy=0.25):
    for step in steps:
        clock.now += seconds_per_step
        progress.step(step, {"loss": loss, "accuracy": accuracy})


def test_compilation_is_kept_out_of_the_time_left():
    clock = Clock()
    progress = make_progress(clock, io.StringIO())
    advance(progress, clock, [1], seconds_per_step=300)
    assert progress.seconds_left() is None
    advance(progress, clock, [2, 3, 4])
    assert progress.seconds_left() == pytest.approx(36)


def test_after_a_resume_only_this_processs_steps_count():
    clock = Clock()
    progress = make_progress(clock, io.StringIO(), start_step=20)
    advance(progress, clock, [21], seconds_per_step=100)
    advance(progress, clock, [22, 23], seconds_per_step=2)
    assert progress.seconds_left() == pytest.approx(17 * 2)


def test_dispatches_of_many_steps_are_counted_by_their_steps():
    clock = Clock()
    progress = make_progress(clock, io.StringIO())
    advance(progress, clock, [10, 20], seconds_per_step=5)
    assert progress.seconds_left() == pytest.approx(20 * 0.5)


def test_evaluations_count_but_the_first_one_which_compiles():
    clock = Clock()
    progress = make_progress(clock, io.StringIO())
    advance(progress, clock, range(1, 11))
    clock.now += 60
    progress.evaluation(1, "test", {"loss": 1.0, "accuracy": 0.5})
    advance(progress, clock, range(11, 21))
    assert progress.seconds_left() == pytest.approx(20)
    clock.now += 5
    progress.evaluation(2, "test", {"loss": 1.0, "accuracy": 0.5})
    # Ten steps of a second and one evaluation of five: one and a half seconds a step.
    assert progress.seconds_left() == pytest.approx(20 * 1.5)


def test_plain_lines_come_once_an_epoch_and_after_a_while():
    clock, stream = Clock(), io.StringIO()
    with make_progress(clock, stream) as progress:
        advance(progress, clock, range(1, 21))
        progress.evaluation(2, "test", {"loss": 0.25, "accuracy": 0.9})
        advance(progress, clock, range(21, 24), seconds_per_step=40)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "compiling the first step",
        "epoch 1/4 | step 10/40 | loss 0.5 | accuracy 25.0 % | 100 images/s | 30 s left",
        "epoch 2/4 | step 20/40 | loss 0.5 | accuracy 25.0 % | 100 images/s | 20 s left",
        "epoch 2/4 | test accuracy 90.00 % | test loss 0.25",
        lines[4],
    ]
    assert lines[4].startswith("epoch 3/4 | step 22/40 |")


def test_loss_and_accuracy_are_means_over_the_epoch():
    clock, stream = Clock(), io.StringIO()
    progress = make_progress(clock, stream)
    advance(progress, clock, range(1, 11), loss=100.0)
    advance(progress, clock, range(11, 16), loss=1.0, accuracy=0.0)
    advance(progress, clock, range(16, 21), loss=2.0, accuracy=1.0)
    assert "step 20/40 | loss 1.5 | accuracy 50.0 %" in stream.getvalue().splitlines()[-1]


class Terminal:
    """A pseudo-terminal of a given width, and all that has been written to it."""

    def __init__(self, columns):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(slave, "w")
        self._text = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError):  # How Linux says that the other side has closed.
            while part := os.read(self._master, 4096):
                self._text += part

    def text(self):
        """Everything written, after closing the terminal."""
        self.stream.close()
        self._reader.join(timeout=10)
        os.close(self._master)
        return self._text.decode()

    def screen(self):
        """The lines that a person sees in the end."""
        lines, line, column = [], "", 0
        for token in re.findall(r"\r|\n|\x1b\[K|[^\r\n\x1b]+", self.text()):
            if token == "\r":
                column = 0
            elif token == "\n":
                lines.append(line)
                line = ""
            elif token == "\x1b[K":
                line = line[:column]
            else:
                line = line[:column] + token + line[column + len(token) :]
                column += len(token)
        return [*lines, line]


def test_a_terminal_shows_one_line_drawn_over_and_results_that_stay():
    clock, terminal = Clock(), Terminal(columns=100)
    with make_progress(clock, terminal.stream) as progress:
        advance(progress, clock, range(1, 11))
        progress.evaluation(1, "test", {"loss": 0.25, "accuracy": 0.9})
        advance(progress, clock, range(11, 16))
    assert terminal.screen() == [
        "epoch 1/4 | test accuracy 90.00 % | test loss 0.25",
        "epoch 2/4 | step 15/40 | loss 0.5 | accuracy 25.0 % | 100 images/s | 25 s left",
        "",
    ]


@pytest.mark.parametrize("columns", [1, 10, 30, 60, 79])
def test_a_narrow_terminal_gets_fewer_parts_and_no_wrapped_line(columns):
    clock, terminal = Clock(), Terminal(columns)
    with make_progress(clock, terminal.stream) as progress:
        advance(progress, clock, range(1, 6))
    drawn = re.split(r"[\r\n]+", terminal.text().replace("\x1b[K", ""))
    assert max(map(len, drawn)) < columns or columns == 1
    if columns >= 30:
        assert any(line.startswith("epoch 1/4 | step 5/40") for line in drawn)


def test_the_terminals_line_is_not_drawn_more_often_than_one_can_see():
    clock, terminal = Clock(), Terminal(columns=100)
    with make_progress(clock, terminal.stream, total_steps=1000, steps_per_epoch=1000) as progress:
        advance(progress, clock, range(1, 501), seconds_per_step=0.001)
    assert 3 <= terminal.text().count("\x1b[K") <= 8


def test_log_records_get_a_line_of_their_own():
    clock, terminal = Clock(), Terminal(columns=100)
    handler = logging.StreamHandler(terminal.stream)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with make_progress(clock, terminal.stream) as progress:
            advance(progress, clock, range(1, 6))
            logging.getLogger("another").error("something else happened")
            advance(progress, clock, range(6, 8))
        assert handler.filters == []
    finally:
        root.removeHandler(handler)
    screen = terminal.screen()
    assert screen[0] == "something else happened"
    assert screen[1].startswith("epoch 1/4 | step 7/40")


def test_training_outlives_its_terminal():
    clock = Clock()
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    progress = make_progress(clock, stream)
    os.close(reader)
    advance(progress, clock, range(1, 21))
    progress.evaluation(2, "test", {"loss": 0.25, "accuracy": 0.9})
    progress.close()
    assert progress.seconds_left() == pytest.approx(20)
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_durations_are_told_in_their_two_largest_units():
    assert format_seconds(59.4) == "59 s"
    assert format_seconds(59.6) == "1 min 00 s"
    assert format_seconds(3599.9) == "1 h 00 min"


# --- the first lines ---


def lines_of_a_run(**changes):
    return first_lines.first_lines(
        **{
            "versions": reporting.versions(),
            "dtype": "bfloat16",
            "model": "resnet20 with flexpool",
            "parameters": 273_818,
            "dataset": "digits",
            "image_shape": (32, 32, 1),
            "train_images": 1437,
            "test_images": 360,
            "batch_size": 64,
            "steps_per_epoch": 22,
            "total_steps": 264,
            **changes,
        }
    )


def test_first_lines_name_all_that_a_result_depends_on():
    text = "\n".join(lines_of_a_run())
    for part in [
        f"{len(jax.local_devices())} x {jax.devices()[0].device_kind}",
        "bfloat16",
        f"jax {jax.__version__}",
        "resnet20 with flexpool, 273,818 parameters",
        "1,437 training and 360 test images of 32x32x1",
        "12 epochs of 22 steps, 264 steps in all, 64 images a step",
    ]:
        assert part in text
    assert "resuming" not in text
    assert "resuming after step 44" in lines_of_a_run(start_step=44)


@pytest.fixture
def fake_nvidia_smi(tmp_path, monkeypatch):
    """Puts a program of that name first on the path, which answers as given."""

    def install(script):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


@pytest.mark.skipif(first_lines.nvidia_gpu_is_present(), reason="this machine has an NVIDIA GPU")
def test_a_gpu_that_jax_does_not_see_is_told(fake_nvidia_smi, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert first_lines.device_remarks("cpu") == []
    fake_nvidia_smi("echo 'GPU 0: NVIDIA H100 (UUID: 0)'")
    (remark,) = first_lines.device_remarks("cpu")
    assert "JAX runs on the CPU" in remark
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (remark,) = first_lines.device_remarks("cpu")
    assert "JAX_PLATFORMS=cpu" in remark
    assert "unset" in remark


@pytest.mark.skipif(first_lines.nvidia_gpu_is_present(), reason="this machine has an NVIDIA GPU")
@pytest.mark.parametrize("script", ["echo 'No devices were found'", "exit 9"])
def test_nvidia_smi_without_a_gpu_is_not_taken_for_one(fake_nvidia_smi, script):
    fake_nvidia_smi(script)
    assert not first_lines.nvidia_gpu_is_present()


def test_memory_preallocation_is_told_on_a_gpu_unless_it_has_been_decided(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    (remark,) = first_lines.device_remarks("gpu")
    assert "XLA_PYTHON_CLIENT_PREALLOCATE=false" in remark
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    assert first_lines.device_remarks("gpu") == []
