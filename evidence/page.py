"""Writes the results of docs/evidence.md as Markdown, CSV and figures."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence import figures, mechanism
from evidence.contrasts import (
    CIFAR,
    CLAIMED,
    E1,
    E4,
    E5,
    EQUIVALENT,
    EXPERIMENTS,
    LENGTHS,
    PRIMARY,
    SGD,
    WHOLE,
    Analysis,
    Finding,
    analyse,
    slope_over_length,
    verdict,
)
from evidence.mechanism import points
from evidence.model import Contrast
from evidence.runs import (
    EXTENSION,
    FIRST_SEEDS,
    Evidence,
    first_deviation,
    read_evidence,
    read_probes,
    read_weights,
)
from flexpool_jax.errors import UserError
from flexpool_jax.report import paper
from flexpool_jax.report.analysis import Estimate, estimate
from flexpool_jax.report.page import markdown_table
from flexpool_jax.report.tables import Record, write_csv
from flexpool_jax.report.words import estimate_text, p_text, signed

# By column, what `slope_over_length` returns.
Slopes = Mapping[str, tuple[Contrast | None, dict[tuple[int, int], float]]]

MARKER = (
    "<!-- Everything below is written by `python -m evidence results/evidence`; edits are lost. -->"
)
# In the README, the answer is between these two lines.
README_MARKERS = (
    "<!-- Written by `python -m evidence results/evidence --readme=README.md`; edits are lost. -->",
    "<!-- The end of the answer. -->",
)
# The head of a table's column: the power, and that the test is the one without Holm's correction.
_DETECTABLE = "detectable difference (power 80 %, p without correction)"
_ABOUT_THE_BOOTSTRAP = (
    "The bootstrap draws seeds and test images independently of each other, and thereby counts the "
    "noise of single predictions three times (Owen 2007, the pigeonhole bootstrap): its interval "
    "is too wide where this noise is most of the spread."
)
_CAPTIONS = {
    "contrasts": "Differences in test accuracy with their 95 % intervals, beside the bounds of "
    "equivalence at ±0.5 points and the smallest gain that is claimed, 1 point.",
    "weights": "Weights multiplied by H·W, so that average pooling is 1 everywhere: means over "
    "seeds, and their standard deviation over seeds. Each map has its own colour scale.",
    "perturbations": "Change of accuracy on changed test images: means over seeds with 95 % "
    "intervals; the table above has the number of seeds.",
    "length": "Differences to average pooling over the number of epochs: means over seeds with "
    "95 % intervals.",
}
# The experiments beside E1 that are in the answer, in words, and their data set in the paper.
_ABOUT = {
    E5: ("Tiny ImageNet at 32×32, batch 250 (E5)", "tiny_imagenet"),
    E4: ("Controls that change one property of FlexPool, on Fashion-MNIST (E4)", "fashion_mnist"),
    CIFAR: ("A JPEG copy of CIFAR-10 (E2, E3)", "cifar10"),
    SGD: ("Fashion-MNIST with SGD (E6)", "fashion_mnist"),
}
# The columns of the runs that are those of the paper's tables, in the order of `paper.COLUMNS`.
_PAPER_COLUMNS = ("avg", "flexpool", "flexpool+reg", WHOLE)
_LIMITS = (
    "This holds for ResNet20 on Fashion-MNIST with one-cycle Adam, batch 125 and 10 epochs, "
    "n = {n} seeds. The intervals are about other seeds on this one test set. They say nothing "
    "about other networks, other data or longer training."
)
_NO_GAIN = (
    " This does not show that there is no gain under the paper's recipe (100 epochs at batch 1000 "
    "and rate 0.1)."
)


def write_page(
    folder: Path,
    page: Path,
    *,
    readme: Path | None = None,
    failed: Sequence[str] = (),
    draws: int = 10_000,
) -> list[str]:
    """Writes the results into a page; they replace the page's earlier results.

    Args:
        folder: The folder with the runs, which holds one folder for each design.
        page: An existing Markdown file. Its text above `MARKER` is kept.
        readme: A Markdown file whose text between `README_MARKERS` is replaced by the answer.
        failed: Cells whose runs diverged, such as "e1/fashion_mnist/avg/seed-3". They count as
            failed and not as missing.
        draws: The number of draws of each bootstrap.

    Returns:
        The text of the protocol's note on E0's rates, then a line on each result that is not used.

    Raises:
        UserError: The page does not exist or is not an .md file, the README lacks the markers, the
            folder has no run of the protocol, a failed cell is not in the protocol or has a result,
            or a predictions.npz or pool_weights.npz is damaged.
    """
    if not page.is_file():
        raise UserError(f"--page={page} does not exist; it holds the protocol")
    if page.suffix != ".md":
        raise UserError(
            f"--page={page} is not an .md file; allowed: PAGE.md, with figures in PAGE/"
        )
    around = None if readme is None else _around_the_answer(readme)
    evidence = read_evidence(folder, failed)
    if not any(design.runs for design in evidence.designs.values()):
        raise UserError("; ".join([f"{folder} has no run of the protocol", *evidence.left_out[:1]]))
    answer = _write(evidence, page, draws)
    if readme is not None and around is not None:
        readme.write_text(answer.join(around), encoding="utf-8")
    return [rates_note(evidence), *evidence.left_out]


def _around_the_answer(readme: Path) -> tuple[str, str]:
    """The text of a README before and after its answer, with the markers."""
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    start, end = README_MARKERS
    before, first, rest = text.partition(start)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise UserError(f"--readme={readme} has no place for the answer: {start} {end}")
    return f"{before}{start}\n\n", f"\n\n{end}{after}"


def _write(evidence: Evidence, page: Path, draws: int) -> str:
    """Replaces everything below the page's marker, and writes figures and CSV files beside it.

    Returns the answer, with which the results begin.
    """
    folder = page.with_suffix("")
    folder.mkdir(exist_ok=True)
    analyses = [analyse(evidence, experiment, draws=draws) for experiment in EXPERIMENTS]
    e1 = evidence.designs["e1"]
    probes, e1_weights = read_probes(e1), read_weights(e1)
    slopes = {column: slope_over_length(evidence, column) for column in ("flexpool", WHOLE)}
    has_slope = any(slope for slope, _ in slopes.values())
    lengths = {column: _by_length(differences) for column, (_, differences) in slopes.items()}
    # The intervals of an unfinished experiment are so wide that they would hide the others.
    complete = [analysis for analysis in analyses if not analysis.missing]

    def picture(name: str, draw: Callable[[Any, Path], bool], data: object) -> str:
        """Draws a figure; returns its Markdown, or "" if there was nothing to draw."""
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)
        if not draw(data, path):
            return ""
        return f"\n\n![{_CAPTIONS[name]}]({folder.name}/{path.name})\n\n*{_CAPTIONS[name]}*"

    contrasts = picture("contrasts", figures.draw_contrasts, complete)
    length = picture("length", figures.draw_length, lengths if has_slope else {})
    perturbed = picture("perturbations", figures.draw_perturbations, probes)
    maps = picture("weights", figures.draw_weights, e1_weights)
    write_csv(folder / "runs.csv", _run_records(evidence))
    # The p-values of least squares agree between machines in ten digits.
    write_csv(folder / "contrasts.csv", _contrast_records(analyses), digits=9)
    changed = mechanism.changed_accuracies(probes, len(e1.runs))
    predictions = mechanism.predictions(evidence, analyses, slopes["flexpool"][0], probes)
    weights = mechanism.statistics_of_weights(e1_weights, probes)
    (e1_analysis,) = (one for one in analyses if one.experiment.title == E1)
    answer = "\n\n".join([_answer(e1_analysis), *_others(evidence, analyses, slopes)])
    by_length = "\n\n".join(_slopes_in_words(slopes))
    parts = [
        f"## Results\n\n{answer}{contrasts}",
        _progress(evidence),
        f"### E0: which rate\n\n{_rates(evidence)}",
        *(_experiment(analysis) for analysis in analyses if analysis.accuracies),
        *([f"### E6: training length\n\n{by_length}{length}"] * has_slope),
        f"### What the networks use\n\n{changed}{perturbed}",
        f"### Which part of it\n\n{predictions}",
        f"### Weights\n\n{weights}{maps}",
    ]
    absent = [analysis.experiment.title for analysis in analyses if not analysis.accuracies]
    if absent:
        listed = "\n".join(f"- {title}" for title in absent)
        parts.append(f"### Experiments without runs so far\n\n{listed}")
    if evidence.left_out:
        listed = "\n".join(f"- {entry}" for entry in evidence.left_out)
        parts.append(f"### Results that are not used\n\n{listed}")
    protocol = page.read_text(encoding="utf-8").partition(MARKER)[0].rstrip()
    text = "\n\n".join([protocol, MARKER, *parts]) + "\n"
    page.write_text(text, encoding="utf-8")
    return answer


def _answer(e1: Analysis) -> str:
    """A paragraph, and the table of the primary contrasts in the words of the protocol."""
    if e1.missing or e1.model is None:
        done = len(e1.accuracies)
        return (
            f"**No answer yet.** E1 has {done} of its {done + len(e1.missing) + len(e1.failed)} "
            "runs. The page makes no claim before all are there; what follows is what was found so "
            "far."
        )
    primary = dict(zip(PRIMARY, e1.findings, strict=False))
    rows = []
    for name, finding in primary.items():
        _, question = PRIMARY[name]
        contrast, p_value = finding.contrast, finding.adjusted
        row = [f"{name}. {question}", finding.title, _published(finding, "fashion_mnist")]
        if contrast is None or p_value is None:
            rows.append([*row, "its runs failed", *["–"] * 3])
            continue
        rows.append(
            [
                *(*row, _bracket(contrast.estimate, contrast.interval())),
                *(_p(p_value), f"{contrast.detectable():.2f}"),
                verdict(contrast, p_value) + _disagreement(finding),
            ]
        )
    heads = [
        *("", "difference", "the paper", "here, 95 % interval, in points", "p (Holm)"),
        *(_DETECTABLE, "conclusion, in the protocol's words"),
    ]
    n = len({seed for _, seed in e1.accuracies})
    paragraph = f"**Does FlexPool help? {_summary(primary)}** {_LIMITS.format(n=n)}"
    paragraph += _NO_GAIN * (not _significant(primary, 1))
    if e1.failed:
        paragraph += f" Failed runs, which are not in these numbers: {_cells(e1.failed)}."
    return f"{_wrapped(paragraph)}\n\n{markdown_table(heads, rows)}"


def _others(evidence: Evidence, analyses: Sequence[Analysis], slopes: Slopes) -> list[str]:
    """The list of the experiments beside E1 of which all runs are there, and its first line."""
    items = [
        _item(analysis)
        for analysis in analyses
        if analysis.experiment.title in _ABOUT and not analysis.missing and not analysis.failed
    ]
    if not evidence.missing(*LENGTHS.values()):
        items.append(_list("**Training length, on Fashion-MNIST (E6)**", _slopes_in_words(slopes)))
    intro = (
        "Smaller experiments, which give leads and not claims. Their differences are significant "
        "after Holm's correction where nothing else is said:"
    )
    return [_wrapped(intro), *items] if items else []


def _item(analysis: Analysis) -> str:
    """An item of the list: what was compared, and below it the differences."""
    title = analysis.experiment.title
    about, dataset = _ABOUT[title]
    # A difference of differences is in the experiment's own table alone.
    shown = [finding for finding in analysis.findings if len(finding.weights) == 2]
    head = f"**{about}**, n = {len({seed for _, seed in analysis.accuracies})} seeds."
    if title == E5:
        change, baseline = (
            statistics.fmean(analysis.of_column(column)) for column in ("avg+dropout", "avg")
        )
        head += (
            f" Dropout alone changes average pooling by {signed(change - baseline)} points, so a "
            "difference to a baseline without dropout is about two changes at once. FlexPool "
            "without dropout was not run."
        )
    if title == E4:
        shown = [finding for finding in shown if finding.is_significant]
        power = max(f.contrast.detectable() for f in analysis.findings if f.contrast is not None)
        head += (
            f" Of the {len(analysis.findings)} differences of a control to `flexpool` or `avg`, "
            f"{len(shown) or 'none'} {'is' if len(shown) < 2 else 'are'} significant after Holm's "
            f"correction; the detectable difference is {power:.2f} points (power 80 %, p without "
            "correction)."
        )
    return _list(head, [_sentence(finding, dataset) for finding in shown])


def _list(head: str, entries: Iterable[str]) -> str:
    """An item of a Markdown list that has a list of its own."""
    return "\n".join([_wrapped(head, "- "), *(_wrapped(entry, "  - ") for entry in entries)])


def _wrapped(text: str, bullet: str = "") -> str:
    """Text in lines of at most 100 characters, as an item of a list if it has a bullet."""
    indent = " " * len(bullet)
    return textwrap.fill(
        text, 100, initial_indent=bullet, subsequent_indent=indent, break_on_hyphens=False
    )


def _sentence(finding: Finding, dataset: str) -> str:
    """A difference with its interval, the paper's difference, and whether it is significant."""
    assert finding.contrast is not None
    published = _published(finding, dataset)
    paper_says = "" if published == "not given" else f" The paper: {published}."
    text = f"{finding.title}: {points(finding.contrast)}.{paper_says}"
    if not finding.is_significant:
        text += f" Not significant; detectable difference {finding.contrast.detectable():.2f}."
    return text + _disagreement(finding)


