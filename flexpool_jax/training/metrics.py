"""The numbers of a run, for programs to read.

`Meter` collects metrics from the devices, and `MetricsWriter` writes metrics.jsonl and
TensorBoard's files. TensorFlow is not imported.
"""

from __future__ import annotations

import collections
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import jax

from flexpool_jax import files, layout
from flexpool_jax.training.steps import NotFinite

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event

T = TypeVar("T")


class Meter:
    """Collects the metrics of dispatched steps, and times them.

    The meter waits for a dispatch only after the next one was added, so that the devices are busy
    while the host reads the metrics. It waits immediately for two dispatches only: the first one,
    and the first that does not compile, to measure how long that takes. A dispatch or a step has
    come back when its metrics are on the host.

    Args:
        batch_size: images per step.

    Attributes:
        step: number of the last update that came back; 0 before the first.
        rows: metrics of each step that came back and is not logged yet.
        images_per_second: mean over all dispatches so far except those that compiled (see
            `expect`), without the time that `pause` leaves out; None before there are any.
        seconds_per_step: seconds of a step in the first dispatch that did not compile; None before
            it came back.
        is_blocked: whether most of the seconds of that dispatch passed before its call returned.
            The host cannot work while the devices compute then.
        returned: time when the last dispatch came back or `pause` was called, by `time.monotonic`.
    """

    def __init__(self, batch_size: int) -> None:
        self.step = 0
        self.rows: list[dict[str, float]] = []
        self.images_per_second: float | None = None
        self.seconds_per_step: float | None = None
        self.is_blocked = False
        self.returned = 0.0
        self._batch_size = batch_size
        self._dispatched: collections.deque[tuple[int, Mapping[str, Any]]] = collections.deque()
        self._images, self._seconds = 0, 0.0
        self._waited: float | None = None
        self._is_timed = False
        self._compiles, self._called = True, 0.0
        self._programs: set[object] = set()

    def expect(self, program: object) -> None:
        """Prepares the timing for a dispatch, which compiles if it is the first of its program.

        Call this function right before the dispatch. Before a compilation, the meter waits for all
        earlier dispatches and stops the timing. It also waits until ``seconds_per_step`` is known,
        so that no earlier dispatch is measured with the one that is timed.

        Args:
            program: key of the program: the number of steps of a dispatch, or another value.

        Raises:
            NotFinite: see `add`.
        """
        self._compiles = program not in self._programs
        if self._compiles or self.seconds_per_step is None:
            self.wait()
        if self._compiles:
            self._programs.add(program)
            self._is_timed = False
        self._called = time.monotonic()

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds a dispatch, and waits for the dispatch before it.

        Args:
            step: number of the last update of the dispatch.
            metrics: float32 [steps] on the devices for each name, including ``loss``.

        Raises:
            NotFinite: the loss of a dispatch that came back is a NaN or infinite.
        """
        blocked = time.monotonic() - self._called
        self._dispatched.append((step, metrics))
        is_measured = self.seconds_per_step is None and not self._compiles
        steps = self._collect(leave=1 if self.step and not is_measured else 0)
        if is_measured:
            seconds = self.returned - self._called
            self.seconds_per_step = seconds / steps
            self.is_blocked = blocked > seconds / 2

    def wait(self) -> None:
        """Waits for all dispatches; raises `NotFinite` as `add` does."""
        self._collect(leave=0)

    def means(self) -> dict[str, float]:
        """The means over ``rows``, the last learning rate, and ``data_wait`` if it is known."""
        means = {
            name: math.fsum(row[name] for row in self.rows) / len(self.rows)
            for name in self.rows[0]
        }
        means["learning_rate"] = self.rows[-1]["learning_rate"]
        return means if self.data_wait is None else means | {"data_wait": self.data_wait}

    @property
    def data_wait(self) -> float | None:
        """The share of the timed seconds spent in `waiting_for`; None if it was not called."""
        if self._waited is None or not self._seconds:
            return None
        return self._waited / self._seconds

    def waiting_for(self, parts: Iterable[T]) -> Iterator[T]:
        """Yields parts of the data, and measures the time spent waiting for each part."""
        self._waited = self._waited or 0.0
        started = time.monotonic()
        for part in parts:
            if self._is_timed:
                self._waited += time.monotonic() - started
            yield part
            started = time.monotonic()

    def pause(self) -> None:
        """Leaves the time since the last dispatch came back out of the timing."""
        self.returned = time.monotonic()

    def _collect(self, leave: int) -> int:
        """Waits for all but the last dispatches; returns the steps of the last one waited for."""
        steps = 0
        while len(self._dispatched) > leave:
            last_step, metrics = self._dispatched.popleft()
            metrics = jax.device_get(metrics)
            steps = len(metrics["loss"])
            now = time.monotonic()
            if self._is_timed:
                self._images += steps * self._batch_size
                self._seconds += now - self.returned
                self.images_per_second = self._images / self._seconds
            self._is_timed, self.returned = True, now
            for i in range(steps):
                row = {name: float(values[i]) for name, values in metrics.items()}
                self.step = last_step - steps + 1 + i
                if not math.isfinite(row["loss"]):
                    what = f"the loss is {row['loss']}"
                    raise NotFinite(self.step, what, updates=self.step - 1)
                self.rows.append(row)
        return steps


class MetricsWriter:
    """Appends to a workdir's metrics.jsonl, one JSON object a line, and to its TensorBoard files.

    A line is passed to the operating system before `write` returns. A run that resumes passes the
    `position` that was saved with its checkpoint as ``resume_bytes``. The lines after that position
    are cut off, because their steps will be computed again. So each line is complete, and no split
    has two lines of a step.

    Args:
        workdir: folder of the run; created if it does not exist.
        tensorboard: whether to write TensorBoard events too.
        resume_bytes: length in bytes to which metrics.jsonl is cut, 0 to empty it; None keeps
            every complete line.
        purge_step: step from which TensorBoard deletes its earlier events; None keeps all events.

    Example:
        >>> import tempfile
        >>> workdir = tempfile.mkdtemp()
        >>> with MetricsWriter(workdir, tensorboard=False) as log:
        ...     log.write(step=20, epoch=1.0, split="test", loss=0.5, accuracy=float("nan"))
        >>> print((Path(workdir) / "metrics.jsonl").read_text().strip())
        {"step": 20, "epoch": 1.0, "split": "test", "loss": 0.5, "accuracy": null}
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        tensorboard: bool = True,
        resume_bytes: int | None = None,
        purge_step: int | None = None,
    ) -> None:
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / layout.METRICS_FILE
        kept = b""
        if path.exists():
            content = path.read_bytes()[:resume_bytes]
            kept = content[: content.rfind(b"\n") + 1]
            os.truncate(path, len(kept))
        self._last = _step_and_split(kept)
        # Unbuffered, so that closing does not try again to write what could not be written.
        self._file = path.open("ab", buffering=0)
        self._path = path
        self._events = _open_events(workdir, purge_step) if tensorboard else None

    def write(self, *, step: int, epoch: float, split: str, **values: float | None) -> None:
        """Writes one line, and each value to TensorBoard as ``split/name``.

        Nothing is written if the last line is of the same step and split: a run whose number of
        epochs is reduced to those that are done evaluates its last epoch again.

        Args:
            step: number of updates so far.
            epoch: number of epochs so far, with a fraction within an epoch.
            split: split on which the values were measured: train, validation or test.
            **values: values such as loss (nats), accuracy (in [0, 1]), images_per_second. A value
                that is not finite becomes null, since JSON has no NaN.
        """
        if self._last == (step, split):
            return
        line = {"step": step, "epoch": epoch, "split": split, **values}
        with files.naming(self._path):
            rest = memoryview(files.to_json(line).encode() + b"\n")
            while rest:
                rest = rest[self._file.write(rest) :]
            if self._events is not None:
                from tensorboardX.summary import scalar

                for name, value in values.items():
                    if value is not None and math.isfinite(value):
                        summary = scalar(f"{split}/{name}", float(value))
                        self._events.write_event(_event(step, summary=summary))
        self._last = (step, split)

    def position(self) -> int:
        """Writes metrics.jsonl to the disk (fsync), and returns its length in bytes."""
        with files.naming(self._path):
            os.fsync(self._file.fileno())
            if self._events is not None:
                self._events.flush()
            return self._file.tell()

    def close(self) -> None:
        """Writes the remaining TensorBoard events, and closes the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            self.close()
        except OSError:
            # If the disk was full when a line was written, it is full on closing as well.
            if error is None:
                raise


def _open_events(workdir: Path, purge_step: int | None) -> EventsWriter:
    """Opens a TensorBoard file that is written in the calling thread.

    tensorboardX's SummaryWriter writes in another thread, and its flush misses events that are
    still in the queue. With it, a process that is killed after a checkpoint could lose events from
    before the checkpoint.
    """
    # Imported here because it takes a third of a second.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import SessionLog

    folder = workdir / layout.TENSORBOARD_FOLDER
    folder.mkdir(exist_ok=True)
    # The default names differ by the second only, and a file of the same name is replaced.
    writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
    if purge_step is not None:
        start = SessionLog(status=SessionLog.START)
        writer.write_event(_event(purge_step, session_log=start))
    return writer


def _event(step: int, **content: Any) -> Event:
    """Makes a TensorBoard event of the present time that holds a summary or a session log."""
    from tensorboardX.proto.event_pb2 import Event

    return Event(wall_time=time.time(), step=step, **content)


def _step_and_split(lines: bytes) -> tuple[int, str] | None:
    """The step and the split of the last line; None if there is no line, or it is damaged."""
    try:
        last = json.loads(lines.splitlines()[-1])
        return last["step"], last["split"]
    except (IndexError, KeyError, TypeError, ValueError, RecursionError):
        return None
