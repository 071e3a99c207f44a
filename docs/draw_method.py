"""Draws docs/method.svg, the figure of the method in the README.

python docs/draw_method.py [FILE]

The sizes are those of ResNet20 on 32×32 images; the image is a digit that scikit-learn ships.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle
from sklearn.datasets import load_digits

INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"
MAP, WEIGHT, PRODUCT, CLASSIFIER, LOSS = "#3d7ea6", "#e8833a", "#8a6fb0", "#9aa5b1", "#b3414a"
WIDTH, HEIGHT = 17.0, 8.6  # of the drawing, in its own units

Point = tuple[float, float]
Colour = tuple[float, float, float]


def tint(colour: str, towards_white: float) -> Colour:
    """A lighter shade of a colour; 0 is the colour itself, 1 is white."""
    red, green, blue = (c + (1 - c) * towards_white for c in to_rgb(colour))
    return red, green, blue


def block(ax: Axes, centre: Point, side: float, depth: float, colour: str) -> None:
    """A feature map or a block of weights: side × side positions, and channels into the page."""
    x, y = centre[0] - side / 2 - depth * 0.35, centre[1] - side / 2 - depth * 0.2
    dx, dy = depth * 0.7, depth * 0.4
    faces = [
        ([(x, y), (x + side, y), (x + side, y + side), (x, y + side)], 0.45),
        (
            [
                (x, y + side),
                (x + side, y + side),
                (x + side + dx, y + side + dy),
                (x + dx, y + side + dy),
            ],
            0.7,
        ),
        (
            [
                (x + side, y),
                (x + side + dx, y + dy),
                (x + side + dx, y + side + dy),
                (x + side, y + side),
            ],
            0.2,
        ),
    ]
    for corners, lightness in faces:
        face = tint(colour, lightness)
        ax.add_patch(Polygon(corners, closed=True, facecolor=face, edgecolor=colour, linewidth=1.1))
    for i in range(1, 4):
        at = side * i / 4
        grid: dict[str, Any] = {"color": tint(colour, 0.15), "linewidth": 0.5}
        ax.plot([x + at, x + at], [y, y + side], **grid)
        ax.plot([x, x + side], [y + at, y + at], **grid)


def vector(ax: Axes, centre: Point, height: float, colour: str, cells: int = 8) -> None:
    """A pooled feature vector, standing upright."""
    shades = np.random.default_rng(3).uniform(0.1, 0.75, cells)
    cell = height / cells
    for i, shade in enumerate(shades):
        corner = (centre[0] - 0.11, centre[1] - height / 2 + i * cell)
        ax.add_patch(
            Rectangle(
                corner, 0.22, cell, facecolor=tint(colour, shade), edgecolor=colour, linewidth=0.7
            )
        )


def prediction(ax: Axes, left: Point, height: float, bars: Sequence[float]) -> None:
    """Class probabilities as a small bar chart."""
    step = height / len(bars)
    for i, bar in enumerate(bars):
        corner = (left[0], left[1] - height / 2 + i * step + step * 0.14)
        shade = tint(CLASSIFIER, 0.0 if bar == max(bars) else 0.45)
        ax.add_patch(Rectangle(corner, bar, step * 0.72, facecolor=shade, edgecolor="none"))
    ax.plot(
        [left[0]] * 2, [left[1] - height / 2, left[1] + height / 2], color=CLASSIFIER, linewidth=1
    )


def arrow(ax: Axes, start: Point, end: Point, colour: str = INK) -> None:
    """A straight arrow."""
    properties = {
        "arrowstyle": "-|>,head_length=0.45,head_width=0.22",
        "color": colour,
        "linewidth": 1.3,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    ax.annotate("", xy=end, xytext=start, arrowprops=properties)


def text(
    ax: Axes, at: Point, words: str, size: float = 11, colour: str = INK, **options: Any
) -> None:
    """Centred text unless told otherwise."""
    ax.text(*at, words, fontsize=size, color=colour, **{"ha": "center", "va": "center", **options})


def draw_backbone(ax: Axes, y: float) -> list[float]:
    """The image and the three stages; returns the x of each stage's centre."""
    digit = load_digits().images[0]
    ax.imshow(digit, cmap="gray_r", extent=(0.45, 1.75, y - 0.65, y + 0.65), zorder=1)
    ax.add_patch(Rectangle((0.45, y - 0.65), 1.3, 1.3, fill=False, edgecolor=INK, linewidth=1))
    text(ax, (1.1, y + 1.52), "image $X$", 12)
    stages = [
        (3.35, 1.6, 0.35, "32×32×16"),
        (5.6, 1.15, 0.6, "16×16×32"),
        (7.55, 0.75, 1.0, "8×8×64"),
    ]
    for number, (x, side, depth, shape) in enumerate(stages, start=1):
        block(ax, (x, y), side, depth, MAP)
        text(ax, (x, y + 1.52), f"stage {number}", 12, MAP, weight="bold")
        text(ax, (x, y + 1.22), shape, 9.5, FAINT)
    for start, end in [(1.85, 2.36), (4.4, 4.78), (6.52, 6.78)]:
        arrow(ax, (start, y), (end, y))
    return [stage[0] for stage in stages]


