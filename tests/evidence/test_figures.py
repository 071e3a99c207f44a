"""The figures of docs/evidence.md show estimates and intervals where they are."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from evidence import figures
from evidence.contrasts import EXPERIMENTS, Analysis, Finding, minus
from evidence.model import Contrast
from flexpool_jax.report.analysis import estimate


@pytest.fixture
def figure(monkeypatch):
    """The figure that a function draws; it is not written to a file."""
    figure = Figure()
    monkeypatch.setattr(figures, "drawn", lambda *_: contextlib.nullcontext(figure))
    return figure


def test_each_contrast_is_a_line_over_its_interval_and_a_point(figure):
    contrasts = [Contrast(0.3, 0.1, 20), Contrast(-1.2, 0.4, 8)]
    findings = [Finding(minus("flexpool", "avg"), contrast) for contrast in contrasts]
    analysis = Analysis(EXPERIMENTS[0], {}, None, findings, [], [])
    assert figures.draw_contrasts([analysis], Path("contrasts.png"))
    lines = [line.get_xydata() for line in figure.axes[0].get_lines()]
    drawn = lines[2:]  # The first two are at zero and at the paper's claim.
    for y, (contrast, interval, point) in enumerate(
        zip(contrasts, drawn[::2], drawn[1::2], strict=True)
    ):
        ends = stats.t.interval(0.95, contrast.df, contrast.estimate, contrast.error)
        np.testing.assert_allclose(interval, [[end, y] for end in ends])
        np.testing.assert_allclose(point, [[contrast.estimate, y]])


def test_each_training_length_is_a_mean_with_its_interval(figure):
    differences = {2: [0.1, 0.3, 0.8], 5: [0.2, 0.1, -0.4], 20: [0.5]}
    found = {epochs: estimate(values) for epochs, values in differences.items()}
    assert figures.draw_length({"flexpool": found}, Path("length.png"))
    (drawn,) = figure.axes[0].containers
    line, _, (bars,) = drawn.lines
    means = [[epochs, np.mean(values)] for epochs, values in differences.items()]
    np.testing.assert_allclose(line.get_xydata(), means)
    half_widths = [stats.t.ppf(0.975, 2) * stats.sem(differences[epochs]) for epochs in (2, 5)]
    for bar, (x, mean), half in zip(bars.get_segments(), means, [*half_widths, 0], strict=True):
        np.testing.assert_allclose(bar, [[x, mean - half], [x, mean + half]])
