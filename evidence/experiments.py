"""The tables of the experiments: their runs, accuracies and contrasts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from evidence.contrasts import E1, EQUIVALENT, LENGTHS, Analysis, Slope
from evidence.runs import EXTENSION, FIRST_SEEDS, Evidence, first_deviation
from evidence.words import (
    DETECTABLE,
    bracket,
    cells,
    disagreement,
    p_number,
    points,
    slope_disagreement,
)
from flexpool_jax.pages.markdown import markdown_table
from flexpool_jax.report.analysis import estimate
from flexpool_jax.report.words import estimate_text, p_text

_ABOUT_THE_BOOTSTRAP = (
    "The bootstrap below draws seeds and test images independently. It thereby counts the noise "
    "of single predictions three times (Owen 2007, the pigeonhole bootstrap): its interval is too "
    "wide where this noise is most of the spread. With three seeds it also understates the spread "
    "over seeds, since it draws only from them: read the other two intervals first."
)


def progress(evidence: Evidence) -> str:
    """Returns a table of the designs, with the cells that have no run, and says how to read on."""
    rows = [
        [
            *(f"`{name}`", str(len(design.runs)), str(len(design.expected))),
            "all" if len(design.missing) == len(design.expected) else cells(design.missing),
            cells(design.failed),
        ]
        for name, design in evidence.designs.items()
    ]
    return (
        f"All runs below have the `source_hash` `{evidence.source or 'unknown'}`. A cell is "
        "without a result if it was not run or is not finished, and failed if it diverged.\n\n"
        + markdown_table(["design", "runs", "planned", "cells without a result", "failed"], rows)
        + f"\n\n{_ABOUT_THE_BOOTSTRAP}"
    )


def rates(evidence: Evidence) -> str:
    """Returns E0's accuracies by rate, the rates that were selected, and the literal recipe's."""
    e0, literal = evidence.designs["e0"], evidence.designs["e0_paper"]
    rows = []
    for column in e0.columns:
        pool, _, rate = column.partition("+learning_rate=")
        found = e0.accuracies(column)
        if not found:
            rows.append([f"`{pool}`", rate, "not run", "", ""])
            continue
        p = statistics.fmean(found.values()) / 100
        rows.append(
            [
                *(f"`{pool}`", rate, f"{100 * p:.2f}"),
                f"{100 * math.sqrt(p * (1 - p) / e0.images(column)):.2f}",
                ", ".join(f"{value:.2f}" for value in found.values()),
            ]
        )
    heads = ["pool", "peak rate", "validation accuracy", "standard error", "by seed"]
    lines = [markdown_table(heads, rows), rates_note(evidence)]
    for (column, seed), run in sorted(literal.runs.items()):
        trains = run.accuracy >= 85 and math.isfinite(float(run.result["final_test_loss"] or "nan"))
        lines.append(
            f"Rate 0.1 at batch 1000, `{column}`, seed {seed} (n = 1): validation accuracy "
            f"{run.accuracy:.2f} after 10 epochs. The paper's literal recipe "
            f"{'trains' if trains else 'does not train'} here."
        )
    for column, seed in literal.failed:
        lines.append(
            f"Rate 0.1 at batch 1000, `{column}`, seed {seed} (n = 1): it diverged. The paper's "
            "literal recipe does not train here."
        )
    if not literal.runs and not literal.failed:
        lines.append("Rate 0.1 at batch 1000: not run.")
    return "\n\n".join(lines)


def rates_note(evidence: Evidence) -> str:
    """The text of the protocol's dated note on the rates, without its date."""
    e0 = evidence.designs["e0"]
    if not evidence.rates:
        return f"E0 has {len(e0.runs)} of {len(e0.expected)} runs: no rate is selected yet."
    said = []
    for pool, rate in evidence.rates.items():
        means = ", ".join(
            f"{statistics.fmean(found.values()):.2f} at {column.rpartition('=')[2]}"
            for column in e0.columns
            if column.startswith(f"{pool}+") and (found := e0.accuracies(column))
        )
        said.append(f"`{pool}` has {means}, so the rule takes **{rate:g}**")
    argument = ",".join(f"{pool}={rate:g}" for pool, rate in evidence.rates.items())
    return (
        f"E0, mean validation accuracy over two seeds: {'; '.join(said)}. E1 to E5 and E6's Adam "
        f"runs are started with `{argument}`."
    )


