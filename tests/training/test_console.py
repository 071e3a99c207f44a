"""What a person sees: the progress on a real terminal and in a log, and the first lines."""

import contextlib
import fcntl
import io
import logging
import os
import pty
import re
import struct
import termios
import threading

import jax
import numpy as np
import pytest

from configs import digits
from flexpool_jax.data import Dataset, Split
from flexpool_jax.source import versions
from flexpool_jax.training import console
from flexpool_jax.training.console import ProgressBar
from flexpool_jax.training.metrics import Meter
from flexpool_jax.training.setup import set_up


class Training:
    """A run of 40 steps of 100 images in epochs of 10, as the loop reports it."""

    def __init__(self, clock, stream, start_step=0, total_steps=40, steps_per_epoch=10):
        self.clock, self.meter, self.steps_per_epoch = clock, Meter(100), steps_per_epoch
        self.bar = ProgressBar(total_steps, steps_per_epoch, start_step, stream)

    def advance(self, steps, seconds_per_step=1.0, loss=0.5, accuracy=0.25, dispatch=1):
        for step in steps:
            self.clock.now += seconds_per_step
            values = {"loss": loss, "accuracy": accuracy, "learning_rate": 0.1}
            self.meter.add(step, {name: np.full(dispatch, v) for name, v in values.items()})
            self.meter.wait()
            self.bar.show(self.meter)
            if step % self.steps_per_epoch == 0:
                self.meter.rows.clear()

    def evaluate(self, epoch, seconds=0.0):
        self.clock.now += seconds
        self.bar.evaluation(epoch, "test", {"loss": 0.25, "accuracy": 0.9}, seconds)
        self.meter.pause()


@pytest.fixture
def start(clock):
    """Starts runs, and closes their progress: tqdm makes room for a bar that is open."""
    started = []

    def start(*arguments, **fields):
        started.append(Training(clock, *arguments, **fields))
        return started[-1]

    yield start
    for training in started:
        training.bar.close()


def last_line(stream):
    return stream.getvalue().splitlines()[-1]


def test_compilation_is_kept_out_of_the_time_left(start):
    training = start(stream := io.StringIO())
    training.advance([1], seconds_per_step=300)
    assert last_line(stream).endswith("| ? left")
    training.advance(range(2, 11))
    assert last_line(stream).endswith("| 100 images/s | 00:30 left")


def test_after_a_resume_the_steps_of_this_process_alone_count(start):
    training = start(stream := io.StringIO(), start_step=20)
    training.advance([21], seconds_per_step=100)
    training.advance(range(22, 31), seconds_per_step=2)
    assert last_line(stream).endswith("| 00:20 left")


def test_dispatches_of_many_steps_are_counted_by_their_steps(start):
    training = start(stream := io.StringIO())
    training.advance([10, 20], seconds_per_step=5, dispatch=10)
    assert "step 20/40" in last_line(stream)
    assert last_line(stream).endswith("| 200 images/s | 00:10 left")


def test_evaluations_count_but_the_first_one_which_compiles(start):
    training = start(stream := io.StringIO())
    training.advance(range(1, 11))
    training.evaluate(1, seconds=60)
    training.advance(range(11, 21))
    assert last_line(stream).endswith("| 00:20 left")
    training.evaluate(2, seconds=29)
    training.advance(range(21, 31))
    # 29 steps of a second and one evaluation of 29: two seconds a step.
    assert last_line(stream).endswith("| 00:20 left")


def test_a_log_gets_whole_lines_once_an_epoch_and_once_a_minute(start):
    training = start(stream := io.StringIO())
    training.advance(range(1, 21))
    training.evaluate(2)
    training.advance(range(21, 24), seconds_per_step=40)
    training.bar.close()
    assert "\r" not in stream.getvalue()
    assert stream.getvalue().splitlines() == [
        "compiling the first step",
        "epoch 1/4 | step 1/40 | loss 0.5 | accuracy 25.0 % | ? left",
        "epoch 1/4 | step 10/40 | loss 0.5 | accuracy 25.0 % | 100 images/s | 00:30 left",
        "epoch 2/4 | step 20/40 | loss 0.5 | accuracy 25.0 % | 100 images/s | 00:20 left",
        "epoch 2/4 | test accuracy 90.00 % | test loss 0.25",
        "epoch 3/4 | step 22/40 | loss 0.5 | accuracy 25.0 % | 21 images/s | 01:24 left",
    ]


def test_loss_and_accuracy_are_means_since_the_last_line_of_the_log(start):
    training = start(stream := io.StringIO())
    training.advance(range(1, 11), loss=100.0)
    training.advance(range(11, 16), loss=1.0, accuracy=0.0)
    training.advance(range(16, 21), loss=2.0, accuracy=1.0)
    assert "step 20/40 | loss 1.5 | accuracy 50.0 %" in last_line(stream)


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


