"""The output of a run for people: the lines at its start, and its progress."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO

import jax
from tqdm import tqdm

from flexpool_jax.source import versions
from flexpool_jax.training.metrics import Meter
from flexpool_jax.training.setup import Setup

REDRAW_SECONDS = 0.1
PLAIN_LINE_SECONDS = 60.0


class ProgressBar:
    """The progress of training: epoch, step, loss, accuracy, images per second, time left.

    On a terminal one line is redrawn. Elsewhere, such as in the log of a scheduler, a line is
    written at the end of each epoch and once a minute. The time left is estimated from the steps of
    this process since its first dispatch came back. Compilation, the first evaluation (which
    compiles) and the steps of earlier processes are not counted.

    Args:
        total_steps: number of steps of the whole run.
        steps_per_epoch: number of steps of an epoch, from which the epoch is computed.
        start_step: step at which this process begins.
        stream: stream to write to; standard error by default. If writing fails, the training
            continues without this output.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        start_step: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        self._stream: Any = _Lines(sys.stderr if stream is None else stream)
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._bar: tqdm[NoReturn] | None = None
        self._handlers: list[logging.Handler] = []
        self._is_evaluated = False
        if start_step < total_steps:
            self._stream.write("compiling the first step\n")

    def show(self, meter: Meter) -> None:
        """Shows the epoch and the step, and the means over the steps that are not logged yet."""
        if not meter.rows:
            return
        means, rate = meter.means(), meter.images_per_second
        epoch, rest = divmod(meter.step - 1, self._steps_per_epoch)
        text = (
            f"epoch {epoch + 1}/{self._total_steps // self._steps_per_epoch} | "
            f"step {meter.step}/{self._total_steps} | "
            f"loss {means['loss']:.4g} | accuracy {100 * means['accuracy']:.1f} %"
        )
        if rate is not None:
            text += f" | {rate:,.0f} images/s"
        if meter.data_wait is not None:
            text += f" | {100 * meter.data_wait:.0f} % waiting for data"
        if self._bar is None:
            self._start_bar(meter.step, text)
            return
        self._bar.set_description_str(text, refresh=False)
        # With interval 0, tqdm draws the line at once.
        is_end = rest + 1 == self._steps_per_epoch
        self._bar.mininterval = 0 if is_end else self._stream.interval
        self._bar.update(meter.step - self._bar.n)

    def evaluation(
        self, epoch: int, split: str, metrics: Mapping[str, float], seconds: float
    ) -> None:
        """Writes the result of an evaluation, in a line that is not redrawn.

        Args:
            epoch: number of completed epochs.
            split: name of the split that was evaluated.
            metrics: ``loss`` and ``accuracy`` (in [0, 1]).
            seconds: duration of the evaluation.
        """
        if self._bar is not None and not self._is_evaluated:
            self._bar.start_t += seconds  # The first evaluation compiles.
        self._is_evaluated = True
        self._clear()
        self._stream.write(
            f"epoch {epoch}/{self._total_steps // self._steps_per_epoch} | "
            f"{split} accuracy {100 * metrics['accuracy']:.2f} % | "
            f"{split} loss {metrics['loss']:.4g}\n"
        )

    def close(self) -> None:
        """Ends the progress line, so that later output begins on a new line."""
        if self._bar is not None:
            self._bar.close()
        for handler in self._handlers:
            handler.removeFilter(self._clear)

    def _start_bar(self, step: int, text: str) -> None:
        is_terminal = self._stream.is_terminal
        self._bar = tqdm(
            desc=text,
            bar_format="{desc} | {remaining} left" + (" |{bar:20}|" if is_terminal else ""),
            total=self._total_steps,
            initial=step,
            file=self._stream,
            dynamic_ncols=is_terminal,
            leave=is_terminal,
            miniters=1,
            smoothing=0,  # The time left is from the mean rate, evaluations included.
        )
        if is_terminal:
            # tqdm.contrib.logging does not know absl's handler, and would write its records twice.
            self._handlers = list(logging.getLogger().handlers)
            if not self._handlers and logging.lastResort is not None:
                self._handlers = [logging.lastResort]
            for handler in self._handlers:
                handler.addFilter(self._clear)

    def _clear(self, record: logging.LogRecord | None = None) -> bool:
        """Removes the progress line before other output; the next step draws the line again."""
        if self._bar is not None:
            self._bar.clear()
        return True


