"""The sections of the page on which part of FlexPool has an effect: probes, weights, M1 to M8."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evidence import figures
from evidence.contrasts import (
    E1,
    LENGTHS,
    PREDICTIONS,
    Analysis,
    Finding,
    Slope,
    agreement,
)
from evidence.runs import Evidence, Probes
from evidence.words import disagreement, points, slope_disagreement
from flexpool_jax.insight.weights import weight_statistics
from flexpool_jax.pages.markdown import markdown_table
from flexpool_jax.report.analysis import Estimate, estimate, paired_difference
from flexpool_jax.report.words import signed


def changed_accuracies(probes: Probes, runs: int) -> str:
    """Returns a table of the changes of accuracy in the probes of E1's networks, in points.

    Args:
        probes: The probes of E1's networks.
        runs: The number of E1's runs.
    """
    if not probes:
        return "No run of E1 has been probed."
    changes = {
        column: [figures.changes(probe) for probe in found.values()]
        for column, found in probes.items()
    }
    names = list(dict.fromkeys(name for found in changes.values() for one in found for name in one))
    rows = [
        [name, *(_mean(one.get(name) for one in changes[c]) for c in changes)] for name in names
    ]
    return (
        "Change of test accuracy in points when the weights of the pool or the test images are "
        "changed ([probe.md](probe.md)); mean over seeds ± half of the 95 % interval. Shifts are "
        f"means over four directions.{_not_probed(probes, runs)}\n\n"
        + markdown_table(["changed", *(f"`{c}`" for c in changes)], rows)
    )


def predictions(
    evidence: Evidence, analyses: Sequence[Analysis], slope: Slope, probes: Probes
) -> str:
    """Returns a table of the predictions M1 to M8 with the differences that were found.

    Args:
        evidence: The runs.
        analyses: The analyses of all models.
        slope: How `flexpool` − `avg` changes with training.
        probes: The probes of E1's networks.
    """
    found = {finding.title: finding for one in analyses for finding in one.findings}
    unfinished = {f.title for one in analyses if one.missing for f in one.findings}
    rows = []
    for prediction in PREDICTIONS:
        title = Finding(prediction.weights, None).title
        shown = agrees = ""
        if title in found and (contrast := found[title].contrast) is not None:
            shown = points(contrast) + disagreement(found[title])
            agrees = prediction.agrees(contrast)
        expects = {"equal": "within ±0.5"}.get(prediction.expects, f"{prediction.expects} 0")
        rows.append([prediction.name, title, expects, *_ends(shown, agrees, title in unfinished)])
    shown = agrees = ""
    if slope.contrast is not None:
        shown = points(slope.contrast) + slope_disagreement(slope)
        agrees = agreement("below", slope.contrast.interval())
    is_unfinished = evidence.missing(*LENGTHS.values())
    title = "slope of `flexpool` − `avg` over log₂(epochs)"
    rows.append(["M6", title, "below 0", *_ends(shown, agrees, is_unfinished)])
    sgd, adam = (evidence.designs[name].differences("flexpool") for name in ("e6_sgd", "e1"))
    is_unfinished = evidence.missing("e6_sgd", "e1")
    title = "`flexpool` − `avg`, under SGD − under Adam"
    rows.append(["M1", title, "below 0", *_ends(*_paired(sgd, adam), is_unfinished)])
    flexpool, avg = (
        {seed: figures.changes(probe)["shift 4"] for seed, probe in probes.get(pool, {}).items()}
        for pool in ("flexpool", "avg")
    )
    title = "change by a shift of 4 pixels, `flexpool` − `avg`"
    rows.append(["M8", title, "below 0", *_ends(*_paired(flexpool, avg))])
    heads = ["", "difference", "predicted", "found", "agrees"]
    (e1,) = (one for one in analyses if one.experiment.title == E1)
    differs = any(finding.is_significant for finding in e1.findings)
    nothing_to_explain = bool(e1.findings) and not e1.missing and not differs
    return (
        "No primary contrast of E1 is significant, so there is no effect to explain. This table "
        "says how the pools compare, and not why FlexPool helps.\n\n"
        * nothing_to_explain
        + 'Most rows rest on three seeds: they suggest hypotheses and support no claim. "Agrees" '
        "compares the 95 % interval with the prediction, without correction for the number of "
        "rows: yes if the whole interval agrees, no if the whole interval contradicts it, else "
        "open. Within ±0.5, yes means that TOST passes, and no that the whole interval is "
        'outside. "Not below 0" is yes if the interval is above -0.5, and no if it is below 0. '
        "A row of which runs are missing has no verdict. M8 is about the runs that were probed; "
        'the table "What the networks use" has what the probes say about M2, M3 and M8.'
        "\n\n" + markdown_table(heads, sorted(rows, key=lambda row: row[0]))
    )


def _ends(shown: str, agrees: str, is_unfinished: bool = False) -> tuple[str, str]:
    """The last two cells of a prediction's row; ``shown`` is "" if no difference was found."""
    if not shown:
        return "runs are missing", "–"
    return shown, "runs are missing" if is_unfinished else agrees