def _summary(primary: Mapping[str, Finding]) -> str:
    """Two sentences: whether a gain or a loss is shown; how large FlexPool's difference is."""
    gains, losses = _significant(primary, 1), _significant(primary, -1)
    shown = [
        f"{what} is shown for {_and(names)}"
        for what, names in (("a gain", gains), ("a loss", losses))
        if names
    ]
    contrasts = {name: f.contrast for name, f in primary.items() if f.contrast is not None}
    reach = [name for name, contrast in contrasts.items() if contrast.interval()[1] >= CLAIMED]
    claimed = "1 point, the smallest gain that the paper claims"
    size = (
        f"the interval of {'each of ' * (len(reach) > 1)}{_and(reach)} below reaches {claimed}"
        if reach
        else f"no interval of the comparisons {_and([*contrasts])} below reaches {claimed}"
    )
    first = (
        f"FlexPool differs from average pooling by {points(contrasts['P1'])}"
        if "P1" in contrasts
        else "The runs of P1 failed"
    )
    significant = [
        f"{name} ({signed(contrast.estimate)})"
        for name, contrast in contrasts.items()
        if name in gains + losses
    ]
    verb = "is" if len(significant) < 2 else "are"
    return (
        f"Under this recipe {' and '.join(shown) or 'no gain is shown'}. {first}, and {size}; "
        f"after Holm's correction {_and(significant) or 'none'} {verb} significant."
    )