class _Lines:
    """A stream for tqdm: writes plain lines if there is no terminal, and ignores write errors."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_terminal = stream.isatty()
        self.interval = REDRAW_SECONDS if self.is_terminal else PLAIN_LINE_SECONDS

    def write(self, text: str) -> None:
        if not self.is_terminal:
            text = text.strip()
            text += "\n" if text else ""
        with contextlib.suppress(OSError, ValueError):  # Such as a lost connection.
            self._stream.write(text)
            self._stream.flush()

    def flush(self) -> None:
        """Does nothing: `write` flushes."""

    def fileno(self) -> int:
        """Returns the file descriptor, by which tqdm finds the width of the terminal."""
        return self._stream.fileno()


def first_lines(setup: Setup, start_step: int, parameters: int) -> list[str]:
    """Describes a run before it starts: devices, versions, model, data, number of steps.

    Args:
        setup: set-up of the run.
        start_step: step at which the run begins; above 0 for a run that resumes.
        parameters: number of parameters, with those of auxiliary classifiers.

    Returns:
        Lines without line ends.
    """
    config, dataset, devices = setup.config, setup.dataset, jax.devices()
    count = jax.process_count()
    where = f" in {count} processes" if count > 1 else ""
    shape = "x".join(map(str, dataset.image_shape))
    sac = " with SAC" if config.sac.enabled else ""
    epochs = f"{config.num_epochs:,} epoch{'s' * (config.num_epochs != 1)}"
    lines = [
        f"device: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}){where}, "
        f"{config.dtype}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()),
        f"model: {config.model}, {config.pool} pool{sac}, {parameters:,} parameters",
        f"data: {dataset.name}, {len(dataset.train):,} training and {len(dataset.test):,} "
        f"{setup.split_name} images of {shape}, {dataset.num_classes} classes: "
        + textwrap.shorten(", ".join(dataset.class_names), 60, placeholder=" …"),
        f"run: {epochs} of {setup.steps_per_epoch:,} steps, "
        f"{setup.total_steps:,} steps in all, {config.batch_size:,} images a step",
        f"convolutions: {setup.convolutions}",
    ]
    if start_step:
        lines.append(f"resuming after step {start_step:,}")
    return lines + device_remarks(devices[0].platform)


def device_remarks(platform: str) -> list[str]:
    """Explains what may surprise a user of an NVIDIA GPU.

    Args:
        platform: platform that JAX runs on: "cpu", "gpu", ...

    Returns:
        At most one line: why JAX does not use the GPU of this machine, or why the GPU's memory
        looks full.
    """
    if platform == "gpu":
        if "XLA_PYTHON_CLIENT_PREALLOCATE" in os.environ:
            return []
        return [
            "note: JAX reserves 75 % of the GPU's memory at start, whatever the model needs; "
            "XLA_PYTHON_CLIENT_PREALLOCATE=false in the environment turns that off"
        ]
    if platform != "cpu" or not nvidia_gpu_is_present():
        return []
    asked_for = os.environ.get("JAX_PLATFORMS", "")
    if asked_for:
        advice = f"JAX_PLATFORMS={asked_for} in the environment asks for this; unset it"
    elif not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        advice = "JAX's CUDA plugin is not installed: pip install -r requirements.txt"
    else:
        advice = (
            "JAX's CUDA plugin is installed but did not start: check that nvidia-smi lists the GPU "
            "with a driver for CUDA 12 (525 or newer), and that CUDA_VISIBLE_DEVICES and "
            "LD_LIBRARY_PATH do not hide it or its libraries"
        )
    return [f"warning: this machine has an NVIDIA GPU, but JAX runs on the CPU. {advice}"]


def nvidia_gpu_is_present() -> bool:
    """Whether this machine has an NVIDIA GPU with a driver, whether or not JAX can use it."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        # Many container images have the program without a GPU; only its output is evidence.
        listing = subprocess.run([program, "-L"], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return listing.stdout.startswith(b"GPU")
