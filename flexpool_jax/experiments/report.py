"""Writes a report on the runs under a folder: report.md, CSV files and figures, in DIR/report/."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from flexpool_jax.errors import UserError
from flexpool_jax.experiments import curves, figures, paper, records, tables
from flexpool_jax.experiments.grid import Cell
from flexpool_jax.experiments.results import Arm, Found, find_runs
from flexpool_jax.experiments.statistics import Estimate
from flexpool_jax.experiments.tables import Comparisons, Row, avgpool_of, without_sac

FOLDER = "report"
_WRITTEN = ("report.md", "*.csv", "figure[24].png", "settings-*.png", "curves-*.png")

_TABLES = (
    ("Table 1: one classifier", "table1.csv", "figure2.png", "Figure 2", False),
    ("Table 2: with SAC", "table2.csv", "figure4.png", "Figure 4", True),
)


def write_report(
    workdir: str | os.PathLike[str], cells: Sequence[Cell] = ()
) -> tuple[Path, list[str]]:
    """Writes the report on all results under a folder.

    Args:
        workdir: Searched whole. The report goes to its folder `report`, in the place of an earlier.
        cells: What a sweep asks for: what of it has not been run is then said to be missing.

    Returns:
        The path of report.md, and a line on each result that could not be used.

    Raises:
        UserError: There is no result to report on.
    """
    workdir = Path(workdir)
    found = find_runs(workdir)
    if not found.runs:
        damaged = f"; {found.skipped[0]}" if found.skipped else ""
        raise UserError(f"--workdir={workdir} has no result.json of a finished run{damaged}")
    rows = tables.make_rows(found.runs, cells)
    comparisons = Comparisons(rows)
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)
    for pattern in _WRITTEN:
        # What an earlier report had and this one has not must not pass for a part of it.
        for path in folder.glob(pattern):
            path.unlink()
    parts = [_opening(found, comparisons)]
    for title, csv_name, figure, figure_title, sac in _TABLES:
        records.write_csv(folder / csv_name, records.of_table(rows, comparisons, sac=sac))
        text = _table(rows, comparisons, sac=sac)
        if figures.draw_table(rows, folder / figure, title=figure_title, sac=sac):
            text += f"\n\n![{figure_title}: the accuracies of this table]({figure})"
        parts.append(f"## {title}\n\n{text}")
    records.write_csv(folder / "settings.csv", records.of_settings(rows, comparisons))
    records.write_csv(folder / "runs.csv", records.of_runs(rows, workdir))
    for row in rows:
        parts.append(_settings(row, comparisons, folder))
    parts.append(_left_out(found, rows, workdir))
    path = folder / "report.md"
    path.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    return path, [line.replace(f"{workdir}{os.sep}", "") for line in found.skipped]


def _opening(found: Found, comparisons: Comparisons) -> str:
    devices = Counter(run.device for run in found.runs)
    versions = Counter(run.versions for run in found.runs)
    hours = sum(run.seconds for run in found.runs) / 3600
    split, intervals = "the test split", "not how far another test split would"
    if any(run.config.dataset.holdout for run in found.runs):
        split += ", or the held-out images that a row names"
        intervals += "; but each seed holds out other images"
    text = f"""\
# Report

{len(found.runs)} finished runs, {hours:.1f} hours of training, on {_listed(devices)}; with
{_listed(versions)}.