def _significant(primary: Mapping[str, Finding], sign: int) -> list[str]:
    """The primary contrasts of a sign that are significant after Holm's correction."""
    return [
        name
        for name, finding in primary.items()
        if finding.contrast is not None
        and finding.is_significant
        and sign * finding.contrast.estimate > 0
    ]


def _and(names: Sequence[str]) -> str:
    """Lists names in words, e.g. "P1, P2 and P3"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _published(finding: Finding, dataset: str) -> str:
    """The paper's difference; its columns are those of the runs but for `avg+dropout`."""
    published = dict(zip(_PAPER_COLUMNS, paper.TABLE_1[dataset], strict=True))
    with_sac = zip(_PAPER_COLUMNS, paper.TABLE_2[dataset], strict=True)
    published |= {f"{column}+sac": accuracy for column, accuracy in with_sac}
    if not finding.weights.keys() <= published.keys():
        return "not given"
    return signed(sum(weight * published[c] for c, weight in finding.weights.items()))


def _disagreement(finding: Finding) -> str:
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
    check, does = ("check", "contain") if excludes else ("check without correction", "exclude")
    if len(others) == 1:
        return f" (The interval of the {others[0]}, a {check}, {does}s zero.)"
    listed = " and of the ".join(others)
    return f" (The intervals of the {listed}, {check.replace('check', 'checks')}, {does} zero.)"


