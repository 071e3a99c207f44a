"""Writes a report on the runs under a folder: a page, report.md, CSV files and figures."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from flexpool_jax import files, layout
from flexpool_jax.errors import UserError
from flexpool_jax.pages.markdown import escaped, markdown_table
from flexpool_jax.report import figures, sweep_page, tables, words
from flexpool_jax.report.results import find_runs
from flexpool_jax.report.rows import Row, make_rows
from flexpool_jax.report.sweep_page import PAGE_FILE
from flexpool_jax.sweeps.grid import Cell

_FIGURES = ("figure[24].png", "settings-*.png", "curves-*.png")

# The largest number of classes for which report.md has a table with a column for each class.
_MAX_CLASSES = 20
_MAX_SLUG = 100

_TABLES = (
    ("Table 1: one classifier", "table1.csv", "figure2.png", "Figure 2", False),
    ("Table 2: with SAC", "table2.csv", "figure4.png", "Figure 4", True),
)


def write_report(
    workdir: str | os.PathLike[str], cells: Sequence[Cell] = ()
) -> tuple[Path, list[str]]:
    """Writes the report on all results under a folder.

    Args:
        workdir: The folder that is searched recursively. The report is written to its folder
            `report`, where it replaces an earlier report.
        cells: The cells of a sweep; the report names those that have not been run.

    Returns:
        The path of report.md, and a line on each result that could not be used.

    Raises:
        UserError: The folder has no readable result.json of a finished run.
    """
    workdir = Path(workdir)
    found = find_runs(workdir)
    if not found.runs:
        damaged = f"; {found.skipped[0]}" if found.skipped else ""
        raise UserError(f"--workdir={workdir} has no result.json of a finished run{damaged}")
    rows = make_rows(found.runs, cells)
    folder = workdir / layout.REPORT_FOLDER
    folder.mkdir(exist_ok=True)
    opening, left_out = words.opening(found, rows), words.left_out(found, rows, workdir)
    paper_tables = {title: words.paper_lines(rows, sac=sac) for title, *_, sac in _TABLES}
    parts = [f"# Report\n\n{opening}"]
    for title, csv_name, figure, figure_title, sac in _TABLES:
        tables.write_csv(folder / csv_name, tables.table_records(rows, sac=sac))
        lines = paper_tables[title]
        text = (
            markdown_table(words.PAPER_HEADS, lines) if lines else "No run belongs to this table."
        )
        if figures.draw_table(rows, folder / figure, title=figure_title, sac=sac):
            text += f"\n\n![{figure_title}: the accuracies of this table]({figure})"
        parts.append(f"## {title}\n\n{text}")
    tables.write_csv(folder / "settings.csv", tables.setting_records(rows))
    tables.write_csv(folder / "runs.csv", tables.run_records(rows, workdir))
    has_classes = any(setting.classes for row in rows for setting in row.settings.values())
    if has_classes:
        tables.write_csv(folder / "classes.csv", tables.class_records(rows))
    parts += [_settings(row, folder, slug) for row, slug in zip(rows, _slugs(rows), strict=True)]
    if left_out:
        listed = "\n".join(f"- {escaped(line)}" for line in left_out)
        parts.append(f"## Not in these numbers\n\n{listed}")
    sweep_page.write_page(folder / PAGE_FILE, workdir, rows, opening, paper_tables, left_out)
    path = folder / "report.md"
    text = "\n\n".join(filter(None, parts)) + "\n"
    files.write_whole(path, text.encode())
    # Otherwise files of an earlier report would look like a part of this one.
    if not has_classes:
        (folder / "classes.csv").unlink(missing_ok=True)
    for pattern in _FIGURES:
        for old in folder.glob(pattern):
            if f"]({old.name})" not in text:
                old.unlink()
    return path, [line.replace(f"{workdir}{os.sep}", "") for line in found.skipped]


def _slugs(rows: Sequence[Row]) -> list[str]:
    """Returns a name for the figures of each row: its title, in letters, digits and hyphens.

    A checksum follows where the title alone does not suffice: if it is too long, or if the titles
    of two rows differ in other characters only.
    """
    slugs = [re.sub(r"[^a-z0-9]+", "-", row.title.lower()).strip("-") for row in rows]
    return [
        slug
        if 0 < len(slug) <= _MAX_SLUG and slugs.count(slug) == 1
        else f"{slug[:_MAX_SLUG]}-{zlib.crc32(row.title.encode()):08x}"
        for slug, row in zip(slugs, rows, strict=True)
    ]


def _settings(row: Row, folder: Path, slug: str) -> str:
    """Draws a row's figures into the folder, and returns the row's section in Markdown."""
    images: list[tuple[str, str, Callable[[Row, Path], bool]]] = [
        (f"settings-{slug}.png", "every setting", figures.draw_settings),
        (f"curves-{slug}.png", "training curves", figures.draw_curves),
    ]
    drawn = [
        f"\n\n![{row.title}: {what}]({name})"
        for name, what, draw in images
        if draw(row, folder / name)
    ]
    listed = markdown_table(words.SETTING_HEADS, words.setting_lines(row)) + "".join(drawn)
    parts = [f"## {row.title}: every setting", words.recipe(row), listed, _beside_accuracy(row)]
    return "\n\n".join(filter(None, parts))


def _beside_accuracy(row: Row) -> str:
    """Returns the tables of the other metrics and of the classes; "" if no run has them."""
    parts = []
    heads, lines = words.metric_lines(row)
    if lines:
        parts.append(f"{words.BESIDE_ACCURACY}\n\n{markdown_table(heads, lines)}")
    classes, lines = words.class_lines(row)
    if len(classes) > _MAX_CLASSES:
        parts.append(f"classes.csv has the accuracy of each of the {len(classes)} classes.")
    elif lines:
        heads = ["setting", *map(escaped, classes)]
        parts.append(f"{words.OF_EACH_CLASS}\n\n{markdown_table(heads, lines)}")
    return "\n\n".join(parts)
