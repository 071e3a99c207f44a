"""Draws the accuracies of a report: the paper's Figures 2 and 4, and every setting.

Accuracies are drawn as points, not as bars: a bar says something only if its axis starts at zero,
and from there nobody sees the differences that the paper is about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flexpool_jax.experiments import paper, tables
from flexpool_jax.experiments.results import Arm
from flexpool_jax.experiments.tables import Row

INK, FAINT = "#1f2933", "#8b96a3"
# The columns of the paper's tables first, further settings after them.
COLOURS = (
    *("#5f6b7a", "#2f7fb5", "#e0752d", "#7d5ba6"),
    *("#3a9278", "#b3414a", "#b59020", "#6aa6d6", "#d28fb8", "#4d4d4d"),
)
STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7eb",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
_MEASURED = "mean and 95 % interval"
_ONE_SEED = "one seed, no interval"
_SEED = "single runs"
_PAPER = "the paper's number"


def draw_table(rows: Sequence[Row], path: Path, *, title: str, sac: bool) -> bool:
    """Draws a table of the paper as its Figure 2 or 4 does: a panel for each data set.

    Args:
        rows: From `tables.make_rows`; those without a run in this table are left out.
        path: Of the PNG.
        title: Such as "Figure 2".
        sac: Whether of Table 2.

    Returns:
        Whether there was anything to draw.
    """
    arms = [
        (row, [found for c in paper.COLUMNS if len(found := _with_runs(row, c, sac)) == 1])
        for row in rows
    ]
    drawn = [row for row, found in arms if found]
    if not drawn:
        return False
    with rc_context(STYLE):
        across = min(2, len(drawn))
        down = math.ceil(len(drawn) / across)
        # Alone, a panel needs the width that the legend takes.
        width = 5.4 * across if across > 1 else 7.2
        figure = Figure(figsize=(width, 3.7 * down + 0.9), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for ax, row in zip(panels, drawn, strict=False):
            _draw_panel(ax, row, sac=sac)
        for ax in panels[len(drawn) :]:
            ax.set_visible(False)
        what = "with SAC" if sac else "one classifier"
        figure.suptitle(f"{title}: final accuracy, {what}", x=0.01, ha="left", fontsize=12)
        _legend(figure, list(panels))
        save(figure, path)
    return True


def _with_runs(row: Row, column: str, sac: bool) -> list[Arm]:
    return [arm for arm in tables.table_arms(row, column, sac=sac) if row.runs.get(arm)]


def _draw_panel(ax: Axes, row: Row, *, sac: bool) -> None:
    for x, column in enumerate(paper.COLUMNS):
        arms = _with_runs(row, column, sac)
        if len(arms) == 1:
            _draw_arm(ax, row, arms[0], x, COLOURS[x])
        else:
            remark = f"{len(arms)} settings" if arms else "not run"
            ax.text(
                *(x, 0.04),
                remark,
                transform=ax.get_xaxis_transform(),
                ha="center",
                color=FAINT,
            )
        published = paper.accuracy(row.config.dataset.name, column, sac=sac)
        if published is not None and not row.config.dataset.holdout:
            ax.plot(
                x + 0.24, published, "D", ms=6, mfc="none", mec=INK, label=_PAPER, clip_on=False
            )
    ax.set_xticks(range(len(paper.COLUMNS)), [c.replace(" + ", "\n+ ") for c in paper.COLUMNS])
    ax.set_xlim(-0.5, len(paper.COLUMNS) - 0.5)
    ax.grid(axis="x", visible=False)
    ax.margins(y=0.15)
    ax.set_ylabel("accuracy in %")
    ax.set_title(row.title)


def _draw_arm(ax: Axes, row: Row, arm: Arm, x: float, colour: str) -> None:
    """A mean with its interval, and the runs that it is of beside it."""
    found = row.estimate(arm)
    assert found is not None
    values = list(row.accuracies(arm).values())
    if found.half_width is None:
        ax.plot(x, found.mean, "o", ms=8, mfc="white", mec=colour, mew=2, label=_ONE_SEED)
        return
    ax.plot(
        [x - 0.16] * len(values), values, "o", ms=4, color=colour, alpha=0.4, mew=0, label=_SEED
    )
    ax.errorbar(
        *(x, found.mean, found.half_width),
        fmt="o",
        ms=8,
        color=colour,
        capsize=5,
        lw=2,
        label=_MEASURED,
    )


def draw_settings(row: Row, path: Path) -> bool:
    """Draws every arm of a row in a line of its own, if there are others than the tables have.

    Returns:
        Whether there was anything to draw.
    """
    arms = [arm for arm in row.arms if row.runs.get(arm)]
    in_tables = {(arm.column, bool(arm.sac)) for arm in arms if arm.column}
    if len(arms) == len(in_tables):
        return False
    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 0.42 * len(arms) + 1.7), layout="constrained")
        ax = figure.subplots()
        for y, arm in enumerate(arms):
            found = row.estimate(arm)
            assert found is not None
            colour = COLOURS[1] if arm.sac else COLOURS[0]
            values = list(row.accuracies(arm).values())
            if found.half_width is None:
                ax.plot(found.mean, y, "o", ms=7, mfc="white", mec=colour, mew=2, label=_ONE_SEED)
                continue
            height = [y + 0.24] * len(values)
            ax.plot(values, height, "o", ms=4, color=colour, alpha=0.4, mew=0, label=_SEED)
            ax.errorbar(
                *(found.mean, y),
                xerr=found.half_width,
                fmt="o",
                ms=7,
                color=colour,
                capsize=4,
                lw=2,
                label=_MEASURED,
            )
        ax.set_yticks(range(len(arms)), [arm_name(arm) for arm in arms])
        ax.set_ylim(len(arms) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("final accuracy in %")
        ax.set_title(row.title)
        _legend(figure, [ax])
        save(figure, path)
    return True


def arm_name(arm: Arm) -> str:
    """An arm in a line, with the numbers that tell it from its like."""
    text = arm.title
    if arm.pool_reg:
        text = text.replace("+ Reg", f"+ Reg {arm.pool_reg:g}")
    return text + (f", SAC {'/'.join(f'{w:g}' for w in arm.sac)}" if arm.sac else "")


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, in black: colour there stands for the columns."""
    entries: dict[str, Any] = {}
    for ax in panels:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    order = [label for label in (_MEASURED, _ONE_SEED, _SEED, _PAPER) if label in entries]
    figure.legend(
        [entries[label] for label in order], order, loc="outside lower center", ncols=len(order)
    )


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG; without matplotlib's version in it, so that the same numbers make the same."""
    figure.savefig(path, dpi=130, metadata={"Software": None})
