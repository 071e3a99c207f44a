"""The figures of docs/evidence.md: contrasts, weight maps, changed images, training length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from evidence.contrasts import CLAIMED, EQUIVALENT, Analysis
from evidence.runs import POOLS, Probes
from flexpool_jax.insight.probe_report import by_title
from flexpool_jax.pages.figures import COLOURS, FAINT, INK, drawn
from flexpool_jax.report.analysis import Estimate, estimate


def draw_contrasts(analyses: Sequence[Analysis], path: Path) -> bool:
    """Draws every estimated contrast with its 95 % interval and the bounds of equivalence.

    Returns:
        Whether there was anything to draw.
    """
    found = [(a, f) for a in analyses for f in a.findings if f.contrast is not None]
    if not found:
        return False
    with drawn(path, 9.5, 0.3 * len(found) + 1.8) as figure:
        ax = figure.subplots()
        bound = EQUIVALENT
        ax.axvspan(-bound, bound, color=FAINT, alpha=0.15, lw=0, label=f"equivalence, ±{bound}")
        ax.axvline(0, color=INK, lw=1)
        ax.axvline(CLAIMED, color=FAINT, lw=1, ls="--", label="lower end of the paper's claim")
        titles = list(dict.fromkeys(analysis.experiment.title for analysis, _ in found))
        for y, (analysis, finding) in enumerate(found):
            contrast = finding.contrast
            assert contrast is not None
            colour = COLOURS[1 + titles.index(analysis.experiment.title) % (len(COLOURS) - 1)]
            low, high = contrast.interval()
            ax.plot([low, high], [y, y], color=colour, lw=2)
            filled = finding.adjusted is not None
            face = colour if filled else "white"
            ax.plot(contrast.estimate, y, "o", ms=7, mec=colour, mfc=face, mew=2)
        ax.set_yticks(
            range(len(found)),
            [
                f"{a.experiment.title.partition(':')[0]}  {f.title.replace('`', '')}"
                for a, f in found
            ],
            fontsize=8,
        )
        ax.set_ylim(len(found) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("difference in points, 95 % interval (hollow: secondary)")
        figure.legend(loc="outside lower center", ncols=2)
    return True


def draw_weights(weights: Mapping[str, Sequence[np.ndarray]], path: Path) -> bool:
    """Draws the mean and the spread over seeds of weight maps that are multiplied by H·W.

    Average pooling has the value 1 everywhere. Channels of different seeds do not correspond, so
    each seed's maps are first summarised: by the mean over channels, and by the root mean square
    over channels of the deviation from each channel's mean.

    Args:
        weights: By column, one array ``[H, W, C]`` for each seed.
        path: The path of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    if not weights:
        return False

    def summaries(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = w * w.shape[0] * w.shape[1]
        deviation = scaled - scaled.mean(axis=(0, 1))
        return scaled.mean(axis=2), np.sqrt(np.mean(deviation**2, axis=2))

    heads = [
        *("mean over channels", "its spread over seeds"),
        *("deviation within channels (RMS)", "its spread over seeds"),
    ]
    with drawn(path, 12, 2.9 * len(weights), {"axes.grid": False}) as figure:
        axes = figure.subplots(len(weights), 4, squeeze=False)
        for row, (column, found) in zip(axes, weights.items(), strict=True):
            means, deviations = zip(*map(summaries, found), strict=True)
            maps = [
                *(np.mean(means, axis=0), _spread(means)),
                *(np.mean(deviations, axis=0), _spread(deviations)),
            ]
            for ax, head, values in zip(row, heads, maps, strict=True):
                ax.set_xticks([])
                ax.set_yticks([])
                ax.set_title(head, fontsize=9)
                if len(found) == 1 and "spread" in head:
                    ax.set_title("one seed has no spread", fontsize=9)
                    ax.set_frame_on(False)
                    continue
                image = ax.imshow(values, cmap="viridis")
                figure.colorbar(image, ax=ax, shrink=0.8)
            row[0].set_ylabel(f"{column}\nn = {len(found)}", fontsize=8)
    return True


def _spread(maps: Sequence[np.ndarray]) -> np.ndarray:
    """The standard deviation over seeds, of a sample; 0 for a single seed."""
    return np.std(maps, axis=0, ddof=min(1, len(maps) - 1))


def changes(probe: Mapping[str, Any]) -> dict[str, float]:
    """Returns the change of accuracy in points for each change that a probe made, by title.

    The value of a shift is the mean over its four directions.

    Example:
        >>> shifts = [{"name": "shift", "pixels": 2, "accuracy": a} for a in (0.8, 0.6)]
        >>> probe = {"baseline": {"accuracy": 0.9}, "interventions": [], "perturbations": shifts}
        >>> {title: round(value) for title, value in changes(probe).items()}
        {'shift 2': -20}
    """
    before = probe["baseline"]["accuracy"]
    return {
        title: 100 * (sum(entry["accuracy"] for entry in entries) / len(entries) - before)
        for title, entries in by_title(probe).items()
    }


def draw_perturbations(probes: Probes, path: Path) -> bool:
    """Draws the change of accuracy on perturbed images, with 95 % intervals over seeds.

    Args:
        probes: The content of probe.json by column and seed; only the columns of `POOLS` are drawn.
        path: The path of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    shown = [column for column in POOLS if column in probes]
    if not shown:
        return False
    kinds = {
        "shift": "pixels",
        "gaussian noise": "sd",
        "gaussian blur": "sigma",
        "contrast": "factor",
    }
    with drawn(path, 12, 3.4) as figure:
        for ax, (kind, unit) in zip(figure.subplots(1, 4), kinds.items(), strict=True):
            for column, colour in zip(shown, COLOURS, strict=False):
                found = [changes(probe) for probe in probes[column].values()]
                means = {
                    float(title.removeprefix(kind)): estimate([one[title] for one in found])
                    for title in found[0]
                    if title.startswith(kind)
                }
                _draw_estimates(ax, means, colour, column)
            ax.set_title(kind)
            ax.set_xlabel(unit)
            if kind == "contrast":
                ax.invert_xaxis()  # The factor 1 changes nothing: stronger is to the right, too.
        figure.axes[0].set_ylabel("change of accuracy in points")
        figure.axes[0].legend()
    return True


def draw_length(differences: Mapping[str, Mapping[int, Estimate]], path: Path) -> bool:
    """Draws differences to `avg` against the number of epochs, with 95 % intervals.

    Args:
        differences: The mean differences in points, by column and then by number of epochs.
            Columns with fewer than two numbers of epochs are left out.
        path: The path of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    shown = {column: found for column, found in differences.items() if len(found) > 1}
    if not shown:
        return False
    with drawn(path, 6.5, 3.8) as figure:
        ax = figure.subplots()
        ax.axhspan(-EQUIVALENT, EQUIVALENT, color=FAINT, alpha=0.15, lw=0)
        ax.axhline(0, color=INK, lw=1)
        for (column, found), colour in zip(shown.items(), COLOURS[1:], strict=False):
            _draw_estimates(ax, found, colour, f"{column} − avg")
        ax.set_xscale("log", base=2)
        epochs = sorted({length for found in shown.values() for length in found})
        ax.xaxis.set_major_locator(FixedLocator(epochs))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlabel("epochs")
        ax.set_ylabel("difference in points")
        ax.legend()
    return True


def _draw_estimates(
    ax: Axes, found: Mapping[int, Estimate] | Mapping[float, Estimate], colour: str, label: str
) -> None:
    means = [one.mean for one in found.values()]
    errors = [one.half_width or 0 for one in found.values()]
    ax.errorbar(list(found), means, errors, fmt="o-", color=colour, capsize=3, label=label)
