"""Numbers and differences in the words of the page and of the answer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from evidence.contrasts import Finding, Slope
from evidence.model import Contrast
from flexpool_jax.report.words import p_text, signed

# The head of a table's column.
DETECTABLE = "detectable difference: what a test without correction finds with 80 % power"


def wrapped(text: str, bullet: str = "") -> str:
    """Text in lines of at most 100 characters, as an item of a list if it has a bullet."""
    indent = " " * len(bullet)
    return textwrap.fill(
        text, 100, initial_indent=bullet, subsequent_indent=indent, break_on_hyphens=False
    )


def cells(keys: Sequence[tuple[str, int]]) -> str:
    """Lists cells in words; returns only their number if there are more than six."""
    if len(keys) > 6:
        return f"{len(keys)} cells"
    return ", ".join(f"`{column}` seed {seed}" for column, seed in keys) or "–"


def p_number(value: float) -> str:
    """A p-value for a table whose head says what it is, such as "0.032" or "< 0.001"."""
    return p_text(value).removeprefix("p = ").removeprefix("p ")


def bracket(value: float | None, interval: tuple[float, float] | None) -> str:
    """An estimate, if given, and its interval: "+0.04 [-0.09, +0.17]"; "–" without an interval."""
    shown = "" if value is None else f"{signed(value)} "
    return shown + (f"[{signed(interval[0])}, {signed(interval[1])}]" if interval else "–")


def disagreement(finding: Finding) -> str:
    """Names the checks that disagree with the model on whether the interval excludes zero."""
    assert finding.contrast is not None
    checks = {
        "bootstrap": finding.bootstrap,
        "paired t-test": finding.paired.interval if finding.paired else None,
    }
    excludes = _excludes_zero(finding.contrast.interval())
    others = [
        name
        for name, interval in checks.items()
        if interval is not None and _excludes_zero(interval) is not excludes
    ]
    if not others:
        return ""
    # That the checks are not corrected for their number matters only where they exclude zero.
    does = "contain" if excludes else "exclude"
    correction = "" if excludes else ", without correction"
    if len(others) == 1:
        return f" (As a check{correction}, the interval of the {others[0]} {does}s zero.)"
    listed = " and of the ".join(others)
    return f" (As checks{correction}, the intervals of the {listed} {does} zero.)"


def slope_disagreement(slope: Slope) -> str:
    """Names the t-test of the seeds' own slopes if it disagrees on whether zero is excluded.

    Example:
        >>> from flexpool_jax.report.analysis import estimate
        >>> slope_disagreement(Slope(Contrast(-0.2, 0.07, 8), {}, estimate([-0.1, -0.2, -0.3])))
        " (As a check, the interval of the t-test of ... contains zero: -0.45 to +0.05.)"
    """
    interval = slope.by_seed.interval if slope.by_seed is not None else None
    if slope.contrast is None or interval is None:
        return ""
    if _excludes_zero(interval) is _excludes_zero(slope.contrast.interval()):
        return ""
    does = "excludes" if _excludes_zero(interval) else "contains"
    return (
        f" (As a check, the interval of the t-test of the seeds' own slopes {does} zero: "
        f"{signed(interval[0])} to {signed(interval[1])}.)"
    )


def _excludes_zero(interval: tuple[float, float]) -> bool:
    return interval[0] > 0 or interval[1] < 0


def points(contrast: Contrast) -> str:
    """A contrast and its interval in words."""
    low, high = contrast.interval()
    return f"{signed(contrast.estimate)} points (95 % interval {signed(low)} to {signed(high)})"
