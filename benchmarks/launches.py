"""Starts launch.py as a user does, and observes the runs from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAUNCH = Path(__file__).parents[1] / "launch.py"


class LaunchFailed(Exception):
    """launch.py ended with an error; the message is the last line of its standard error."""


def command(config: str, workdir: Path, flags: Sequence[str]) -> list[str]:
    """Returns the command that a user would type."""
    return [sys.executable, str(LAUNCH), f"--config={config}", f"--workdir={workdir}", *flags]


def launch(config: str, workdir: Path, flags: Sequence[str]) -> float:
    """Runs launch.py to its end, and returns the seconds from start to end.

    Raises:
        LaunchFailed: the exit status of launch.py is not 0.
    """
    started = time.perf_counter()
    done = subprocess.run(
        command(config, workdir, flags), capture_output=True, text=True, cwd=LAUNCH.parent
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise LaunchFailed((done.stderr.strip() or "no message").splitlines()[-1])
    return seconds


def seconds_to_first_step(config: str, workdir: Path, flags: Sequence[str]) -> float:
    """Starts a run, kills it after its first step, and returns the seconds until that step.

    Raises:
        LaunchFailed: the run ended before its first step was in metrics.jsonl.
    """
    flags = [*flags, "--config.log_every_steps=1", "--config.steps_per_dispatch=1"]
    started = time.perf_counter()
    run = subprocess.Popen(
        command(config, workdir, flags),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=LAUNCH.parent,
    )
    try:
        while not read_metrics(workdir):
            if run.poll() is not None:
                message = run.stderr.read() if run.stderr else ""
                raise LaunchFailed((message.strip() or "no message").splitlines()[-1])
            time.sleep(0.01)
        return time.perf_counter() - started
    finally:
        run.kill()
        run.communicate()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of metrics.jsonl so far."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cache_flag(folder: Path) -> str:
    """Returns the flag for a compile cache in `folder`; deletes the variable that overrides it."""
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    return f"--config.compilation_cache={folder}"
