"""The progress of a run for the person who watches it.

On a terminal one line is drawn over and over; elsewhere (a file, a scheduler's log) plain lines are
written now and then.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self, TextIO

REDRAW_SECONDS = 0.1
PLAIN_LINE_SECONDS = 60.0


class Progress:
    """The progress of training: epoch, step, loss, accuracy, images per second, time left.

    The estimate of the time left rests on what this process has done since its first dispatch came
    back: neither compilation nor what a run did before it was resumed counts. Evaluations count
    from the second on, since the first compiles too.

    Args:
        total_steps: of the whole run.
        steps_per_epoch: to tell the epoch.
        batch_size: images per step.
        start_step: at which this process begins.
        stream: where to write; standard error by default.
        clock: seconds from any start.

    Example:
        >>> import itertools
        >>> progress = Progress(total_steps=4, steps_per_epoch=2, batch_size=64, stream=sys.stdout,
        ...                     clock=itertools.count().__next__)
        compiling the first step
        >>> progress.step(1, {"loss": 2.0, "accuracy": 0.25})
        >>> progress.step(2, {"loss": 1.0, "accuracy": 0.75})
        epoch 1/2 | step 2/4 | loss 1.5 | accuracy 50.0 % | 64 images/s | 2 s left
        >>> progress.close()
    """

    def __init__(
        self,
        *,
        total_steps: int,
        steps_per_epoch: int,
        batch_size: int,
        start_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._live = self._stream.isatty()
        self._line_is_drawn = False
        self._stream_is_gone = False
        self._closed = False
        self._step = start_step
        self._epoch_sums = {"loss": 0.0, "accuracy": 0.0, "count": 0}
        # When the last dispatch or evaluation ended; None before the first.
        self._last_event: float | None = None
        self._train_steps = 0
        self._train_seconds = 0.0
        self._evaluated_step: int | None = None
        self._evaluation_steps = 0
        self._evaluation_seconds = 0.0
        self._last_shown = self._clock()
        self._guard = _ClearsTheLine(self)
        if start_step < total_steps:
            self._show(["compiling the first step"])
        if self._live:
            self._guard.install()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells that the run has reached a step.

        Args:
            step: updates made so far, counted from the beginning of the run.
            metrics: ``loss`` and ``accuracy`` (in [0, 1]) of the last of them; means over the
                epoch are shown.
        """
        now = self._clock()
        if self._last_event is not None:
            self._train_steps += step - self._step
            self._train_seconds += now - self._last_event
        self._last_event = now
        if (step - 1) // self._steps_per_epoch != (self._step - 1) // self._steps_per_epoch:
            self._epoch_sums = dict.fromkeys(self._epoch_sums, 0)
        self._epoch_sums["loss"] += metrics["loss"]
        self._epoch_sums["accuracy"] += metrics["accuracy"]
        self._epoch_sums["count"] += 1
        self._step = step
        interval = REDRAW_SECONDS if self._live else PLAIN_LINE_SECONDS
        if now - self._last_shown >= interval or step % self._steps_per_epoch == 0:
            self._show(self._parts())
            self._last_shown = now

    def evaluation(self, epoch: int, split: str, metrics: Mapping[str, float]) -> None:
        """Tells the result of an evaluation, in a line that stays.

        Args:
            epoch: epochs completed.
            split: what was evaluated.
            metrics: ``loss`` and ``accuracy`` (in [0, 1]).
        """
        now = self._clock()
        if self._evaluated_step is not None and self._last_event is not None:
            self._evaluation_steps += self._step - self._evaluated_step
            self._evaluation_seconds += now - self._last_event
        self._evaluated_step = self._step
        if self._last_event is not None:
            self._last_event = now
        epochs = self._total_steps // self._steps_per_epoch
        self.message(
            f"epoch {epoch}/{epochs} | {split} accuracy {100 * metrics['accuracy']:.2f} % | "
            f"{split} loss {metrics['loss']:.4g}"
        )

    def message(self, line: str) -> None:
        """Writes a line that stays, without tearing the progress line."""
        self.clear()
        self._write(line + "\n")

    def seconds_left(self) -> float | None:
        """The estimate of the time left; None until two dispatches have come back."""
        if not self._train_steps:
            return None
        seconds_per_step = self._train_seconds / self._train_steps
        if self._evaluation_steps:
            seconds_per_step += self._evaluation_seconds / self._evaluation_steps
        return (self._total_steps - self._step) * seconds_per_step

    def clear(self) -> None:
        """Takes the progress line off the terminal; the next step draws it again."""
        if self._line_is_drawn:
            self._write("\r\x1b[K")
            self._line_is_drawn = False

    def close(self) -> None:
        """Ends the progress line, so that what is written next begins a line of its own."""
        if not self._closed:
            self._closed = True
            self._guard.remove()
            if self._line_is_drawn:
                self._write("\n")
                self._line_is_drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _parts(self) -> list[str]:
        """The progress line in parts, the ones that are given up last first."""
        epochs = self._total_steps // self._steps_per_epoch
        count = self._epoch_sums["count"]
        parts = [
            f"epoch {(self._step - 1) // self._steps_per_epoch + 1}/{epochs}",
            f"step {self._step}/{self._total_steps}",
            f"loss {self._epoch_sums['loss'] / count:.4g}",
            f"accuracy {100 * self._epoch_sums['accuracy'] / count:.1f} %",
        ]
        seconds_left = self.seconds_left()
        if seconds_left is not None:
            rate = self._train_steps * self._batch_size / max(self._train_seconds, 1e-9)
            parts += [f"{rate:,.0f} images/s", f"{format_seconds(seconds_left)} left"]
        return parts

    def _show(self, parts: Sequence[str]) -> None:
        if not self._live:
            self._write(" | ".join(parts) + "\n")
            return
        # A line that reached the last column would wrap, and could not be drawn over.
        room = _columns(self._stream) - 1
        line = " | ".join(parts)
        while len(line) > room and len(parts) > 1:
            parts = parts[:-1]
            line = " | ".join(parts)
        self._write(f"\r{line[:room]}\x1b[K")
        self._line_is_drawn = True

    def _write(self, text: str) -> None:
        if self._stream_is_gone:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # A dropped connection, say. Training goes on without its terminal.
            self._stream_is_gone = True


class _ClearsTheLine(logging.Filter):
    """Takes the progress line away before a log record is written to the same terminal."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._handlers: list[logging.Handler] = []

    def install(self) -> None:
        self._handlers = list(logging.getLogger().handlers)
        if not self._handlers and logging.lastResort is not None:
            self._handlers = [logging.lastResort]
        for handler in self._handlers:
            handler.addFilter(self)

    def remove(self) -> None:
        for handler in self._handlers:
            handler.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        self._progress.clear()
        return True


def _columns(stream: TextIO) -> int:
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return columns or 80  # A terminal that does not know its size says 0.


def format_seconds(seconds: float) -> str:
    """A duration in its two largest units.

    Example:
        >>> [format_seconds(s) for s in (8.4, 125, 3 * 3600 + 59, 90_000)]
        ['8 s', '2 min 05 s', '3 h 00 min', '1 d 01 h']
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
