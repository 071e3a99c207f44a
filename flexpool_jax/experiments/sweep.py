"""Runs the cells of a sweep one after the other, each in a process of its own.

A process for each run costs some seconds of start-up, and compiled programs come from XLA's cache.
In exchange a run that crashes, or that the system kills for its memory, takes no other with it, and
every run starts with the memory of its device free. What a cell's process runs is what a user would
type, `launch.py --workdir=CELL`, so that any cell can also be resumed by hand.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ml_collections import ConfigDict

from flexpool_jax import configuration
from flexpool_jax.errors import Interrupted, SweepFailed, UserError
from flexpool_jax.experiments.grid import Cell


def run_sweep(cells: Sequence[Cell], workdir: str | os.PathLike[str], train: Sequence[str]) -> None:
    """Trains every cell that is not finished yet, resuming those that have begun.

    Args:
        cells: From `grid.expand`.
        workdir: The sweep's folder; each cell has its own under it, named after the cell.
        train: The command that trains, to which `--workdir=CELL` is added.

    Raises:
        UserError: A cell's folder holds a run of another config; nothing has been run then.
        SweepFailed: Some cells failed; all others are finished.
        Interrupted: The process was told to stop; the cell that was running has saved its state.
        KeyboardInterrupt: Told so twice; the last checkpoint of that cell stands.
    """
    workdir = Path(workdir)
    remaining = [cell for cell in cells if not is_finished(cell, workdir)]
    before = len(cells) - len(remaining)
    clock = _Clock([cell for cell in cells if cell not in remaining], workdir)
    failures: dict[str, str] = {}
    with _stop_on_signals() as running:
        for i, cell in enumerate(remaining):
            left = clock.time_left(remaining[i:])
            _say(f"cell {before + i + 1} of {len(cells)}: {cell.name} ({left})")
            started = time.monotonic()
            reason = _run_cell(cell, workdir / cell.name, train, running)
            if reason is None:
                clock.add(cell, time.monotonic() - started)
            elif not running.told_to_stop:
                _say(f"cell {cell.name} failed: {reason}")
                failures[cell.name] = reason
            if running.told_to_stop and (reason is not None or i + 1 < len(remaining)):
                finished = before + i - len(failures) + (reason is None)
                raise Interrupted(
                    f"told to stop: {finished} of {len(cells)} cells are finished; "
                    "the same command goes on from there"
                )
    trained = len(remaining) - len(failures)
    _say(f"{len(cells)} cells: {before} finished before, {trained} now, {len(failures)} failed")
    if failures:
        listed = "; ".join(f"{name} ({reason})" for name, reason in failures.items())
        raise SweepFailed(f"{len(failures)} of {len(cells)} cells failed: {listed}")


def is_finished(cell: Cell, workdir: str | os.PathLike[str]) -> bool:
    """Whether a cell's folder holds the result of this very config.

    Raises:
        UserError: The folder holds a run of another config. Such a run could go on with some other
            rates or epochs, but what came out would be neither the one experiment nor the other.
    """
    folder = Path(workdir) / cell.name
    saved = _saved_config(folder)
    if saved is not None and configuration.digest(saved) != cell.digest:
        raise UserError(
            f"{folder} holds a run of another config: {_differences(cell, saved)}; give the sweep "
            "another --workdir, or remove that folder"
        )
    return _result(folder).get("config_digest") == cell.digest


def _saved_config(folder: Path) -> ConfigDict | None:
    """The config of a run that has begun. One that is damaged fails that cell alone, later."""
    try:
        return configuration.read_config(folder)
    except UserError:
        return None


def _differences(cell: Cell, saved: ConfigDict) -> str:
    try:
        return "; ".join(map(str, configuration.compare_with_workdir(cell.config, saved)))
    except UserError as error:
        return str(error)


def _result(folder: Path) -> dict[str, Any]:
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


class _Running:
    """The process that runs at the moment, and whether the sweep has been told to stop."""

    def __init__(self) -> None:
        self.told_to_stop = False
        self.process: subprocess.Popen[str] | None = None

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handles SIGTERM and SIGINT.

        Both are passed on as SIGTERM: a terminal's Ctrl-C reaches the process by itself, and a
        second SIGINT would make it leave without saving.
        """
        self.told_to_stop = True
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[_Running]:
    running = _Running()
    signals = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.signal(number, running.stop) for number in signals}
    # Whoever else watches for signals would end this process and leave the run without it.
    watcher = signal.set_wakeup_fd(-1)
    try:
        yield running
    finally:
        signal.set_wakeup_fd(watcher)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _run_cell(cell: Cell, folder: Path, train: Sequence[str], running: _Running) -> str | None:
    """Trains a cell. Returns None once its result is there, else why it is not, in a line."""
    if configuration.config_path(folder).exists() and _saved_config(folder) is None:
        return f"{configuration.config_path(folder)} is damaged"
    try:
        configuration.check_resume(cell.config, folder)
        folder.mkdir(parents=True, exist_ok=True)
        configuration.write_config(cell.config, folder)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    status, last_line = _run([*train, f"--workdir={folder}"], running)
    # Told twice by Ctrl-C at a terminal, the process has left at once.
    if running.told_to_stop and status in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    if status:
        return last_line or f"exit status {status}"
    if _result(folder).get("config_digest") != cell.digest:
        return "it ended without a result"
    return None


def _run(command: Sequence[str], running: _Running) -> tuple[int, str]:
    """Runs a command, shows what it writes, and returns its status and the last line of that."""
    last_line = ""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        running.process = process
        if running.told_to_stop:
            # The signal came before there was a process to pass it on to.
            process.terminate()
        assert process.stdout is not None
        for line in process.stdout:
            last_line = line.strip() or last_line
            _say(f"  {line.rstrip()}")
    running.process = None
    return process.returncode, last_line.removeprefix("launch.py: ")


class _Clock:
    """The time that the cells still need, by those of the same data set that are finished."""

    def __init__(self, finished: Sequence[Cell], workdir: Path) -> None:
        self._seconds: dict[str, list[float]] = defaultdict(list)
        for cell in finished:
            seconds = _result(workdir / cell.name).get("seconds")
            if isinstance(seconds, int | float):
                self.add(cell, seconds)

    def add(self, cell: Cell, seconds: float) -> None:
        self._seconds[cell.dataset].append(seconds)

    def time_left(self, cells: Sequence[Cell]) -> str:
        """In words; unknown while nothing tells it for some data set."""
        known = self._seconds
        if any(cell.dataset not in known for cell in cells):
            return "time left unknown yet"
        means = {name: math.fsum(values) / len(values) for name, values in known.items()}
        minutes, _ = divmod(round(math.fsum(means[cell.dataset] for cell in cells)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"about {hours} h {minutes:02} min left"


def _say(line: str) -> None:
    # A sweep outlives the terminal, or the pipe, that it was started from.
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
