"""Writes one self-contained HTML page about a sweep; sweep.js displays the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flexpool_jax import layout, pages
from flexpool_jax.pages.curves import Point, mean_curve, thinned
from flexpool_jax.report import words
from flexpool_jax.report.analysis import Estimate
from flexpool_jax.report.results import FinishedRun
from flexpool_jax.report.rows import Row, Setting

PAGE_FILE = "index.html"
# The largest number of points of a curve; keeps the page at a few megabytes.
_MAX_POINTS = 120
# Files of a run that the page links to, if they exist.
_LINKED = (f"{layout.INSPECT_FOLDER}/index.html", layout.RESULT_FILE, layout.METRICS_FILE)


def write_page(
    path: Path,
    workdir: Path,
    rows: Sequence[Row],
    opening: str,
    paper_tables: Mapping[str, list[list[str]]],
    left_out: Sequence[str],
) -> None:
    """Writes the page of a report.

    Args:
        path: The path of the page, in a direct subfolder of the workdir. The page's links to the
            runs are relative.
        workdir: The folder that holds the runs.
        rows: The rows, from `rows.make_rows`.
        opening: The first paragraphs, from `words.opening`.
        paper_tables: The lines of the paper's tables by their titles, from `words.paper_lines`.
        left_out: The runs that the numbers do not include, from `words.left_out`.
    """
    data = {
        "name": workdir.name,
        "opening": [" ".join(text.replace("**", "").split()) for text in opening.split("\n\n")],
        "paper": [
            {"title": title, "heads": words.PAPER_HEADS, "lines": lines}
            for title, lines in paper_tables.items()
            if lines
        ],
        "rows": [_row(row, workdir) for row in rows],
        "left_out": left_out,
    }
    program = Path(__file__).with_name("sweep.js")
    pages.write_page(path, f"{workdir.name}: report", data, program)


def _row(row: Row, workdir: Path) -> dict[str, Any]:
    metric_heads, metric_lines = words.metric_lines(row)
    classes, class_lines = words.class_lines(row)
    return {
        "title": row.title,
        "recipe": words.recipe(row),
        # One label in the place of the columns SAC and pool.
        "heads": ["setting", *words.SETTING_HEADS[2:]],
        "lines": [
            [arm.label, *line[2:]]
            for arm, line in zip(row.settings, words.setting_lines(row), strict=True)
        ],
        "settings": [_setting(setting, row) for setting in row.run_settings],
        "metrics": {"heads": metric_heads, "lines": metric_lines},
        "classes": {"heads": ["setting", *classes], "lines": class_lines},
        "runs": [
            _run(run, setting, workdir)
            for setting in row.run_settings
            for run in setting.runs.values()
        ],
    }


def _setting(setting: Setting, row: Row) -> dict[str, Any]:
    arm = setting.arm
    assert setting.estimate is not None
    return {
        "label": arm.label,
        "accuracy": _interval(setting.estimate),
        "seeds": setting.accuracies,
        "paper": row.published(arm.column, sac=bool(arm.sac)) if arm.column else None,
        "differences": {name: _interval(found) for name, found in setting.differences.items()},
        "curves": _curves(setting),
    }


def _interval(found: Estimate) -> dict[str, float | None]:
    return {"mean": found.mean, "half_width": found.half_width}


def _curves(setting: Setting) -> dict[str, dict[str, Any]]:
    """Each curve that all runs of a setting have: the mean over the seeds, and every seed's."""
    runs = setting.runs.values()
    found = {}
    for key in next(iter(runs)).curves:
        mean = mean_curve(setting.curves(key))
        if len(mean) > 1:
            found[f"{key[0]} {words.metric_title(key[1])}"] = {
                "mean": _thinned(mean),
                "seeds": {run.seed: _thinned(run.curves[key]) for run in runs},
            }
    return found


def _thinned(curve: Mapping[int, float]) -> list[Point]:
    return thinned(list(curve.items()), _MAX_POINTS)


def _run(run: FinishedRun, setting: Setting, workdir: Path) -> dict[str, Any]:
    folder = run.folder.relative_to(workdir).as_posix()
    files_of_run = [name for name in _LINKED if (run.folder / name).is_file()]
    return {
        "setting": setting.arm.label,
        "seed": run.seed,
        "accuracy": run.accuracy,
        "best": run.best_accuracy,
        "seconds": run.seconds,
        "links": [[name, quote(f"../{folder}/{name}")] for name in files_of_run],
    }
