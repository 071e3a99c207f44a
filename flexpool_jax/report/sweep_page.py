"""Writes one self-contained HTML page about a sweep; sweep.js shows what it is given here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flexpool_jax import files
from flexpool_jax.pages import render
from flexpool_jax.report import paper, words
from flexpool_jax.report.analysis import Estimate
from flexpool_jax.report.curves import mean_curve
from flexpool_jax.report.results import Found, Run, read_curves
from flexpool_jax.report.tables import Row, Setting

PAGE_FILE = "index.html"
# What keeps the page at a few megabytes.
_MAX_POINTS = 120
# Files of a run to which the page leads, where they are there.
_LINKED = ("inspect/index.html", "result.json", "metrics.jsonl")

Points = list[tuple[int, float]]


def write_page(path: Path, workdir: Path, found: Found, rows: Sequence[Row]) -> None:
    """Writes the page of a report.

    Args:
        path: Of the page, in a folder of the workdir; links to the runs are relative to it.
        workdir: With the runs.
        found: The runs.
        rows: From `tables.make_rows`.
    """
    data = {
        "name": workdir.name,
        "opening": [
            " ".join(text.replace("**", "").split())
            for text in words.opening(found, rows).split("\n\n")
        ],
        "paper": [
            {"title": title, "heads": words.PAPER_HEADS, "lines": lines}
            for title, sac in (("Table 1: one classifier", False), ("Table 2: with SAC", True))
            if (lines := words.paper_lines(rows, sac=sac))
        ],
        "rows": [_row(row, workdir) for row in rows],
        "left_out": words.left_out(found, rows, workdir),
    }
    program = resources.files("flexpool_jax.report") / "sweep.js"
    text = render(f"{workdir.name}: report", data, program.read_text("utf-8"))
    files.write_whole(path, text.encode())


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
    published = None
    if arm.column and not row.config.dataset.holdout:
        published = paper.accuracy(row.config.dataset.name, arm.column, sac=bool(arm.sac))
    assert setting.estimate is not None
    return {
        "label": arm.label,
        "sac": bool(arm.sac),
        "accuracy": _interval(setting.estimate),
        "seeds": setting.accuracies,
        "paper": published,
        "differences": {name: _interval(found) for name, found in setting.differences.items()},
        "curves": _curves(list(setting.runs.values())),
    }


def _interval(found: Estimate) -> dict[str, float | None]:
    return {"mean": found.mean, "half_width": found.half_width}


def _curves(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The mean over seeds and each seed's points of everything that all of the runs have logged."""
    by_run = {run.seed: read_curves(run) for run in runs}
    first = next(iter(by_run.values()))
    found = {}
    for split, name in first:
        key = (split, name)
        if not all(key in curves for curves in by_run.values()):
            continue
        scale = 100 if name.endswith("accuracy") else 1
        seeds = {
            seed: {at: scale * value for at, value in curves[key].items()}
            for seed, curves in by_run.items()
        }
        mean = mean_curve(list(seeds.values()))
        if len(mean) > 1:
            found[f"{split} {words.metric_title(name)}"] = {
                "mean": _thinned(mean),
                "seeds": {seed: _thinned(points) for seed, points in seeds.items()},
            }
    return found


def _thinned(curve: Mapping[int, float]) -> Points:
    """Evenly chosen points with six digits, the last among them."""
    points = [(epoch, float(f"{value:.6g}")) for epoch, value in curve.items()]
    step = -(-len(points) // _MAX_POINTS)
    return points[::-1][::step][::-1]


def _run(run: Run, setting: Setting, workdir: Path) -> dict[str, Any]:
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
