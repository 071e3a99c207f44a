"""Runs of launch.py as a user starts them, watched from outside."""

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
    """launch.py ended with an error; the message is its last line."""


def command(config: str, workdir: Path, flags: Sequence[str]) -> list[str]:
    """What the user types."""
    return [sys.executable, str(LAUNCH), f"--config={config}", f"--workdir={workdir}", *flags]


def launch(config: str, workdir: Path, flags: Sequence[str]) -> float:
    """Runs to the end, and returns the seconds from start to end.

    Raises:
        LaunchFailed: it did not end well.
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
    """Starts a run and kills it as soon as its first step stands in metrics.jsonl.

    Raises:
        LaunchFailed: it ended before that.
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
    """The whole lines of metrics.jsonl so far."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cache_flag(folder: Path) -> str:
    """The flag that keeps compiled programs in this folder; no variable may say otherwise."""
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    return f"--config.compilation_cache={folder}"
