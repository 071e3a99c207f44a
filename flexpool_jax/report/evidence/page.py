"""Writes the results of docs/evidence.md as Markdown, CSV and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flexpool_jax.errors import UserError
from flexpool_jax.report.analysis import BlockModel, Contrast, Estimate, estimate
from flexpool_jax.report.evidence import figures
from flexpool_jax.report.evidence.contrasts import (
    E1,
    EXPERIMENTS,
    LENGTHS,
    PREDICTIONS,
    PRIMARY,
    WHOLE,
    Analysis,
    Finding,
    analyse,
    slope_over_length,
    verdict,
)
from flexpool_jax.report.evidence.runs import (
    POOLS,
    Evidence,
    read_evidence,
    read_probes,
    read_weights,
)
from flexpool_jax.report.page import line, p_text, signed
from flexpool_jax.report.tables import Record, write_csv

MARKER = (
    "<!-- Everything below is written by `python -m flexpool_jax.report.evidence`; "
    "edits are lost. -->"
)
# The residual deviation above which E1 is extended, see "Stopping" in the protocol.
_EXTENSION = 0.248
_LIMITS = (
    "This holds for ResNet20 on Fashion-MNIST with one-cycle Adam, batch 125 and 10 epochs. The "
    "intervals are about other seeds on this one test set. They say nothing about other networks, "
    "other data or longer training. A null would not refute a gain under the paper's recipe (100 "
    "epochs at batch 1000 and rate 0.1)."
)


def write_page(folder: Path, page: Path, *, draws: int = 10_000) -> list[str]:
    """Writes the results into a page, in the place of those that it has.

    Args:
        folder: With the runs, one folder for each design.
        page: A Markdown file, which keeps everything above its marker.
        draws: Of the bootstraps.

    Returns:
        The text of the dated note on E0's rates, and a line on each result that is not used.

    Raises:
        UserError: There is no such page, or no run.
    """
    if not page.is_file():
        raise UserError(f"--page={page} does not exist; it holds the protocol")
    evidence = read_evidence(folder)
    if not any(design.runs for design in evidence.designs.values()):
        raise UserError("; ".join([f"{folder} has no run of the protocol", *evidence.left_out[:1]]))
    _write(evidence, page, draws)
    return [rates_note(evidence), *evidence.left_out]


def _write(evidence: Evidence, page: Path, draws: int) -> None:
    """Replaces everything below the page's marker, and writes figures and CSV files beside it."""
    folder = page.with_suffix("")
    folder.mkdir(exist_ok=True)
    analyses = [analyse(evidence, experiment, draws=draws) for experiment in EXPERIMENTS]
    e1 = evidence.designs["e1"]
    drawn = {
        "contrasts": figures.draw_contrasts(analyses, folder / "contrasts.png"),
        "weights": figures.draw_weights(read_weights(e1), folder / "weights.png"),
        "perturbations": figures.draw_perturbations(
            read_probes(e1), folder / "perturbations.png", POOLS
        ),
        "length": figures.draw_length(
            {column: _by_length(evidence, column) for column in ("flexpool", WHOLE)},
            folder / "length.png",
        ),
    }
    pictures = {
        name: f"\n\n![{name}]({folder.name}/{name}.png)" if there else ""
        for name, there in drawn.items()
    }
    for name, there in drawn.items():
        if not there:
            (folder / f"{name}.png").unlink(missing_ok=True)
    write_csv(folder / "runs.csv", _run_records(evidence))
    write_csv(folder / "contrasts.csv", _contrast_records(analyses))
    parts = [
        f"## Results\n\n{_answer(analyses[0])}{pictures['contrasts']}",
        _progress(evidence),
        f"### E0: which rate\n\n{_rates(evidence)}",
        *(_experiment(analysis) for analysis in analyses),
        f"### E6: training length\n\n{_length(evidence)}{pictures['length']}",
        f"### What the networks use\n\n{_probes(evidence)}{pictures['perturbations']}",
        f"### Which part of it\n\n{_predictions(evidence, analyses)}",
        f"### Weights\n\n{_weight_statistics(evidence)}{pictures['weights']}",
    ]
    if evidence.left_out:
        listed = "\n".join(f"- {entry}" for entry in evidence.left_out)
        parts.append(f"### Results that are not used\n\n{listed}")
    protocol = page.read_text(encoding="utf-8").partition(MARKER)[0].rstrip()
    text = "\n\n".join([protocol, MARKER, *parts]) + "\n"
    page.write_text(text, encoding="utf-8")