def draw_flexpool(ax: Axes, y: float) -> None:
    """The last stage's map times the weights, summed over positions, and classified."""
    text(ax, (8.75, y), "⊙", 22)
    block(ax, (9.8, y), 0.75, 1.0, WEIGHT)
    text(ax, (9.8, y + 1.52), "FlexPool $w$", 12, WEIGHT, weight="bold")
    text(ax, (9.8, y + 1.22), "8×8×64, learned", 9.5, FAINT)
    text(ax, (10.95, y), "=", 18)
    block(ax, (11.95, y), 0.75, 1.0, PRODUCT)
    text(ax, (11.95, y + 1.52), "weighted map", 12, PRODUCT)
    text(ax, (11.95, y + 1.22), "8×8×64", 9.5, FAINT)
    arrow(ax, (12.85, y), (13.72, y))
    text(ax, (13.24, y + 0.3), r"$\Sigma_{i,j}$", 13)
    vector(ax, (13.95, y), 1.5, PRODUCT)
    text(ax, (13.95, y + 1.52), "features", 12)
    text(ax, (13.95, y + 1.22), "64", 9.5, FAINT)
    arrow(ax, (14.15, y), (15.12, y))
    text(ax, (14.62, y + 0.26), "dense", 10)
    prediction(ax, (15.25, y), 1.5, [0.12, 0.2, 0.08, 0.95, 0.15, 0.3, 0.1])
    text(ax, (15.7, y + 1.52), "classes", 12)


def draw_auxiliary_head(
    ax: Axes, x: float, top: float, side: float, depth: float, bars: Sequence[float]
) -> None:
    """A Simple Auxiliary Classifier under its stage: pool and dense layer, nothing else."""
    y = 4.1
    arrow(ax, (x, top), (x, y + side / 2 + depth * 0.2 + 0.08))
    block(ax, (x, y), side, depth, WEIGHT)
    text(ax, (x, y - side / 2 - depth * 0.2 - 0.2), "FlexPool", 10, WEIGHT)
    right = x + side / 2 + depth * 0.35
    arrow(ax, (right + 0.08, y), (right + 0.36, y))
    vector(ax, (right + 0.52, y), 0.8, PRODUCT, cells=5)
    prediction(ax, (right + 0.78, y), 0.8, bars)


def draw_loss(ax: Axes, classes: Point) -> None:
    """Eq. 3 with Eq. 2 in one line, under the heads that it takes its terms from."""
    y = 1.35
    terms = [(4.25, 1, "0.1"), (6.9, 2, "0.2"), (8.75, 3, "0.7")]
    text(ax, (1.75, y), "loss", 14, LOSS, weight="bold")
    text(ax, (2.9, y), "=", 14, LOSS)
    for x, stage, weight in terms:
        text(ax, (x, y), rf"$\lambda_{stage}\,L_{stage}$", 16, LOSS)
        text(ax, (x, y - 0.5), rf"$\lambda_{stage}$ = {weight}", 10, FAINT)
    for x in (5.58, 7.85, 9.7):
        text(ax, (x, y), "+", 14, LOSS)
    text(ax, (10.75, y), r"$\rho\,R(w)$", 16, LOSS)
    text(ax, (10.75, y - 0.5), "pool_reg × Eq. 2", 10, FAINT)
    for x, top in [(4.25, 3.62), (6.9, 3.62)]:
        arrow(ax, (x, top), (x, y + 0.42), LOSS)
    # The last stage's loss is that of the network's own classifier.
    (x, top), corner = classes, 5.55
    path = [(x, top), (x, corner), (8.75, corner)]
    ax.plot(*zip(*path, strict=True), color=LOSS, linewidth=1.3, solid_joinstyle="round")
    arrow(ax, (8.75, corner), (8.75, y + 0.42), LOSS)