def _paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> tuple[str, str]:
    """A difference paired by seed, and whether it is below zero; both "" without pairs."""
    if not values.keys() & baseline.keys():
        return "", ""
    found = paired_difference(values, baseline)
    return _text(found), "open" if found.interval is None else agreement("below", found.interval)


def _mean(values: Iterable[float | None]) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return "–"
    return _text(estimate(found))


def _text(mean: Estimate) -> str:
    half_width = "" if mean.half_width is None else f" ± {mean.half_width:.2f}"
    return f"{signed(mean.mean)}{half_width} (n = {mean.n})"


def _not_probed(probes: Probes, runs: int) -> str:
    """A sentence on how many of E1's runs have no probe; empty if all have one."""
    probed = sum(map(len, probes.values()))
    if probed == runs:
        return ""
    return f" {probed} of E1's {runs} runs have been probed; the others are not in this table."


def statistics_of_weights(weights: Mapping[str, Sequence[np.ndarray]], probes: Probes) -> str:
    """Returns a table of statistics of the weights of E1's networks, as means over seeds.

    Args:
        weights: By column, one array ``[H, W, C]`` for each seed.
        probes: The probes of E1's networks. The correlation with the mean activation needs the
            trained network, so it is read from them.
    """
    if not weights:
        return "No run of E1 with learned weights is there."

    def rank_one(found: Mapping[str, Any]) -> float | None:
        squares = np.square(found["singular_values"])
        return float(squares[0] / squares.sum()) if squares.any() else None

    numbers: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
        "mean of the channel sums": lambda found: found["channel_sums"]["mean"],
        "their standard deviation": lambda found: found["channel_sums"]["sd"],
        "share of negative weights": lambda found: found["negative_share"],
        "share of the deviation v in w, ‖v‖²/‖w‖²": lambda found: found["deviation_share"],
        "correlation of v with its mirror image": lambda found: found["mirror_correlation"],
        "share of ‖v‖² in V's first singular vectors": rank_one,
    }
    all_found = {
        column: [weight_statistics(w, np.ones_like(w)) for w in arrays]
        for column, arrays in weights.items()
    }
    rows = [
        [title, *(_mean(map(number, found)) for found in all_found.values())]
        for title, number in numbers.items()
    ]
    of_probes = {
        column: [probe["weights"]["activation_correlation"] for probe in by_seed.values()]
        for column, by_seed in probes.items()
        if column in weights
    }
    rows.append(
        [
            "correlation of |v| with the mean activation (probed runs only)",
            *(_mean(of_probes.get(column, [])) for column in weights),
        ]
    )
    return (
        "Statistics of the weights of E1's networks ([probe.md](probe.md)), mean over seeds ± half "
        "of the 95 % interval.\n\n"
        + markdown_table(["", *(f"`{column}`" for column in weights)], rows)
    )