def _answer(e1: Analysis) -> str:
    """The first paragraph: the three primary contrasts in the words of the protocol."""
    if e1.missing or e1.model is None:
        done = len(e1.accuracies)
        return (
            f"**No answer yet.** E1 has {done} of its {done + len(e1.missing)} runs. The page "
            "makes no claim before all are there; what follows is what was found so far."
        )
    seeds = len({seed for _, seed in e1.accuracies})
    sentences = [f"**Does FlexPool help? Under this recipe, with n = {seeds} seeds:**"]
    for (name, (_, question)), finding in zip(PRIMARY.items(), e1.findings, strict=False):
        assert finding.contrast is not None
        sentences.append(
            f"{name}, {finding.title}: {question} "
            f"**{verdict(finding.contrast, finding.p_value)}** "
            f"The difference is {_points(finding.contrast)}, {p_text(finding.p_value)} after "
            f"Holm's correction{_detectable(finding)}.{_disagreement(finding)}"
        )
    return " ".join([*sentences, _LIMITS])


def _points(contrast: Contrast) -> str:
    low, high = contrast.interval()
    return f"{signed(contrast.estimate)} points (95 % interval {signed(low)} to {signed(high)})"


def _detectable(finding: Finding) -> str:
    assert finding.contrast is not None
    if finding.p_value < 0.05:
        return ""
    return (
        f"; a true difference of {finding.contrast.detectable():.2f} would be found with 80 % power"
    )


def _disagreement(finding: Finding) -> str:
    """Says where a check and the model disagree about zero."""
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
    does = "holds" if excludes else "excludes"
    return f" The interval of the {' and of the '.join(others)} {does} zero."


def _excludes_zero(interval: tuple[float, float]) -> bool:
    return interval[0] > 0 or interval[1] < 0


def _progress(evidence: Evidence) -> str:
    rows = [
        [f"`{name}`", str(len(design.runs)), str(len(design.expected)), _cells(design.missing)]
        for name, design in evidence.designs.items()
    ]
    return (
        f"All runs below have the `source_hash` `{evidence.source[:16] or 'unknown'}…`. A cell is "
        "without a result if it was not run, is not finished, or failed.\n\n"
        + _table(["design", "runs", "planned", "cells without a result"], rows)
    )


def _cells(keys: Sequence[tuple[str, int]]) -> str:
    """Missing cells in words; many are counted by their number alone."""
    if len(keys) > 6:
        return f"{len(keys)} cells"
    return ", ".join(f"`{column}` seed {seed}" for column, seed in keys) or "–"


