"""Curves of a run: reads the numbers of its metrics.jsonl, thins curves and averages them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flexpool_jax import layout

Point = tuple[float, float]


def finite(value: Any) -> float | None:
    """Returns a value of a JSON file as a float; None if it is not a finite number.

    Example:
        >>> finite(7), finite(float("nan")), finite("7")
        (7.0, None, None)
    """
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def read_metrics(workdir: Path) -> Iterator[tuple[str, float, float, dict[str, float]]]:
    """Reads the lines of a run's metrics.jsonl; yields nothing if there is no such file.

    Yields:
        The split, the step, the epoch and the other numbers by name, for each line. Incomplete
        lines, lines without a split, a step or an epoch, and values that are not finite are left
        out.
    """
    try:
        lines = (workdir / layout.METRICS_FILE).read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            found = {name: finite(value) for name, value in row.items()}
            numbers = {name: number for name, number in found.items() if number is not None}
            step, epoch = numbers.pop("step", None), numbers.pop("epoch", None)
            split = row.get("split")
            if isinstance(split, str) and step is not None and epoch is not None:
                yield split, step, epoch, numbers


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """Chooses evenly spaced points, the first and the last included; rounds to six digits.

    Example:
        >>> thinned([(epoch, epoch / 3) for epoch in range(5)], most=3)
        [(0, 0.0), (2, 0.666667), (4, 1.33333)]
    """
    kept = min(most, len(points))
    places = [round(i * (len(points) - 1) / max(1, kept - 1)) for i in range(kept)]
    return [(points[place][0], float(f"{points[place][1]:.6g}")) for place in places]


def mean_curve(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Returns the mean of curves at the epochs that all curves have; elsewhere it would jump.

    Example:
        >>> mean_curve([{1: 0.0, 2: 4.0}, {2: 2.0, 3: 1.0}])
        {2: 3.0}
    """
    epochs = sorted(set.intersection(*map(set, curves)))
    return {epoch: sum(curve[epoch] for curve in curves) / len(curves) for epoch in epochs}
