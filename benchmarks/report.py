"""Prints the tables of the benchmarks: the machine, the versions, medians and ratios."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.workers import environment, has_gpu

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")


def machine() -> str:
    """Returns lines about CPU, GPU (if any), memory, versions, shared settings and load."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = f"{models[0] if models else platform.processor()}, {cores} cores, {memory:.0f} GiB"
    if has_gpu():
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        device += "; " + subprocess.run(query, capture_output=True, text=True).stdout.strip()
    settings = ", ".join(f"{name}={value}" for name, value in environment().items())
    load = f"{os.getloadavg()[0]:.1f} processes wanted to run in the minute before"
    return f"{device}\n{_versions()}\n{settings}\n{load}"


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a Markdown table under its title, with the machine below it."""
    print(f"### {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|---|" + "---:|" * (len(header) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print("\n" + "\n".join(f"- {line}" for line in machine().splitlines()) + "\n", flush=True)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Formats values as ``median (lowest–highest)``.

    Example:
        >>> spread([3.0, 1.0, 2.0])
        '2 (1–3)'
    """
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def ratios(rounds: Sequence[Sequence[float]], peer: Sequence[Sequence[float]]) -> list[float]:
    """Returns each round's median divided by the peer's median in the same round.

    Example:
        >>> ratios([[2.0, 4.0], [6.0]], [[1.0], [2.0]])
        [3.0, 3.0]
    """
    return [
        statistics.median(ours) / statistics.median(theirs)
        for ours, theirs in zip(rounds, peer, strict=True)
    ]


def rate_rows(
    rates: Mapping[str, Sequence[Sequence[float]]], names: Sequence[str], peer: str
) -> list[list[str]]:
    """Returns rows of ``name, rate, ratio to the peer's rate in the same round``.

    Args:
        rates: rates from `benchmarks.workers.race`.
        names: names of all contestants; those that are missing in ``rates`` have failed.
        peer: name of the contestant with the ratio 1.
    """
    rows = []
    for name in names:
        if name not in rates:
            rows.append([name, "failed", ""])
            continue
        every = [rate for one_round in rates[name] for rate in one_round]
        ratio = spread(ratios(rates[name], rates[peer]), 3) if peer in rates else ""
        rows.append([name, spread(every), ratio])
    return rows