def _rates(evidence: Evidence) -> str:
    e0, paper = evidence.designs["e0"], evidence.designs["e0_paper"]
    rows = []
    for column in e0.columns:
        pool, _, rate = column.partition("+learning_rate=")
        found = e0.accuracies(column)
        if not found:
            rows.append([f"`{pool}`", rate, "not run", "", ""])
            continue
        p = float(np.mean(list(found.values()))) / 100
        images = sum(int(run.result["test_images"]) for k, run in e0.runs.items() if k[0] == column)
        rows.append(
            [
                *(f"`{pool}`", rate, f"{100 * p:.2f}"),
                f"{100 * math.sqrt(p * (1 - p) / images):.2f}",
                ", ".join(f"{value:.2f}" for value in found.values()),
            ]
        )
    heads = ["pool", "peak rate", "validation accuracy", "standard error", "by seed"]
    lines = [_table(heads, rows), rates_note(evidence)]
    for (column, seed), run in sorted(paper.runs.items()):
        trains = run.accuracy >= 85 and math.isfinite(float(run.result["final_test_loss"] or "nan"))
        lines.append(
            f"Rate 0.1 at batch 1000, `{column}`, seed {seed} (n = 1): validation accuracy "
            f"{run.accuracy:.2f} after 10 epochs. The paper's literal recipe "
            f"{'trains' if trains else 'does not train'} here."
        )
    if not paper.runs:
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
            f"{np.mean(list(e0.accuracies(column).values())):.2f} at {column.rpartition('=')[2]}"
            for column in e0.columns
            if column.startswith(f"{pool}+")
        )
        said.append(f"`{pool}` has {means}, so the rule takes **{rate:g}**")
    argument = ",".join(f"{pool}={rate:g}" for pool, rate in evidence.rates.items())
    return (
        f"E0, mean validation accuracy over two seeds: {'; '.join(said)}. E1 to E5 and E6's Adam "
        f"runs are started with `{argument}`."
    )


def _experiment(analysis: Analysis) -> str:
    """The table of accuracies and the table of contrasts of one model."""
    title = f"### {analysis.experiment.title}\n\n"
    if not analysis.accuracies:
        return f"{title}Not run."
    columns = list(dict.fromkeys(column for column, _ in analysis.accuracies))
    rows = []
    for column in columns:
        found = estimate([v for (c, _), v in analysis.accuracies.items() if c == column])
        missing = [str(seed) for c, seed in analysis.missing if c == column]
        rows.append([f"`{column}`", _interval(found), str(found.n), ", ".join(missing) or "–"])
    text = title + _table(["column", "test accuracy", "n", "seeds without a result"], rows)
    absent = sorted({column for column, _ in analysis.missing} - set(columns))
    if absent:
        text += "\n\nWithout any result: " + ", ".join(f"`{column}`" for column in absent) + "."
    if analysis.model is None:
        return f"{text}\n\nToo few runs for the model: no contrast is estimated."
    text += (
        f"\n\nModel: residual deviation {analysis.model.sd:.3f} points with {analysis.model.df} "
        "degrees of freedom."
    )
    if analysis.missing:
        text += " Cells are missing: least squares uses the others, and no claim is made."
    if analysis.experiment.title == E1:
        text += f" {_stopping(analysis, analysis.model)}"
    return f"{text}\n\n{_contrasts(analysis)}"


def _stopping(e1: Analysis, model: BlockModel) -> str:
    if e1.missing or max(seed for _, seed in e1.accuracies) > 5:
        return ""
    above = model.sd > _EXTENSION
    return (
        f"It is {'above' if above else 'not above'} {_EXTENSION}, so E1 "
        f"{'is to be extended to seeds 6 to 9' if above else 'is not extended'}."
    )


def _contrasts(analysis: Analysis) -> str:
    heads = [
        *("contrast", "difference, 95 % interval", "p", "p (Holm)", "within ±0.5 (TOST)"),
        *("detectable at 80 %", "bootstrap interval", "paired t-test"),
    ]
    rows = []
    for finding in analysis.findings:
        contrast = finding.contrast
        if contrast is None:
            rows.append([finding.title, "runs are missing", *["–"] * 6])
            continue
        equivalence = contrast.equivalence_p_value()
        paired = finding.paired
        rows.append(
            [
                finding.title,
                _bracket(contrast.estimate, contrast.interval()),
                _p(contrast.p_value),
                _p(finding.adjusted) if finding.adjusted is not None else "not in the family",
                f"{'yes' if equivalence < 0.05 else 'no'}, {p_text(equivalence)}",
                f"{contrast.detectable():.2f}",
                _bracket(None, finding.bootstrap) + _disagreement(finding),
                "–"
                if paired is None or paired.p_value is None
                else f"{_bracket(None, paired.interval)}, {p_text(paired.p_value)}, n = {paired.n}",
            ]
        )
    return _table(heads, rows)