def draw_one_channel(ax: Axes) -> None:
    """What FlexPool does to one channel, with numbers made up for the drawing."""
    left, bottom, side = 10.5, 2.5, 1.5
    grid = np.arange(8) - 3.5
    rows, columns = np.meshgrid(grid, grid, indexing="ij")
    channel = np.exp(-((rows - 0.7) ** 2 + (columns + 0.9) ** 2) / 5) + 0.35 * np.exp(
        -((rows + 2) ** 2 + (columns - 2) ** 2) / 3
    )
    weights = np.exp(-(rows**2 + columns**2) / 9) + 0.12
    for at, values, colour in [(left, channel, MAP), (left + 2.25, weights, WEIGHT)]:
        shades = LinearSegmentedColormap.from_list("", [tint(colour, 0.92), tint(colour, 0)])
        extent = (at, at + side, bottom, bottom + side)
        ax.imshow(values, cmap=shades, extent=extent, vmin=0, zorder=1)
        ax.add_patch(Rectangle((at, bottom), side, side, fill=False, edgecolor=colour, linewidth=1))
    middle = bottom + side / 2
    text(ax, (left + 1.87, middle), "⊙", 18)
    text(ax, (left + side / 2, bottom + side + 0.24), "$x_{ijk}$", 13, MAP)
    text(ax, (left + 2.25 + side / 2, bottom + side + 0.24), "$w_{ijk}$", 13, WEIGHT)
    arrow(ax, (left + 3.9, middle), (left + 4.5, middle))
    text(ax, (left + 4.18, middle + 0.3), r"$\Sigma_{i,j}$", 12)
    ax.add_patch(
        Rectangle((left + 4.62, middle - 0.14), 0.28, 0.28, facecolor=PRODUCT, edgecolor=INK)
    )
    text(ax, (left + 5.2, middle), "$y_k$", 13, PRODUCT)


def panel(ax: Axes, corner: Point, width: float, height: float) -> None:
    """A frame round what belongs together."""
    ax.add_patch(
        FancyBboxPatch(
            corner,
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.18",
            facecolor="#f7f8fa",
            edgecolor=tint(FAINT, 0.4),
            linewidth=1,
            zorder=0,
        )
    )


def draw() -> Figure:
    """Returns the whole figure."""
    figure = Figure(figsize=(WIDTH * 0.72, HEIGHT * 0.72), facecolor=PAPER)
    ax = figure.add_axes((0, 0, 1, 1))
    y = 6.9
    draw_backbone(ax, y)
    draw_flexpool(ax, y)
    panel(ax, (0.25, 2.3), 7.65, 2.75)
    title = "Simple\nAuxiliary\nClassifiers\n(SAC)"
    text(ax, (0.5, 4.05), title, 11, ha="left", weight="bold", linespacing=1.35)
    text(ax, (0.5, 3.2), "in training only", 10, FAINT, ha="left")
    draw_auxiliary_head(ax, 2.85, y - 1.0, 0.85, 0.25, [0.2, 0.32, 0.24, 0.48, 0.16])
    draw_auxiliary_head(ax, 5.5, y - 0.85, 0.65, 0.4, [0.16, 0.24, 0.12, 0.52, 0.16])
    draw_loss(ax, (15.7, y - 0.85))
    panel(ax, (9.4, 2.3), 7.35, 2.75)
    text(ax, (9.7, 4.74), "One channel $k$ of FlexPool", 11, ha="left", weight="bold")
    text(ax, (16.5, 4.74), r"$y_k = \Sigma_{i,j}\,w_{ijk}\,x_{ijk}$", 12, PRODUCT, ha="right")
    draw_one_channel(ax)
    text(ax, (12.35, 1.52), "$w$ starts at $1/(H\\cdot W)$, as average pooling;", 10.5, ha="left")
    text(ax, (12.35, 1.12), "$R$ keeps their sum near 1 in each channel.", 10.5, ha="left")
    ax.set_xlim(0, WIDTH)
    ax.set_ylim(0.3, 0.3 + HEIGHT)
    ax.set_aspect("equal")
    ax.axis("off")
    return figure


def main() -> None:
    """Writes the figure to the file named on the command line, or to its place beside this one."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("method.svg")
    # The same file each time: no date in it, and the same names for its parts.
    mpl.rcParams.update({"svg.hashsalt": "flexpool", "mathtext.fontset": "dejavusans"})
    metadata = {"Date": None} if target.suffix == ".svg" else None
    draw().savefig(target, dpi=150, metadata=metadata)


if __name__ == "__main__":
    main()