def _excludes_zero(interval: tuple[float, float]) -> bool:
    return interval[0] > 0 or interval[1] < 0


def _progress(evidence: Evidence) -> str:
    rows = [
        [
            *(f"`{name}`", str(len(design.runs)), str(len(design.expected))),
            "all" if len(design.missing) == len(design.expected) else _cells(design.missing),
            _cells(design.failed),
        ]
        for name, design in evidence.designs.items()
    ]
    return (
        f"All runs below have the `source_hash` `{evidence.source or 'unknown'}`. A cell is "
        "without a result if it was not run or is not finished, and failed if it diverged.\n\n"
        + markdown_table(["design", "runs", "planned", "cells without a result", "failed"], rows)
    )


def _cells(keys: Sequence[tuple[str, int]]) -> str:
    """Lists cells in words; returns only their number if there are more than six."""
    if len(keys) > 6:
        return f"{len(keys)} cells"
    return ", ".join(f"`{column}` seed {seed}" for column, seed in keys) or "–"


def _rates(evidence: Evidence) -> str:
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


def _experiment(analysis: Analysis) -> str:
    """The table of accuracies and the table of contrasts of one model."""
    title = f"### {analysis.experiment.title}\n\n"
    cells = [*analysis.accuracies, *analysis.missing, *analysis.failed]
    rows = []
    for column in dict.fromkeys(column for column, _ in cells):
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
    text = f"{text}\n\n{_contrasts(analysis)}\n\n{_ABOUT_THE_BOOTSTRAP}"
    if min(Counter(column for column, _ in analysis.accuracies).values()) < 5:
        text += (
            " With so few seeds it also understates the spread over seeds, since it draws only "
            "from them: read the other two intervals first."
        )
    return text