Accuracies are those of the **last epoch** on {split},
in per cent: the mean over n seeds ± half of its 95 % interval (Student's t). The best epoch's is
higher by design, since it is chosen by looking at the same images, and is given for information in
the lists below. One seed has no interval. Differences are paired by seed: same order of examples,
same draws; their p-values are those of the paired t-test. The intervals say how far seeds differ,
{intervals}."""
    if not comparisons.count:
        return text
    return f"""\
{text}

{comparisons.count} differences are tested in this report. Were none of them real, about
{0.05 * comparisons.count:.1f} would be expected to have p < 0.05. An asterisk marks those that keep
p < 0.05 after Holm's correction for that number; p is shown without it."""


def _listed(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{name} ({count} runs)" for name, count in counts.items())


def _table(rows: Sequence[Row], comparisons: Comparisons, *, sac: bool) -> str:
    """The paper's table, three lines a row."""
    arms = {
        (i, column): tables.table_arms(row, column, sac=sac)
        for i, row in enumerate(rows)
        for column in paper.COLUMNS
    }
    if not any(arms.values()):
        return "No run belongs to this table."
    lines = [_line(["data set", "", *paper.COLUMNS]), _line(["---"] * (len(paper.COLUMNS) + 2))]
    for i, row in enumerate(rows):
        cells = [(column, arms[i, column]) for column in paper.COLUMNS]
        lines.append(_line([row.title, "here", *(_measured(row, found) for _, found in cells)]))
        published = [paper.accuracy(row.config.dataset.name, c, sac=sac) for c in paper.COLUMNS]
        if any(published) and not row.config.dataset.holdout:
            lines.append(_line(["", "paper", *(f"{value:.2f}" for value in published)]))
        else:
            lines.append(_line(["", "paper", *["not in it"] * len(published)]))
        differences = [
            _difference(row, found[0], avgpool_of(found[0]), comparisons)
            if len(found) == 1 and row.runs.get(found[0])
            else "–"
            for _, found in cells
        ]
        lines.append(_line(["", "difference to AvgPool", *differences]))
    return "\n".join(lines)


def _measured(row: Row, arms: Sequence[Arm]) -> str:
    """What a cell says of its runs."""
    if len(arms) > 1:
        return f"{len(arms)} settings, see below"
    found = row.estimate(arms[0]) if arms else None
    if found is None:
        return "not run"
    missing = row.missing(arms[0])
    remark = f"; without seed {', '.join(map(str, missing))}" if missing else ""
    return f"{_estimate(found)}{remark}"


def _estimate(found: Estimate) -> str:
    if found.half_width is None:
        return f"{found.mean:.2f} (n = 1, no interval)"
    if not found.half_width:
        return f"{found.mean:.2f} (n = {found.n}, all alike)"
    return f"{found.mean:.2f} ± {found.half_width:.2f} (n = {found.n})"


def _difference(row: Row, arm: Arm, baseline: Arm, comparisons: Comparisons) -> str:
    found = row.difference(arm, baseline)
    if found is None:
        return "–" if arm == baseline else "nothing to pair with"
    # Without the minus that rounding leaves to a zero.
    mean = f"{round(found.mean, 2) + 0.0:+.2f}"
    if found.half_width is None:
        return f"{mean} (one pair, no interval)"
    if found.p_value is None:
        return f"{mean} ({found.n} pairs, all alike)"
    pairs = "" if found.n == len(row.accuracies(arm)) else f" ({found.n} pairs)"
    p_value = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"
    text = f"{mean} ± {found.half_width:.2f}, {p_value}{pairs}"
    adjusted = comparisons.adjusted(row, arm, baseline)
    return f"{text} *" if adjusted is not None and adjusted < 0.05 else text


def _settings(row: Row, comparisons: Comparisons, folder: Path) -> str:
    """Every arm of a row in a line of its own, what they have in common, and the curves."""
    heads = ["SAC", "pool", "accuracy", "best epoch", "to AvgPool", "to one classifier"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for arm in row.arms:
        best = [run.best_accuracy for run in row.runs.get(arm, {}).values()]
        lines.append(
            _line(
                [
                    "/".join(f"{weight:g}" for weight in arm.sac) or "–",
                    _described(arm),
                    _measured(row, [arm]),
                    f"{sum(best) / len(best):.2f}" if best else "–",
                    *(
                        _difference(row, arm, baseline, comparisons) if best else "–"
                        for baseline in (avgpool_of(arm), without_sac(arm))
                    ),
                ]
            )
        )
    slug = re.sub(r"[^a-z0-9]+", "-", row.title.lower()).strip("-")
    images = [
        (f"settings-{slug}.png", "every setting", figures.draw_settings),
        (f"curves-{slug}.png", "training curves", curves.draw_curves),
    ]
    drawn = [
        f"\n\n![{row.title}: {what}]({name})"
        for name, what, draw in images
        if draw(row, folder / name)
    ]
    listed = "\n".join(lines)
    return f"## {row.title}: every setting\n\n{_recipe(row)}\n\n{listed}{''.join(drawn)}"


def _described(arm: Arm) -> str:
    values = [f"{arm.pool_reg:g} × Eq. 2"] * (arm.pool_reg > 0)
    values += [f"dropout {arm.dropout_rate:g}"] * (arm.dropout_rate > 0)
    return arm.title + (f" ({', '.join(values)})" if values else "")


def _recipe(row: Row) -> str:
    """What all runs of a row have in common, in words."""
    config = row.config
    size = config.dataset.image_size
    augment = [
        "flips" * bool(config.augment.flip),
        f"scaling {config.augment.scale[0]:g} to {config.augment.scale[1]:g}"
        * (tuple(config.augment.scale) != (1, 1)),
        f"crops of {config.augment.crop} pixels of padding" * bool(config.augment.crop),
    ]
    return (
        f"{config.model}, {f'{size}×{size} pixels' if size else 'images as the data set has them'}"
        f", {config.num_epochs} epoch{'s' * (config.num_epochs > 1)}, "
        f"{config.batch_size} images a step, "
        f"{config.optimizer.name} with learning rate {config.learning_rate:g} ({config.schedule}), "
        f"weight decay {config.optimizer.weight_decay:g}, {config.dtype}; "
        f"augmentation: {', '.join(filter(None, augment)) or 'none'}."
    )


def _left_out(found: Found, rows: Iterable[Row], workdir: Path) -> str:
    """Names what is not in the numbers above: damaged, unfinished and missing runs."""
    lines = [f"- Skipped: {line.replace(f'{workdir}{os.sep}', '')}" for line in found.skipped]
    lines += [f"- Begun, not finished: {_relative(path, workdir)}" for path in found.unfinished]
    for row in rows:
        for arm in row.arms:
            missing = sorted(row.expected.get(arm, set()) - row.runs.get(arm, {}).keys())
            if missing:
                sac = f", SAC {'/'.join(f'{w:g}' for w in arm.sac)}" if arm.sac else ""
                seeds = ", ".join(map(str, missing))
                lines.append(f"- Not run: {row.title}, {_described(arm)}{sac}, seed {seeds}")
    return "## Not in these numbers\n\n" + "\n".join(lines) if lines else ""


def _relative(path: Path, workdir: Path) -> str:
    return path.relative_to(workdir).as_posix()


def _line(cells: Iterable[str]) -> str:
    # A title may hold the path of a folder, and that may hold anything.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
