"""Draws a report's figures: the paper's Figures 2 and 4, every setting, and training curves.

Accuracies are drawn as points and not as bars: bars need an axis that starts at zero, on which
differences of one point cannot be seen.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from flexpool_jax.pages.curves import mean_curve
from flexpool_jax.pages.figures import COLOURS, FAINT, INK, drawn
from flexpool_jax.report import paper
from flexpool_jax.report.rows import Row, Setting

_MEASURED = "mean and 95 % interval"
_ONE_SEED = "one seed, no interval"
_SEED = "single runs"
_PAPER = "the paper's number"
_LINES = ("-", "--", ":", "-.")


def draw_table(rows: Sequence[Row], path: Path, *, title: str, sac: bool) -> bool:
    """Draws a table of the paper in the form of its Figures 2 and 4: a panel for each data set.

    Args:
        rows: The rows, from `rows.make_rows`. A row is left out unless at least one column of the
            table has exactly one setting with runs.
        path: The path of the PNG.
        title: The title of the figure, such as "Figure 2".
        sac: Whether to draw Table 2 (with SAC) instead of Table 1.

    Returns:
        Whether there was anything to draw.
    """
    shown = [
        row
        for row in rows
        if any(len(_with_runs(row, column, sac)) == 1 for column in paper.COLUMNS)
    ]
    if not shown:
        return False
    across = min(2, len(shown))
    down = math.ceil(len(shown) / across)
    # A single panel must be as wide as the legend.
    with drawn(path, 5.4 * across if across > 1 else 7.2, 3.7 * down + 0.9) as figure:
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for ax, row in zip(panels, shown, strict=False):
            _draw_panel(ax, row, sac=sac)
        for ax in panels[len(shown) :]:
            ax.set_visible(False)
        what = "with SAC" if sac else "one classifier"
        figure.suptitle(f"{title}: final accuracy, {what}", x=0.01, ha="left", fontsize=12)
        _legend(figure)
    return True


def _wrapped(title: str) -> str:
    """A title in lines that are not wider than a panel."""
    return textwrap.fill(title, 52)


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
        published = row.published(column, sac=sac)
        if published is not None:
            style: Any = {"ms": 6, "mfc": "none", "mec": INK, "clip_on": False}
            ax.plot(x + 0.24, published, "D", label=_PAPER, **style)
    ax.set_xticks(range(len(paper.COLUMNS)), [c.replace(" + ", "\n+ ") for c in paper.COLUMNS])
    ax.set_xlim(-0.5, len(paper.COLUMNS) - 0.5)
    ax.grid(axis="x", visible=False)
    ax.margins(y=0.15)
    ax.set_ylabel("accuracy in %")
    ax.set_title(_wrapped(row.title))


def _draw_setting(
    ax: Axes, setting: Setting, place: float, colour: str, *, horizontal: bool = False
) -> None:
    """Draws a setting's mean and interval at `place`, with a point for each run beside them."""
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
    """Draws every setting of a row on its own line, unless the paper's tables show them all.

    Returns:
        Whether there was anything to draw.
    """
    settings = row.run_settings
    in_tables = {(s.arm.column, bool(s.arm.sac)) for s in settings if s.arm.column}
    if len(settings) == len(in_tables):
        return False
    with drawn(path, 7.5, 0.42 * len(settings) + 1.7) as figure:
        ax = figure.subplots()
        for y, setting in enumerate(settings):
            _draw_setting(ax, setting, y, COLOURS[bool(setting.arm.sac)], horizontal=True)
        ax.set_yticks(range(len(settings)), [setting.arm.label for setting in settings])
        ax.set_ylim(len(settings) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("final accuracy in %")
        ax.set_title(_wrapped(row.title))
        _legend(figure)
    return True


def _legend(figure: Figure) -> None:
    """Puts one legend below all panels."""
    entries: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    order = [label for label in (_MEASURED, _ONE_SEED, _SEED, _PAPER) if label in entries]
    figure.legend(
        [entries[label] for label in order], order, loc="outside lower center", ncols=len(order)
    )


def draw_curves(row: Row, path: Path) -> bool:
    """Draws evaluation accuracy and training loss by epoch, each setting's runs and their mean.

    Returns:
        Whether there was anything to draw: a setting with a curve that all its runs have.
    """
    accuracy, loss = (row.split, "accuracy"), ("train", "loss")
    settings = row.run_settings
    if not any(mean_curve(s.curves(key)) for s in settings for key in (accuracy, loss)):
        return False
    panels = [
        (title, found)
        for title, sac in (("one classifier", False), ("with SAC", True))
        if (found := [s for s in settings if bool(s.arm.sac) is sac])
    ]
    with drawn(path, 10.8, 3.9 * len(panels)) as figure:
        axes = figure.subplots(len(panels), 2, squeeze=False)
        for (left, right), (title, found) in zip(axes, panels, strict=True):
            means = _draw_means(left, found, accuracy)
            left.set_title(_wrapped(f"{row.title}, {title}: {row.split} accuracy"))
            left.set_ylabel("accuracy in %")
            _zoom_to_second_half(left, means)
            _draw_means(right, found, loss)
            right.set_title("training loss")
            right.set_ylabel("loss")
            right.legend(loc="upper right", fontsize=9)
            right.set_yscale("log")
            right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            right.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            right.yaxis.set_minor_formatter(NullFormatter())
    return True


def _draw_means(
    ax: Axes, settings: Sequence[Setting], key: tuple[str, str]
) -> list[dict[int, float]]:
    """Draws each setting's runs faintly and their mean by epoch; returns the means."""
    means = []
    for setting, (colour, style) in zip(settings, _line_styles(settings), strict=True):
        curves = setting.curves(key)
        for curve in curves if len(curves) > 1 else ():
            ax.plot(list(curve), list(curve.values()), style, color=colour, alpha=0.18, lw=1)
        mean = mean_curve(curves)
        marker = "o" if len(mean) == 1 else ""
        look: Any = {"marker": marker, "color": colour, "lw": 2, "label": setting.arm.label}
        ax.plot(list(mean), list(mean.values()), style, **look)
        means.append(mean)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return means


def _line_styles(settings: Sequence[Setting]) -> list[tuple[str, str]]:
    """Returns a colour and a style of line for each setting; unique among 40 settings.

    Each of the paper's columns has its own colour. If a setting belongs to no column, or two belong
    to the same one, all settings get colours in order instead. When the colours are used up, they
    start again with the next style of line.
    """
    columns = [setting.arm.column for setting in settings]
    if None in columns or len(set(columns)) < len(columns):
        count = len(COLOURS)
        return [(COLOURS[i % count], _LINES[i // count % len(_LINES)]) for i in range(len(columns))]
    return [(COLOURS[paper.COLUMNS.index(column)], _LINES[0]) for column in columns if column]


def _zoom_to_second_half(ax: Axes, curves: Sequence[dict[int, float]]) -> None:
    """Limits the y axis to the values of the second half of training.

    The first epochs rise so steeply that later differences could not be seen.
    """
    last = max((epoch for curve in curves for epoch in curve), default=0)
    late = [value for curve in curves for epoch, value in curve.items() if epoch >= last / 2]
    if late:
        margin = max(0.15 * (max(late) - min(late)), 0.3)
        ax.set_ylim(min(late) - margin, max(late) + margin)
