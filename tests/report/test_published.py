"""The committed reports are what the committed results say, and the page's tables show no other."""

import json
import math
import re
import shutil
import statistics
from pathlib import Path

import pytest

from flexpool_jax.report.page import PAGE_FILE, write_report

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reproduction.md"
TABLES = ("table1", "table2", "settings", "runs")
RESULTS = sorted(path.parents[1] for path in (ROOT / "results").glob("*/report/report.md"))


def test_there_are_results():
    assert {"digits", "fashion_mnist", "pool_reg"} <= {path.name for path in RESULTS}


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.name)
def test_report_is_what_its_results_say(results, tmp_path):
    copy = tmp_path / results.name
    shutil.copytree(results, copy, ignore=shutil.ignore_patterns("report"))
    path, skipped = write_report(copy)
    assert skipped == []
    committed = results / "report"
    for name in (PAGE_FILE, "report.md", *(f"{name}.csv" for name in TABLES)):
        assert (path.parent / name).read_text() == (committed / name).read_text(), (
            f"write it again: python launch.py --mode=report --workdir={results.relative_to(ROOT)}"
        )
    # Pixels depend on the version of matplotlib; which pictures there are does not.
    assert {p.name for p in path.parent.iterdir()} == {p.name for p in committed.iterdir()}


def test_every_measured_row_of_the_page_is_from_a_report():
    reports = "\n".join((path / "report/report.md").read_text() for path in RESULTS)
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\|.*\(n = ", line)]
    assert rows
    for row in rows:
        assert row in reports


def test_every_row_about_the_regulariser_is_from_its_results():
    results = ROOT / "results/pool_reg"
    report = (results / "report/report.md").read_text().splitlines()
    cell = r"(\S.*?) \| "
    rows = re.findall(
        rf"^\| \**([\d.]+)\** \| (\d\d\.\d\d ± \S+) \| {cell}{cell}(\S.*?) \|$",
        PAGE.read_text(),
        re.M,
    )
    assert len(rows) == 6
    for strength, *cells in rows:
        name = "| FlexPool |" if strength == "0" else f"| FlexPool + Reg {strength} |"
        lines = [line for line in report if line.startswith("| – |") and name in line]
        shown = [accuracy for accuracy in cells[:2] if accuracy != "–"]
        assert len(lines) == len(shown)
        for line, accuracy in zip(lines, shown, strict=True):
            assert f"| {accuracy} (n = " in line
        column = "flexpool" if strength == "0" else f"flexpool+reg={strength}"
        for dataset, off in zip(("digits", "fashion_mnist"), cells[2:], strict=True):
            runs = sorted((results / dataset / column).glob("*/metrics.jsonl"))
            decimals = len(off.removesuffix(" %").partition(".")[2])
            assert off == (f"{100 * mean_off(runs):.{decimals}f} %" if runs else "–")


def mean_off(runs):
    """How far the sums of 64 channels' weights are from 1, as the page says that it is counted."""
    rows = [[json.loads(line) for line in run.read_text().splitlines()] for run in runs]
    last = [[row for row in run if row["split"] == "train"][-1] for run in rows]
    return statistics.mean(math.sqrt(row["regularizer"] / 64) for row in last)