def experiment(analysis: Analysis) -> str:
    """The table of accuracies and the table of contrasts of one model."""
    title = f"### {analysis.experiment.title}\n\n"
    planned = [*analysis.accuracies, *analysis.missing, *analysis.failed]
    rows = []
    for column in dict.fromkeys(column for column, _ in planned):
        found = analysis.of_column(column)
        without = [
            ", ".join(str(seed) for c, seed in keys if c == column) or "–"
            for keys in (analysis.missing, analysis.failed)
        ]
        mean = estimate_text(estimate(found), with_n=False) if found else "–"
        rows.append([f"`{column}`", mean, str(len(found)), *without])
    accuracy = "test accuracy, mean ± half of the 95 % interval"
    heads = ["column", accuracy, "n", "seeds without a result", "failed seeds"]
    text = title + markdown_table(heads, rows)
    if analysis.model is None:
        return f"{text}\n\nToo few runs for the model: no contrast is estimated."
    text += (
        f"\n\nModel: residual deviation {analysis.model.sd:.3f} points with {analysis.model.df} "
        "degrees of freedom."
    )
    if analysis.missing:
        text += " Cells are missing: least squares uses the others, and no claim is made."
    deviation = first_deviation(analysis.accuracies)
    if analysis.experiment.title == E1 and deviation is not None:
        text += f" Stopping rule: the residual deviation of seeds 0 to 5 is {deviation:.3f}"
        if any(seed < FIRST_SEEDS for _, seed in analysis.missing):
            text += (
                f"; seeds 6 to 9 are added if it is above {EXTENSION} once these six are complete."
            )
        elif deviation > EXTENSION:
            text += f", above {EXTENSION}, so seeds 6 to 9 are added."
        else:
            text += f", not above {EXTENSION}, so seeds 6 to 9 are not added."
    return f"{text}\n\n{_contrasts(analysis)}"


def _contrasts(analysis: Analysis) -> str:
    heads = [
        *("contrast", "difference, 95 % interval", "p", "p (Holm)", "within ±0.5 (TOST)"),
        *(DETECTABLE, "bootstrap interval", "paired t-test"),
    ]
    rows = []
    for finding in analysis.findings:
        contrast = finding.contrast
        if contrast is None:
            rows.append([finding.title, "runs are missing", *["–"] * 6])
            continue
        equivalence = contrast.equivalence_p_value(EQUIVALENT)
        paired = finding.paired
        rows.append(
            [
                finding.title,
                bracket(contrast.estimate, contrast.interval()) + disagreement(finding),
                p_number(contrast.p_value),
                p_number(finding.adjusted) if finding.adjusted is not None else "not in the family",
                f"{'yes' if equivalence < 0.05 else 'no'}, {p_text(equivalence)}",
                f"{contrast.detectable():.2f}",
                bracket(None, finding.bootstrap),
                "–"
                if paired is None or paired.p_value is None
                else f"{bracket(None, paired.interval)}, {p_text(paired.p_value)}, n = {paired.n}",
            ]
        )
    return markdown_table(heads, rows)


def slopes_in_words(slopes: Mapping[str, Slope]) -> list[str]:
    """Returns a sentence for each column: how its difference to `avg` changes with training."""
    lines = []
    for column, slope in slopes.items():
        pairs = f"{len(slope.differences)} of {3 * len(LENGTHS)} pairs"
        title = f"`{column}` − `avg`, seeds 0 to 2, {pairs}"
        if slope.contrast is None:
            lines.append(f"{title}: too few runs for a slope over log₂(epochs).")
            continue
        lines.append(
            f"{title}: slope over log₂(epochs) {points(slope.contrast)} for each doubling, "
            f"{p_text(slope.contrast.p_value)}, {slope.contrast.df} degrees of freedom."
            + slope_disagreement(slope)
        )
    return lines