def _p(value: float) -> str:
    return p_text(value).removeprefix("p = ").removeprefix("p ")


def _bracket(value: float | None, interval: tuple[float, float] | None) -> str:
    shown = "" if value is None else f"{signed(value)} "
    return shown + (f"[{signed(interval[0])}, {signed(interval[1])}]" if interval else "–")


def _interval(found: Estimate) -> str:
    if found.half_width is None:
        return f"{found.mean:.2f} (no interval)"
    return f"{found.mean:.2f} ± {found.half_width:.2f}"


def _by_length(evidence: Evidence, column: str) -> dict[int, Estimate]:
    _, differences = slope_over_length(evidence, column)
    return {
        length: estimate(found)
        for length, name in LENGTHS.items()
        if (found := [value for (design, _), value in differences.items() if design == name])
    }


def _length(evidence: Evidence) -> str:
    lines = []
    for column in ("flexpool", WHOLE):
        slope, differences = slope_over_length(evidence, column)
        title = f"`{column}` − `avg`, seeds 0 to 2, {len(differences)} of {3 * len(LENGTHS)} pairs"
        if slope is None:
            lines.append(f"{title}: too few runs for a slope over log₂(epochs).")
            continue
        lines.append(
            f"{title}: slope over log₂(epochs) {_points(slope)} for each doubling, "
            f"{p_text(slope.p_value)}, {slope.df} degrees of freedom."
        )
    return "\n\n".join(lines)


def _probes(evidence: Evidence) -> str:
    """Changes of accuracy in points when a network of E1 is probed, means over seeds."""
    probes = read_probes(evidence.designs["e1"])
    if not probes:
        return "No run of E1 has been probed."
    changes = {
        column: [figures.changes(probe) for probe in found.values()]
        for column, found in probes.items()
    }
    names = list(dict.fromkeys(name for found in changes.values() for one in found for name in one))
    rows = [
        [name.replace("_", " "), *(_mean(one.get(name) for one in changes[c]) for c in changes)]
        for name in names
    ]
    return (
        "Change of test accuracy in points when the weights of the pool or the test images are "
        "changed ([probe.md](probe.md)); mean over seeds ± half of the 95 % interval. Shifts are "
        "means over four directions.\n\n" + _table(["changed", *(f"`{c}`" for c in changes)], rows)
    )


def _predictions(evidence: Evidence, analyses: Iterable[Analysis]) -> str:
    """What was found about M1 to M8."""
    found = {finding.title: finding for one in analyses for finding in one.findings}
    rows = []
    for prediction in PREDICTIONS:
        title = Finding(prediction.weights, None).title
        contrast = found[title].contrast if title in found else None
        expects = {"equal": "within ±0.5"}.get(prediction.expects, f"{prediction.expects} 0")
        shown = "runs are missing" if contrast is None else _points(contrast)
        agrees = "–" if contrast is None else prediction.agrees(contrast)
        rows.append([prediction.name, title, expects, shown, agrees])
    slope, _ = slope_over_length(evidence, "flexpool")
    rows.append(
        [
            *("M6", "slope of `flexpool` − `avg` over log₂(epochs)", "below 0"),
            "runs are missing" if slope is None else _points(slope),
            "–" if slope is None else PREDICTIONS[0].agrees(slope),
        ]
    )
    probes = read_probes(evidence.designs["e1"])
    costs = [
        {seed: figures.changes(probe)["shift 4"] for seed, probe in probes.get(column, {}).items()}
        for column in ("flexpool", "avg")
    ]
    shared = costs[0].keys() & costs[1].keys()
    cost = _mean(costs[0][seed] - costs[1][seed] for seed in sorted(shared))
    title = "change by a shift of 4 pixels, `flexpool` − `avg`"
    rows.append(["M8", title, "below 0", cost if shared else "no probes", "–"])
    heads = ["", "difference", "predicted", "found", "agrees"]
    return (
        'With three seeds these are leads and not claims. "Agrees" is yes or no where the interval '
        "(for ±0.5: TOST) is on one side, else open. What probes say about M2, M3 and M8 is in the "
        f"table above.\n\n{_table(heads, sorted(rows, key=lambda row: row[0]))}"
    )


