"""What a run writes about itself for programs to read.

metrics.jsonl, TensorBoard's files, result.json, predictions.npz and pool_weights.npz. What it tells
a person is in `console` and `first_lines`. Nothing imports TensorFlow.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np

import flexpool_jax
from flexpool_jax.training.console import Progress as Progress
from flexpool_jax.training.first_lines import first_lines as first_lines

if TYPE_CHECKING:
    from flexpool_jax.training.experiment import Evaluation

METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
PREDICTIONS_FILE = "predictions.npz"
POOL_WEIGHTS_FILE = "pool_weights.npz"
TENSORBOARD_FOLDER = "tensorboard"

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


class MetricsWriter:
    """Appends to a workdir's metrics.jsonl, one JSON object a line, and to its TensorBoard files.

    Each line is on its way to the disk when `write` returns. A run that resumes gives back the
    `position` stored with its checkpoint: what was written after it, by steps that are now made
    again, is cut off, so that no step stands there twice and no line is torn.

    Args:
        workdir: created if need be.
        tensorboard: whether to write TensorBoard events too.
        resume_bytes: length in bytes to which metrics.jsonl is cut, 0 to begin anew; None keeps
            every whole line.
        purge_step: TensorBoard is told to forget what it has from this step on; None keeps it.

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
        path = workdir / METRICS_FILE
        if path.exists():
            os.truncate(path, _end_of_lines(path, resume_bytes))
        # Unbuffered, so that what could not be written is not tried again on closing.
        self._file = path.open("ab", buffering=0)
        self._path = path
        self._events = _Events(workdir, purge_step) if tensorboard else None

    def write(self, *, step: int, epoch: float, split: str, **values: float | None) -> None:
        """Writes one line, and each value to TensorBoard as ``split/name``.

        Args:
            step: updates made so far.
            epoch: the same in epochs.
            split: what the values were measured on: train, validation or test.
            **values: such as loss (nats), accuracy (in [0, 1]), images_per_second. What is not
                finite becomes null, since JSON has no NaN.
        """
        line = {"step": step, "epoch": epoch, "split": split, **values}
        with _naming(self._path):
            rest = memoryview(_to_json(line).encode() + b"\n")
            while rest:
                rest = rest[self._file.write(rest) :]
            if self._events is not None:
                for name, value in values.items():
                    if value is not None and math.isfinite(value):
                        self._events.write(f"{split}/{name}", float(value), step)

    def position(self) -> int:
        """The length of metrics.jsonl in bytes, all of it safely on the disk."""
        with _naming(self._path):
            os.fsync(self._file.fileno())
            if self._events is not None:
                self._events.flush()
            return self._file.tell()

    def close(self) -> None:
        """Closes the files; TensorBoard's are written by then."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        # A disk that is full when a line is written is full on closing as well.
        with contextlib.suppress(OSError):
            self.close()


class _Events:
    """A TensorBoard file, written in the calling thread.

    tensorboardX's SummaryWriter leaves that to another thread, and its flush misses whatever is
    still on the way there: events from before a checkpoint would be lost to a kill after it.
    """

    def __init__(self, workdir: Path, purge_step: int | None) -> None:
        # Here, since it takes a third of a second that a run without it need not wait.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self._event, self._scalar = Event, scalar
        folder = workdir / TENSORBOARD_FOLDER
        folder.mkdir(exist_ok=True)
        # Its own names differ by the second only, and a file of the same name is replaced.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(
                Event(wall_time=time.time(), step=purge_step, session_log=start)
            )

    def write(self, tag: str, value: float, step: int) -> None:
        summary = self._scalar(tag, value)
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives an OSError the name of its file, which those of an open file do not have."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _end_of_lines(path: Path, limit: int | None) -> int:
    """The length of a file up to the end of its last whole line within the limit."""
    return path.read_bytes()[:limit].rfind(b"\n") + 1


def write_result(workdir: str | os.PathLike[str], **fields: Any) -> Path:
    """Writes result.json whole or not at all: a reader never meets half of it.

    Args:
        workdir: must exist.
        **fields: numbers, strings, and mappings and sequences of them; what is not finite becomes
            null.

    Returns:
        The file's path.

    Example:
        >>> import tempfile
        >>> workdir = tempfile.mkdtemp()
        >>> path = write_result(workdir, final_test_accuracy=0.98)
        >>> read_result(workdir)
        {'final_test_accuracy': 0.98}
    """
    path = Path(workdir) / RESULT_FILE
    write_json(path, fields)
    return path


def write_predictions(workdir: Path, labels: np.ndarray, evaluation: Evaluation) -> None:
    """Writes predictions.npz: ``labels``, ``predictions`` int16 [N], ``confidences`` float16 [N].

    Args:
        workdir: must exist.
        labels: int [N], of every test image in order.
        evaluation: of the same images.
    """
    _write_npz(
        workdir / PREDICTIONS_FILE,
        labels=labels.astype(np.int16),
        predictions=evaluation.predictions,
        confidences=evaluation.confidences,
    )


def write_pool_weights(workdir: Path, params: Any) -> None:
    """Writes pool_weights.npz: every ``w_fp``, named by its path, such as "head/pool/w_fp"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {"/".join(str(part.key) for part in path): np.asarray(leaf) for path, leaf in leaves}
    _write_npz(
        workdir / POOL_WEIGHTS_FILE,
        **{name: leaf for name, leaf in named.items() if name.split("/")[-1] == "w_fp"},
    )


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; what is not finite becomes null."""
    _write(path, (_to_json(value, indent=2) + "\n").encode())


def _write_npz(path: Path, **arrays: np.ndarray) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    _write(path, content.getvalue())


def _write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _naming(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_result(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Reads result.json; None where there is none that can be read."""
    try:
        result = json.loads((Path(workdir) / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of those whose change may change a result.

    Example:
        >>> list(versions())[:3]
        ['python', 'flexpool_jax', 'jax']
    """
    found = {"python": platform.python_version(), "flexpool_jax": flexpool_jax.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def _plain(value: Any) -> Any:
    """A value in the types that JSON has; scalars of NumPy and JAX become Python's."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if not isinstance(value, str | bytes) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
