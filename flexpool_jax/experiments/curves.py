"""Draws how training went: test accuracy and training loss by epoch, from metrics.jsonl."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from flexpool_jax.experiments import paper
from flexpool_jax.experiments.figures import COLOURS, STYLE, arm_name, save
from flexpool_jax.experiments.results import Arm, Run, read_curve
from flexpool_jax.experiments.tables import Row

MEAN_WIDTH = 2.0


def draw_curves(row: Row, path: Path) -> bool:
    """Draws how test accuracy and training loss went, each arm's seeds and their mean.

    Returns:
        Whether there was anything to draw: runs whose metrics.jsonl is there.
    """
    split = "validation" if row.config.dataset.holdout else "test"
    arms = {
        title: [arm for arm in row.arms if bool(arm.sac) is sac and row.runs.get(arm)]
        for title, sac in (("one classifier", False), ("with SAC", True))
    }
    arms = {title: found for title, found in arms.items() if found}
    if not arms:
        return False
    something = False
    with rc_context(STYLE):
        figure = Figure(figsize=(10.8, 3.9 * len(arms)), layout="constrained")
        panels = figure.subplots(len(arms), 2, squeeze=False)
        for (left, right), (title, found) in zip(panels, arms.items(), strict=True):
            for arm, colour in zip(found, _colours(found), strict=True):
                runs = list(row.runs[arm].values())
                label = arm_name(arm) if len({other.sac for other in found}) > 1 else arm.title
                something |= _draw_curve(left, runs, split, "accuracy", colour, label, scale=100)
                something |= _draw_curve(right, runs, "train", "loss", colour, label)
            _dress_curves(left, right, f"{row.title}, {title}: {split} accuracy")
        if something:
            save(figure, path)
    return something


def _colours(arms: Sequence[Arm]) -> list[str]:
    """The columns of the paper keep their colours as long as each is there once."""
    columns = [arm.column for arm in arms]
    if None in columns or len(set(columns)) < len(columns):
        return [COLOURS[i % len(COLOURS)] for i in range(len(arms))]
    return [COLOURS[paper.COLUMNS.index(column)] for column in columns if column]


def _dress_curves(accuracy: Axes, loss: Axes, title: str) -> None:
    accuracy.set_title(title)
    accuracy.set_ylabel("accuracy in %")
    # The first epochs' steep rise would press all that differs into one line at the top.
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
    # Where every loss curve leaves room.
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
    points: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        epochs, values = read_curve(run, split, value)
        values = [scale * v for v in values]
        if len(runs) > 1:
            ax.plot(epochs, values, color=colour, alpha=0.18, lw=1)
        for epoch, v in zip(epochs, values, strict=True):
            points[epoch].append(v)
    # A mean over fewer runs than all would jump where a run lacks a line.
    means = {epoch: sum(v) / len(v) for epoch, v in sorted(points.items()) if len(v) == len(runs)}
    marker = "o" if len(means) == 1 else ""
    ax.plot(
        list(means), list(means.values()), color=colour, lw=MEAN_WIDTH, label=label, marker=marker
    )
    return bool(means)
