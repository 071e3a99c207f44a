"""Runs the cells of a sweep one after the other, each in its own process.

Several sweeps may work in one folder, for example one for each GPU: a lock in each cell's folder
keeps two of them from running the same cell.

A process for each run costs some seconds of start-up; compiled programs come from XLA's cache. In
exchange, a run that crashes, or that the system kills for lack of memory, does not end the other
runs, and every run starts with its device's memory free. A cell's command is the one that a user
would type, `launch.py --workdir=CELL`; if the sweep probes its runs, the same command with
`--mode=probe` follows. So any cell can also be resumed by hand.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import filelock
from ml_collections import ConfigDict

from flexpool_jax import configuration, files, layout
from flexpool_jax.errors import Interrupted, SweepFailed, UserError
from flexpool_jax.lock import hold, hold_workdir
from flexpool_jax.sweeps.grid import Cell
from flexpool_jax.training.interrupts import caught_signals


class _Stage(NamedTuple):
    """A command that is run for each cell: its flags, and the name of the file that it writes."""

    name: str
    flags: tuple[str, ...] = ()

    def is_done(self, cell: Cell, folder: Path) -> bool:
        """Whether the file exists and belongs to the cell's config and its final weights."""
        found = self.read(folder)
        return found.get("config_digest") == cell.digest and files.measures_same_model(
            found, _TRAINING.read(folder)
        )

    def read(self, folder: Path) -> dict[str, Any]:
        """The content of the file; {} if the file does not exist or cannot be read."""
        return files.read_json_if_whole(folder / f"{self.name}.json")


_TRAINING = _Stage("result")
_PROBING = _Stage("probe", ("--mode=probe",))


def run_sweep(
    cells: Sequence[Cell],
    workdir: str | os.PathLike[str],
    train: Sequence[str],
    *,
    probe: bool = False,
) -> None:
    """Trains every cell that is not finished yet, resuming those that have begun.

    Args:
        cells: The cells, from `grid.expand`.
        workdir: The sweep's folder. It holds a folder for each cell, named after the cell.
        train: The command that trains, to which `--workdir=CELL` and the cell's arguments are
            added.
        probe: Whether to probe each cell after training, by the same command with `--mode=probe`.
            A cell that is already trained is then only probed.

    Raises:
        UserError: A cell's folder holds a run of another config, or checkpoints cannot be saved in
            it; no cell has been run.
        SweepFailed: Some cells failed; the others are finished, or other processes run them.
        Interrupted: The process was told to stop; the cell that was running has saved its state.
        KeyboardInterrupt: Ctrl-C was pressed twice; the cell that was running keeps its last
            checkpoint.
    """
    workdir = Path(workdir)
    for cell in cells:
        configuration.check_saving(workdir / cell.name)
    stages = (_TRAINING, _PROBING) if probe else (_TRAINING,)
    remaining = [cell for cell in cells if not _is_finished(cell, workdir / cell.name, stages)]
    before = len(cells) - len(remaining)
    now = elsewhere = 0
    failures: dict[str, str] = {}
    with _stop_on_signals() as running:
        for i, cell in enumerate(remaining):
            folder, number = workdir / cell.name, len(cells) - len(remaining) + i + 1
            left = _time_left(remaining[i:], cells, workdir, stages)
            with _claimed(folder) as claimed:
                try:
                    if not claimed:
                        _check_config(cell, folder)
                        _say(f"cell {cell.name} is being run by another process")
                        elsewhere += 1
                        continue
                    _say(f"cell {number} of {len(cells)}: {cell.name} ({left})")
                    if _is_finished(cell, folder, stages):
                        before += 1
                        continue
                    reason = _run_cell(cell, folder, train, running, stages)
                except UserError as error:  # Another sweep, with other fields, has begun it.
                    reason = str(error)
            if reason is None:
                now += 1
            elif not running.told_to_stop:
                _say(f"cell {cell.name} failed: {reason}")
                failures[cell.name] = reason
            if running.told_to_stop and (reason is not None or i + 1 < len(remaining)):
                raise Interrupted(
                    f"told to stop: {before + now} of {len(cells)} cells are finished; "
                    "the same command continues from there"
                )
    others = f", {elsewhere} being run by other processes" if elsewhere else ""
    _say(f"{len(cells)} cells: {before} finished before, {now} now, {len(failures)} failed{others}")
    if failures:
        listed = "; ".join(f"{name} ({reason})" for name, reason in failures.items())
        raise SweepFailed(f"{len(failures)} of {len(cells)} cells failed: {listed}")


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Locks a cell's folder until the block ends; yields False if another process has the lock."""
    with contextlib.ExitStack() as stack:
        claimed = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(folder / ".sweep.lock", "running the same cell"))
        except filelock.Timeout:
            claimed = False
        except OSError:
            pass  # If the folder cannot be written to, only this cell fails, in `_run_cell`.
        yield claimed


