"""The committed reports are what the committed results say, and the page shows no other numbers."""

import shutil
from pathlib import Path

import pytest

from flexpool_jax.experiments.report import write_report

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reproduction.md"
RESULTS = sorted(path.parents[1] for path in (ROOT / "results").glob("*/report/report.md"))


def test_there_are_results():
    assert ROOT / "results/digits" in RESULTS


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.name)
def test_report_is_what_its_results_say(results, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(results, copy, ignore=shutil.ignore_patterns("report"))
    path, skipped = write_report(copy)
    assert skipped == []
    committed = results / "report"
    for name in ("report.md", "table1.csv", "table2.csv", "settings.csv", "runs.csv"):
        assert (path.parent / name).read_text() == (committed / name).read_text(), (
            f"write it again: python launch.py --mode=report --workdir={results.relative_to(ROOT)}"
        )
    # Pixels depend on the version of matplotlib; which pictures there are does not.
    assert {p.name for p in path.parent.iterdir()} == {p.name for p in committed.iterdir()}


def test_every_measured_row_of_the_page_is_from_a_report():
    reports = "\n".join((path / "report/report.md").read_text() for path in RESULTS)
    rows = [line for line in PAGE.read_text().splitlines() if "(n = " in line]
    assert rows
    for row in rows:
        assert row in reports
