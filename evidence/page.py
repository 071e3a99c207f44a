"""Writes the results of docs/evidence.md as Markdown, CSV and figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from evidence import experiments, figures, mechanism
from evidence.answer import answer_of, other_experiments
from evidence.contrasts import (
    E1,
    EQUIVALENT,
    EXPERIMENTS,
    WHOLE,
    Analysis,
    analyse,
    slope_over_length,
)
from evidence.runs import Evidence, read_evidence, read_probes, read_weights
from flexpool_jax.errors import UserError
from flexpool_jax.report.tables import Record, write_csv

MARKER = (
    "<!-- Everything below is written by `python -m evidence results/evidence`; edits are lost. -->"
)
# In the README, the answer is between these two lines.
README_MARKERS = (
    "<!-- Written by `python -m evidence results/evidence --readme=README.md`; edits are lost. -->",
    "<!-- The end of the answer. -->",
)
_CAPTIONS = {
    "contrasts": "Differences in test accuracy with their 95 % intervals, beside the bounds of "
    "equivalence at ±0.5 points and the lower end of the paper's claim, 1 point.",
    "weights": "Weights multiplied by H·W, so that average pooling is 1 everywhere: means over "
    "seeds, and their standard deviation over seeds. Each map has its own colour scale.",
    "perturbations": "Change of accuracy on changed test images: means over seeds with 95 % "
    "intervals; the table above has the number of seeds.",
    "length": "Differences to average pooling over the number of epochs: means over seeds with "
    "95 % intervals.",
}


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
    return [experiments.rates_note(evidence), *evidence.left_out]


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
    has_slope = any(slope.contrast for slope in slopes.values())
    lengths = {column: slope.by_length for column, slope in slopes.items()}
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
    predictions = mechanism.predictions(evidence, analyses, slopes["flexpool"], probes)
    weights = mechanism.statistics_of_weights(e1_weights, probes)
    (e1_analysis,) = (one for one in analyses if one.experiment.title == E1)
    answer = "\n\n".join([answer_of(e1_analysis), *other_experiments(evidence, analyses, slopes)])
    by_length = "\n\n".join(experiments.slopes_in_words(slopes))
    parts = [
        f"## Results\n\n{answer}{contrasts}",
        experiments.progress(evidence),
        f"### E0: which rate\n\n{experiments.rates(evidence)}",
        *(experiments.experiment(analysis) for analysis in analyses if analysis.accuracies),
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