def _is_finished(cell: Cell, folder: Path, stages: Sequence[_Stage]) -> bool:
    """Whether all stages of a cell are done.

    Raises:
        UserError: The folder holds the saved state of a run of another config. If that run were
            continued with the cell's config, its result would belong to neither config.
    """
    # The first phase of a run with superclasses saves its checkpoints in a folder of its own.
    if any(map(configuration.has_saved_state, (folder, folder / layout.SUPERCLASS_FOLDER))):
        _check_config(cell, folder)
    return all(stage.is_done(cell, folder) for stage in stages)


def _check_config(cell: Cell, folder: Path) -> None:
    """Raises UserError if the config in a cell's folder is not that of the cell."""
    try:
        saved = configuration.read_config(folder)
    except UserError:
        return  # There is none yet, or it is damaged, which makes only this cell fail, later.
    if configuration.digest(saved) != cell.digest:
        raise UserError(
            f"{folder} holds a run of another config: {_differences(cell, saved)}; give the sweep "
            "another --workdir, or move that folder away"
        )


def _differences(cell: Cell, saved: ConfigDict) -> str:
    try:
        return "; ".join(map(str, configuration.compare_with_workdir(cell.config, saved)))
    except UserError as error:
        return str(error)


class _Running:
    """The running process, and whether the sweep has been told to stop."""

    def __init__(self) -> None:
        self.told_to_stop = False
        self.process: subprocess.Popen[str] | None = None

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: passes SIGTERM on to the run, which saves its state and exits.

        A terminal's Ctrl-C reaches the run by itself as well. The run counts both as one request,
        and a second Ctrl-C, which is not passed on, as another.
        """
        self.told_to_stop = True
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[_Running]:
    running = _Running()
    handlers = {number: signal.signal(number, running.stop) for number in caught_signals()}
    # Another watcher of signals would end this process before the run has saved its state.
    watcher = signal.set_wakeup_fd(-1)
    try:
        yield running
    finally:
        signal.set_wakeup_fd(watcher)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _run_cell(
    cell: Cell, folder: Path, train: Sequence[str], running: _Running, stages: Sequence[_Stage]
) -> str | None:
    """Runs a cell's unfinished stages. Returns None on success, else the reason in one line."""
    try:
        # Takes the lock that training takes: a run that was started by hand may be training here
        # and may not have saved a checkpoint yet.
        with hold_workdir(folder):
            configuration.check_resume(cell.config, folder)
            configuration.write_config(cell.config, folder)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    for stage in stages:
        if stage.is_done(cell, folder):
            continue
        if running.told_to_stop:
            return "told to stop"
        command = [*train, f"--workdir={folder}", *cell.arguments, *stage.flags]
        reason = _failure(command, running)
        if reason is None and not stage.is_done(cell, folder):
            reason = f"it ended without a {stage.name}"
        if reason is not None:
            return ": ".join([*stage.flags, reason])
    return None


def _failure(command: Sequence[str], running: _Running) -> str | None:
    """Runs a command and prints its output.

    Returns None on success, else the reason of its failure in one line.
    """
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
    status = process.returncode
    # After a second Ctrl-C at a terminal, the process has exited at once.
    if running.told_to_stop and status in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    if status:
        return last_line.removeprefix("launch.py: ") or f"exit status {status}"
    return None


def _time_left(
    remaining: Sequence[Cell], cells: Sequence[Cell], workdir: Path, stages: Sequence[_Stage]
) -> str:
    """Estimates the time left, in words, from the finished cells of the same data sets."""
    known: dict[tuple[str, _Stage], list[float]] = defaultdict(list)
    for cell, stage in itertools.product(cells, stages):
        seconds = stage.read(workdir / cell.name).get("seconds")
        if isinstance(seconds, int | float):
            known[cell.dataset, stage].append(seconds)
    needed = [
        (cell.dataset, stage)
        for cell, stage in itertools.product(remaining, stages)
        if not stage.is_done(cell, workdir / cell.name)
    ]
    if any(key not in known for key in needed):
        return "time left not known yet"
    minutes, _ = divmod(round(math.fsum(math.fsum(known[k]) / len(known[k]) for k in needed)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"about {hours} h {minutes:02} min left"


def _say(line: str) -> None:
    # The terminal or pipe that the sweep was started from may be closed.
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