def _mean(values: Iterable[float | None]) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return "–"
    mean = estimate(found)
    half_width = "" if mean.half_width is None else f" ± {mean.half_width:.2f}"
    return f"{signed(mean.mean)}{half_width} (n = {mean.n})"


def _weight_statistics(evidence: Evidence) -> str:
    probes = read_probes(evidence.designs["e1"])
    statistics = {
        column: weights
        for column, found in probes.items()
        if (weights := [probe["weights"] for probe in found.values() if probe.get("weights")])
    }
    if not statistics:
        return "No run of E1 with learned weights has been probed."

    def rank_one(weights: Mapping[str, Any]) -> float:
        squares = np.square(weights["singular_values"])
        return float(squares[0] / squares.sum()) if squares.any() else math.nan

    rows = [
        [
            "mean of the channel sums",
            *(_mean(w["channel_sums"]["mean"] for w in f) for f in statistics.values()),
        ],
        [
            "their deviation",
            *(_mean(w["channel_sums"]["sd"] for w in f) for f in statistics.values()),
        ],
        *(
            [name.replace("_", " "), *(_mean(w[name] for w in f) for f in statistics.values())]
            for name in (
                *("negative_share", "deviation_share"),
                *("mirror_correlation", "activation_correlation"),
            )
        ),
        [
            "share of the first singular value",
            *(_mean(map(rank_one, f)) for f in statistics.values()),
        ],
    ]
    return (
        "Statistics of the weights of E1's networks ([probe.md](probe.md)), mean over seeds ± half "
        "of the 95 % interval.\n\n" + _table(["", *(f"`{column}`" for column in statistics)], rows)
    )


def _run_records(evidence: Evidence) -> list[Record]:
    return [
        {
            **{"design": name, "column": column, "seed": seed},
            **{"learning_rate": run.config.learning_rate, "accuracy": run.accuracy},
            **{"best_accuracy": run.best_accuracy, "split": run.result.get("split")},
            **{"source_hash": run.source, "seconds": run.seconds},
        }
        for name, design in evidence.designs.items()
        for (column, seed), run in sorted(design.runs.items(), key=lambda item: item[0])
    ]


def _contrast_records(analyses: Iterable[Analysis]) -> list[Record]:
    records = []
    for analysis in analyses:
        for finding in analysis.findings:
            contrast = finding.contrast
            if contrast is None:
                continue
            low, high = contrast.interval()
            bootstrap = finding.bootstrap or (None, None)
            records.append(
                {
                    **{"model": analysis.experiment.title, "contrast": finding.title},
                    **{"estimate": contrast.estimate, "low": low, "high": high},
                    **{"standard_error": contrast.error, "df": contrast.df},
                    **{"p": contrast.p_value, "p_holm": finding.adjusted},
                    **{"tost_p": contrast.equivalence_p_value()},
                    **{"detectable": contrast.detectable()},
                    **{"bootstrap_low": bootstrap[0], "bootstrap_high": bootstrap[1]},
                    **{"paired_p": finding.paired.p_value if finding.paired else None},
                    **{"n": finding.paired.n if finding.paired else 0},
                }
            )
    return records


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(map(line, [heads, ["---"] * len(heads), *rows]))
