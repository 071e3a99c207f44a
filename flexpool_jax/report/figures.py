"""Draws the accuracies of a report: the paper's Figures 2 and 4, and every setting.

Accuracies are drawn as points and not as bars: bars need an axis that starts at zero, on which
differences of one point cannot be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flexpool_jax.report import paper
from flexpool_jax.report.tables import Row, Setting

INK, FAINT = "#1f2933", "#8b96a3"
# The columns of the paper's tables first, further settings after them.
COLOURS = (
    *("#5f6b7a", "#2f7fb5", "#e0752d", "#7d5ba6"),
    *("#3a9278", "#b3414a", "#b59020", "#6aa6d6", "#d28fb8", "#4d4d4d"),
)
STYLE = Path(__file__).with_name("report.mplstyle")
_MEASURED = "mean and 95 % interval"
_ONE_SEED = "one seed, no interval"
_SEED = "single runs"
_PAPER = "the paper's number"


def draw_table(rows: Sequence[Row], path: Path, *, title: str, sac: bool) -> bool:
    """Draws a table of the paper in the form of its Figures 2 and 4: a panel for each data set.

    Args:
        rows: From `tables.make_rows`; those without a run in this table are left out.
        path: Of the PNG.
        title: Such as "Figure 2".
        sac: Whether of Table 2.

    Returns:
        Whether there was anything to draw.
    """
    drawn = [
        row
        for row in rows
        if any(len(_with_runs(row, column, sac)) == 1 for column in paper.COLUMNS)
    ]
    if not drawn:
        return False
    with style.context(STYLE):
        across = min(2, len(drawn))
        down = math.ceil(len(drawn) / across)
        # A single panel needs the width of the legend.
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


def _with_runs(row: Row, column: str, sac: bool) -> list[Setting]:
    return [setting for setting in row.column(column, sac=sac) if setting.runs]


def _draw_panel(ax: Axes, row: Row, *, sac: bool) -> None:
    for x, column in enumerate(paper.COLUMNS):
        settings = _with_runs(row, column, sac)
        if len(settings) == 1:
            _draw_setting(ax, settings[0], x, COLOURS[x])
        else:
            remark = f"{len(settings)} settings" if settings else "not run"
            where = ax.get_xaxis_transform()
            ax.text(x, 0.04, remark, transform=where, ha="center", color=FAINT)
        published = paper.accuracy(row.config.dataset.name, column, sac=sac)
        if published is not None and not row.config.dataset.holdout:
            style: Any = {"ms": 6, "mfc": "none", "mec": INK, "clip_on": False}
            ax.plot(x + 0.24, published, "D", label=_PAPER, **style)
    ax.set_xticks(range(len(paper.COLUMNS)), [c.replace(" + ", "\n+ ") for c in paper.COLUMNS])
    ax.set_xlim(-0.5, len(paper.COLUMNS) - 0.5)
    ax.grid(axis="x", visible=False)
    ax.margins(y=0.15)
    ax.set_ylabel("accuracy in %")
    ax.set_title(row.title)


def _draw_setting(
    ax: Axes, setting: Setting, place: float, colour: str, *, horizontal: bool = False
) -> None:
    """Draws a mean with its interval, and its runs beside it."""
    found = setting.estimate
    assert found is not None

    def points(accuracies: Sequence[float], at: float, **style: Any) -> None:
        pair = (accuracies, [at] * len(accuracies))
        ax.plot(*(pair if horizontal else pair[::-1]), "o", **style)

    if found.half_width is None:
        points([found.mean], place, ms=8, mfc="white", mec=colour, mew=2, label=_ONE_SEED)
        return
    aside = place + 0.24 if horizontal else place - 0.16
    accuracies = list(setting.accuracies.values())
    points(accuracies, aside, ms=4, color=colour, alpha=0.4, mew=0, label=_SEED)
    where = (found.mean, place) if horizontal else (place, found.mean)
    error: Any = {"xerr" if horizontal else "yerr": found.half_width}
    ax.errorbar(*where, **error, fmt="o", ms=8, color=colour, capsize=5, lw=2, label=_MEASURED)


def draw_settings(row: Row, path: Path) -> bool:
    """Draws every setting of a row on its own line, if the tables do not have them all.

    Returns:
        Whether there was anything to draw.
    """
    settings = row.run_settings
    in_tables = {(s.arm.column, bool(s.arm.sac)) for s in settings if s.arm.column}
    if len(settings) == len(in_tables):
        return False
    with style.context(STYLE):
        figure = Figure(figsize=(7.5, 0.42 * len(settings) + 1.7), layout="constrained")
        ax = figure.subplots()
        for y, setting in enumerate(settings):
            _draw_setting(ax, setting, y, COLOURS[bool(setting.arm.sac)], horizontal=True)
        ax.set_yticks(range(len(settings)), [setting.arm.label for setting in settings])
        ax.set_ylim(len(settings) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("final accuracy in %")
        ax.set_title(row.title)
        _legend(figure, [ax])
        save(figure, path)
    return True


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Puts one legend below all panels."""
    entries: dict[str, Any] = {}
    for ax in panels:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    order = [label for label in (_MEASURED, _ONE_SEED, _SEED, _PAPER) if label in entries]
    figure.legend(
        [entries[label] for label in order], order, loc="outside lower center", ncols=len(order)
    )


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG, without matplotlib's version in it: the same numbers give the same file."""
    figure.savefig(path, dpi=130, metadata={"Software": None})
