"""Draws what an inspection finds, as PNGs: weights, evidence maps, confusion and reliability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize

from flexpool_jax.data import Split
from flexpool_jax.insight.contact_sheet import scaled
from flexpool_jax.insight.evidence_maps import EvidenceMaps
from flexpool_jax.pages.figures import COLOURS, FAINT, drawn
from flexpool_jax.scoring import Bin

# Blue below and red above a light middle: distinct with every common kind of colour blindness.
DIVERGING = "RdBu_r"
_NO_GRID = {"axes.grid": False}
# The largest numbers of channels and of classes that are labelled; more could not be read.
_MAX_NUMBERED, _MAX_NAMED = 256, 40
_EVIDENCE_ROWS = 12
_TAKES, _ADDS = np.array([43, 131, 255], np.uint8), np.array([224, 44, 40], np.uint8)


def draw_weights(w: np.ndarray, path: Path, title: str) -> None:
    """Draws the maps of all channels on one colour scale, centred at 1 / (H · W).

    Args:
        w: weights [H, W, C]; if all channels share one map, it is drawn once.
        path: path of the PNG.
        title: title of the figure.
    """
    w = np.asarray(w, np.float64)
    shared = bool((w == w[..., :1]).all()) and w.shape[2] > 1
    maps = w[..., :1] if shared else w
    height, width, channels = maps.shape
    across = max(1, math.ceil(math.sqrt(channels * height / width)))
    down = math.ceil(channels / across)
    gap = max(1, max(height, width) // 8)
    mosaic = np.full((down * (height + 2 * gap), across * (width + gap)), np.nan)
    places = [divmod(channel, across) for channel in range(channels)]
    corners = [(row * (height + 2 * gap) + 2 * gap, col * (width + gap)) for row, col in places]
    for channel, (top, left) in enumerate(corners):
        mosaic[top : top + height, left : left + width] = maps[..., channel]
    even = 1 / (height * width)
    reach = float(np.abs(maps - even).max()) or even
    norm = Normalize(even - reach, even + reach)
    size = min(14.0, max(5.0, 0.9 * across))
    style = _NO_GRID | {"savefig.bbox": "tight"}
    with drawn(path, size + 1, size * mosaic.shape[0] / mosaic.shape[1] + 1, style) as figure:
        axes = figure.subplots()
        axes.imshow(mosaic, cmap=DIVERGING, norm=norm, interpolation="nearest")
        axes.axis("off")
        if channels <= _MAX_NUMBERED and not shared:
            points = 72 * size / mosaic.shape[1]
            for channel, (top, left) in enumerate(corners):
                axes.text(
                    left - 0.5,
                    top - 0.7,
                    str(channel),
                    fontsize=min(9, max(3, 1.7 * gap * points)),
                    va="bottom",
                )
        channels_text = "one map for all channels" if shared else f"{channels} channels"
        axes.set_title(f"Weights of {title}: {channels_text}, {height} × {width} positions")
        bar = figure.colorbar(ScalarMappable(norm, DIVERGING), ax=axes, shrink=0.7)
        bar.set_label(f"weight; the middle is 1/(HW) = {even:.4g}")


def draw_evidence(evidence: EvidenceMaps, split: Split, names: Sequence[str], path: Path) -> None:
    """Draws images beside the evidence for their predicted and for their true class.

    Each row has one scale, centred at 0, so that its two maps can be compared.
    """
    rows = min(_EVIDENCE_ROWS, len(evidence.positions))
    names = _shortened(names)
    with drawn(path, 6.4, 1.9 * rows + 0.6, {"axes.titlesize": 8}) as figure:
        panels = figure.subplots(rows, 3, squeeze=False)
        for row in range(rows):
            index = evidence.positions[row]
            label = int(split.labels[index])
            classes = list(evidence.classes[row])
            picture = np.asarray(scaled(split.images[index], 256))
            kept = [0, classes.index(label)]
            reach = float(np.abs(evidence.maps[row, kept]).max()) or 1.0
            panels[row, 0].imshow(picture)
            panels[row, 0].set_title(f"image {index}: {names[label]}")
            for panel, place, word in zip(
                panels[row, 1:], kept, ("predicted", "true"), strict=True
            ):
                panel.imshow(picture)
                shown = evidence.maps[row, place]
                # Transparent where the evidence is 0.
                panel.imshow(
                    np.where(shown[..., None] < 0, _TAKES, _ADDS),
                    alpha=0.85 * np.abs(shown) / reach,
                    extent=(-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5),
                    interpolation="nearest",
                )
                logit = evidence.logits[row, place]
                panel.set_title(f"{word}: {names[classes[place]]} ({logit:.2f})")
            for panel in panels[row]:
                panel.axis("off")
        figure.suptitle(
            "Evidence for a class (its logit): red adds, blue takes away", x=0.02, ha="left"
        )


def _shortened(names: Sequence[str]) -> list[str]:
    """Class names of at most 24 characters."""
    return [name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}" for name in names]


def draw_confusion(confusions: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draws the confusion matrix, a row for each class and a column for each prediction.

    Args:
        confusions: entries of the matrix that are not 0, from `flexpool_jax.scoring.confusions`.
        names: names of the classes.
        path: path of the PNG.
    """
    count, most = len(names), int(confusions[:, 2].max())
    confusion = np.full((count, count), np.nan)
    confusion[confusions[:, 0], confusions[:, 1]] = confusions[:, 2]
    side = min(12.0, max(4.5, 0.45 * count))
    with drawn(path, side + 1, side, _NO_GRID) as figure:
        axes = figure.subplots()
        image = axes.imshow(
            confusion,
            cmap="Blues",
            # The scale starts below 1, so that the cell of a single image is not white.
            norm=LogNorm(0.5, max(2, most)),
        )
        axes.set(xlabel="predicted class", ylabel="true class", title="Confusion matrix: images")
        if count <= _MAX_NAMED:
            shown = _shortened(names)
            axes.set_xticks(range(count), shown, rotation=90)
            axes.set_yticks(range(count), shown)
        if count <= _MAX_NAMED // 2:
            dark = math.sqrt(most)
            for row, column, value in confusions:
                colour = "white" if value > dark else "black"
                axes.text(column, row, str(value), ha="center", va="center", color=colour)
        bar = figure.colorbar(image, ax=axes, shrink=0.7)
        ticks = [m * 10**power for power in range(9) for m in (1, 2, 5)]
        ticks = [tick for tick in ticks if tick <= most]
        bar.set_ticks(ticks, labels=[f"{tick:,}" for tick in ticks])
        bar.minorticks_off()


def draw_reliability(bins: Sequence[Bin], error: float, path: Path) -> None:
    """Draws accuracy against confidence (Guo et al. 2017), and how many images each bin holds.

    Args:
        bins: bins of confidence, from `flexpool_jax.scoring.calibration_bins`.
        error: the expected calibration error.
        path: path of the PNG.
    """
    used = [found for found in bins if found.images]
    with drawn(path, 4.8, 5.2) as figure:
        axes, below = figure.subplots(2, height_ratios=(3, 1), sharex=True)
        axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", label="perfectly calibrated")
        axes.plot(
            [found.confidence for found in used],
            [found.accuracy for found in used],
            "o-",
            color=COLOURS[1],
            label="this network",
        )
        axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        axes.set_title(f"Reliability; expected calibration error {error:.4f}")
        axes.legend()
        below.bar(
            [found.low for found in bins],
            [found.images for found in bins],
            width=1 / len(bins),
            align="edge",
            color=COLOURS[1],
        )
        below.set(xlabel="confidence", ylabel="images")