def _contrasts(analysis: Analysis) -> str:
    heads = [
        *("contrast", "difference, 95 % interval", "p", "p (Holm)", "within ±0.5 (TOST)"),
        *(_DETECTABLE, "bootstrap interval", "paired t-test"),
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
                _bracket(contrast.estimate, contrast.interval()) + _disagreement(finding),
                _p(contrast.p_value),
                _p(finding.adjusted) if finding.adjusted is not None else "not in the family",
                f"{'yes' if equivalence < 0.05 else 'no'}, {p_text(equivalence)}",
                f"{contrast.detectable():.2f}",
                _bracket(None, finding.bootstrap),
                "–"
                if paired is None or paired.p_value is None
                else f"{_bracket(None, paired.interval)}, {p_text(paired.p_value)}, n = {paired.n}",
            ]
        )
    return markdown_table(heads, rows)


def _p(value: float) -> str:
    return p_text(value).removeprefix("p = ").removeprefix("p ")


def _bracket(value: float | None, interval: tuple[float, float] | None) -> str:
    shown = "" if value is None else f"{signed(value)} "
    return shown + (f"[{signed(interval[0])}, {signed(interval[1])}]" if interval else "–")


def _by_length(differences: Mapping[tuple[int, int], float]) -> dict[int, Estimate]:
    found: dict[int, list[float]] = {}
    for (epochs, _), difference in differences.items():
        found.setdefault(epochs, []).append(difference)
    return {epochs: estimate(values) for epochs, values in found.items()}


def _slopes_in_words(slopes: Slopes) -> list[str]:
    lines = []
    for column, (slope, differences) in slopes.items():
        title = f"`{column}` − `avg`, seeds 0 to 2, {len(differences)} of {3 * len(LENGTHS)} pairs"
        if slope is None:
            lines.append(f"{title}: too few runs for a slope over log₂(epochs).")
            continue
        lines.append(
            f"{title}: slope over log₂(epochs) {points(slope)} for each doubling, "
            f"{p_text(slope.p_value)}, {slope.df} degrees of freedom."
        )
    return lines


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
                    **{"tost_p": contrast.equivalence_p_value(EQUIVALENT)},
                    **{"detectable": contrast.detectable()},
                    **{"bootstrap_low": bootstrap[0], "bootstrap_high": bootstrap[1]},
                    **{"paired_p": finding.paired.p_value if finding.paired else None},
                    **{"n": finding.paired.n if finding.paired else 0},
                }
            )
    return records
