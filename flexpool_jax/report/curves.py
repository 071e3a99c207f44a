"""Draws training curves: test accuracy and training loss by epoch, from metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from flexpool_jax.report import paper
from flexpool_jax.report.figures import COLOURS, STYLE, save
from flexpool_jax.report.results import Arm, Run, read_curve
from flexpool_jax.report.tables import Row

MEAN_WIDTH = 2.0


def draw_curves(row: Row, path: Path) -> bool:
    """Draws test accuracy and training loss by epoch: for each setting its seeds and their mean.

    Returns:
        Whether any run has a metrics.jsonl to draw.
    """
    split = "validation" if row.config.dataset.holdout else "test"
    panels = [
        (title, found)
        for title, sac in (("one classifier", False), ("with SAC", True))
        if (found := [s for s in row.run_settings if bool(s.arm.sac) is sac])
    ]
    if not panels:
        return False
    something = False
    with style.context(STYLE):
        figure = Figure(figsize=(10.8, 3.9 * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), 2, squeeze=False)
        for (left, right), (title, found) in zip(axes, panels, strict=True):
            one_sac = len({setting.arm.sac for setting in found}) == 1
            for setting, colour in zip(found, _colours([s.arm for s in found]), strict=True):
                label = setting.arm.title if one_sac else setting.arm.label
                runs = list(setting.runs.values())
                something |= _draw_curve(left, runs, split, "accuracy", colour, label, scale=100)
                something |= _draw_curve(right, runs, "train", "loss", colour, label)
            _finish_axes(left, right, f"{row.title}, {title}: {split} accuracy")
        if something:
            save(figure, path)
    return something


def _colours(arms: Sequence[Arm]) -> list[str]:
    """The paper's columns have their own colours, unless one of them appears twice."""
    columns = [arm.column for arm in arms]
    if None in columns or len(set(columns)) < len(columns):
        return [COLOURS[i % len(COLOURS)] for i in range(len(arms))]
    return [COLOURS[paper.COLUMNS.index(column)] for column in columns if column]


def _finish_axes(accuracy: Axes, loss: Axes, title: str) -> None:
    accuracy.set_title(title)
    accuracy.set_ylabel("accuracy in %")
    # Scaled to the second half: the first epochs rise so steeply that later differences vanish.
    means = [
        line.get_xydata() for line in accuracy.get_lines() if line.get_linewidth() == MEAN_WIDTH
    ]
    points = np.concatenate(means)
    if points.size:
        late = points[points[:, 0] >= 0.5 * points[:, 0].max(), 1]
        margin = max(0.15 * np.ptp(late), 0.3)
        accuracy.set_ylim(late.min() - margin, late.max() + margin)
    loss.set_title("training loss")
    loss.set_ylabel("loss")
    loss.legend(loc="upper right", fontsize=9)
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    loss.yaxis.set_minor_formatter(NullFormatter())
    for ax in (accuracy, loss):
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_curve(
    ax: Axes,
    runs: Sequence[Run],
    split: str,
    value: str,
    colour: str,
    label: str,
    scale: float = 1,
) -> bool:
    """Draws each run faintly and their mean; returns whether there were any points."""
    curves = [{at: scale * v for at, v in read_curve(run, split, value).items()} for run in runs]
    for curve in curves if len(runs) > 1 else ():
        ax.plot(list(curve), list(curve.values()), color=colour, alpha=0.18, lw=1)
    mean = mean_curve(curves)
    marker = "o" if len(mean) == 1 else ""
    style: dict[str, Any] = {"color": colour, "lw": MEAN_WIDTH, "label": label, "marker": marker}
    ax.plot(list(mean), list(mean.values()), **style)
    return bool(mean)


def mean_curve(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean of curves at the epochs that all of them have: elsewhere it would jump.

    Example:
        >>> mean_curve([{1: 0.0, 2: 4.0}, {2: 2.0, 3: 1.0}])
        {2: 3.0}
    """
    epochs = sorted(set.intersection(*map(set, curves)))
    return {epoch: sum(curve[epoch] for curve in curves) / len(curves) for epoch in epochs}
