"""The look of every figure, and how a figure is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure

from flexpool_jax import files

INK, FAINT = "#1f2933", "#8b96a3"
# The colours of the columns of the paper's tables, then those of further settings.
COLOURS = (
    *("#5f6b7a", "#2f7fb5", "#e0752d", "#7d5ba6"),
    *("#3a9278", "#b3414a", "#b59020", "#6aa6d6", "#d28fb8", "#4d4d4d"),
)
_STYLE = Path(__file__).with_name("figures.mplstyle")


@contextlib.contextmanager
def drawn(
    path: Path, width: float, height: float, changes: Mapping[str, Any] | None = None
) -> Iterator[Figure]:
    """Yields a figure to draw on, and writes it as a whole PNG when the block ends.

    The file does not name matplotlib's version, so that the same numbers result in the same file.

    Args:
        path: The path of the PNG.
        width: The width in inches.
        height: The height in inches.
        changes: Parameters of matplotlib that override those of figures.mplstyle.
    """
    with style.context([_STYLE, dict(changes or {})]):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with files.writing_whole(Path(path)) as file:  # A notebook may give a text.
            figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