def test_a_terminal_shows_one_line_drawn_over_and_results_that_stay(start):
    terminal = Terminal(columns=120)
    training = start(terminal.stream)
    training.advance(range(1, 11))
    training.evaluate(1)
    training.advance(range(11, 16))
    training.bar.close()
    screen = [line.rstrip() for line in terminal.screen()]
    assert screen[:2] == [
        "compiling the first step",
        "epoch 1/4 | test accuracy 90.00 % | test loss 0.25",
    ]
    assert screen[2].startswith(
        "epoch 2/4 | step 15/40 | loss 0.5 | accuracy 25.0 % | 100 images/s | 00:25 left |"
    )
    assert screen[3:] == [""]


@pytest.mark.parametrize("columns", [10, 30, 60, 79])
def test_a_narrow_terminal_gets_no_wrapped_line(start, columns):
    terminal = Terminal(columns)
    training = start(terminal.stream)
    training.advance(range(1, 6))
    training.bar.close()
    drawn = re.split(r"[\r\n]+", terminal.text())[1:]
    assert max(map(len, drawn)) <= columns
    if columns >= 30:
        assert any(line.startswith("epoch 1/4 | step 5/40") for line in drawn)


def test_the_line_of_a_terminal_is_not_drawn_more_often_than_one_can_see(start):
    terminal = Terminal(columns=100)
    training = start(terminal.stream, total_steps=1000, steps_per_epoch=1000)
    training.advance(range(1, 501), seconds_per_step=0.001)
    training.bar.close()
    assert 3 <= terminal.text().count("\repoch") <= 8


def test_log_records_get_a_line_of_their_own(start):
    terminal = Terminal(columns=120)
    handler = logging.StreamHandler(terminal.stream)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        training = start(terminal.stream)
        training.advance(range(1, 6))
        logging.getLogger("another").error("something else happened")
        training.advance(range(6, 8))
        training.bar.close()
        assert handler.filters == []
    finally:
        root.removeHandler(handler)
    screen = [line.rstrip() for line in terminal.screen()]
    assert screen[1] == "something else happened"
    assert screen[2].startswith("epoch 1/4 | step 7/40")


def test_training_outlives_its_terminal(start):
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    training = start(stream)
    os.close(reader)
    training.advance(range(1, 21))
    training.evaluate(2)
    training.bar.close()
    assert training.meter.step == 20
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_training_outlives_a_stream_that_was_closed(start):
    stream = io.StringIO()
    training = start(stream)
    stream.close()
    training.advance(range(1, 21))
    training.evaluate(2)
    training.bar.close()
    assert training.meter.step == 20


def test_first_lines_name_all_that_a_result_depends_on():
    random = np.random.default_rng(0)

    def split(count):
        images = random.integers(0, 256, (count, 8, 8, 1), np.uint8)
        return Split(images, random.integers(0, 10, count).astype(np.int32))

    one = np.ones(1, np.float32)
    dataset = Dataset("digits", split(1437), split(360), tuple("0123456789"), one, one)
    config = digits.get_config("flexpool,sac")
    config.batch_size, config.dtype = 64, "bfloat16"
    setup = set_up(config, dataset)
    text = "\n".join(console.first_lines(setup, 0, 273_818))
    for part in [
        f"{len(jax.local_devices())} x {jax.devices()[0].device_kind}",
        "bfloat16",
        f"jax {jax.__version__}",
        f"python {versions()['python']}",
        "resnet20, flexpool pool with SAC, 273,818 parameters",
        "1,437 training and 360 test images of 8x8x1",
        f"{config.num_epochs} epochs of 22 steps, {setup.total_steps} steps in all, 64 images",
        "convolutions: XLA",
    ]:
        assert part in text
    assert "resuming" not in text
    config.num_epochs = 1
    assert "run: 1 epoch of 22 steps, 22 steps in all" in "\n".join(
        console.first_lines(set_up(config, dataset), 0, 273_818)
    )
    assert "resuming after step 44" in console.first_lines(setup, 44, 273_818)


@pytest.fixture
def fake_nvidia_smi(tmp_path, monkeypatch):
    """Puts a program of that name first on the path, which answers as given."""

    def install(script):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


@pytest.mark.skipif(console.nvidia_gpu_is_present(), reason="this machine has an NVIDIA GPU")
def test_a_gpu_that_jax_does_not_see_is_told(fake_nvidia_smi, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert console.device_remarks("cpu") == []
    fake_nvidia_smi("echo 'GPU 0: NVIDIA H100 (UUID: 0)'")
    (remark,) = console.device_remarks("cpu")
    assert "JAX runs on the CPU" in remark
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (remark,) = console.device_remarks("cpu")
    assert "JAX_PLATFORMS=cpu" in remark
    assert "unset" in remark


@pytest.mark.skipif(console.nvidia_gpu_is_present(), reason="this machine has an NVIDIA GPU")
@pytest.mark.parametrize("script", ["echo 'No devices were found'", "exit 9"])
def test_nvidia_smi_without_a_gpu_is_not_taken_for_one(fake_nvidia_smi, script):
    fake_nvidia_smi(script)
    assert not console.nvidia_gpu_is_present()


def test_memory_preallocation_is_told_on_a_gpu_unless_it_has_been_decided(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    (remark,) = console.device_remarks("gpu")
    assert "XLA_PYTHON_CLIENT_PREALLOCATE=false" in remark
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    assert console.device_remarks("gpu") == []
