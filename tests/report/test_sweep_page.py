"""A report's page has the report's numbers, and works in a browser."""

import json
import re
from pathlib import Path

import pytest

from flexpool_jax.report.page import write_report
from flexpool_jax.report.results import Arm
from flexpool_jax.sweeps import grid
from flexpool_jax.training.metrics import MetricsWriter
from tests.browser.browser import needs_browser, used_in_browser
from tests.sweeps.conftest import CONFIGS_DIR, small_sweep, write_run

USE_PAGE = Path(__file__).with_name("use_page.js")
HOSTILE = "</script><img src=x onerror=alert(1)>"
COLUMNS = ("avg", "flexpool", "flexpool+reg")
SEEDS = (0, 1, 2, 1003)


def accuracy(column, seed):
    return 0.9 + 0.01 * COLUMNS.index(column) + 0.001 * seed * (1 + COLUMNS.index(column))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of eleven runs and one that is missing."""
    folder = tmp_path_factory.mktemp("sweep") / "a sweep"
    cells = grid.expand(small_sweep(columns=COLUMNS, num_epochs=4, seeds=SEEDS), CONFIGS_DIR)
    for cell in cells[:-1]:
        _, column, seed = cell.name.split("/")
        path = folder / cell.name
        seed = int(seed[-1])
        write_run(path, cell.config, accuracy(column, seed))
        (path / "metrics.jsonl").unlink()
        with MetricsWriter(path, tensorboard=False) as log:
            for epoch in range(1, 5):
                loss = 1 / epoch + seed
                log.write(step=epoch, epoch=float(epoch), split="train", loss=loss)
                log.write(step=epoch, epoch=float(epoch), split="test", accuracy=epoch / 5)
        result = json.loads((path / "result.json").read_text()) | {
            "final_test_metrics": {"calibration_error": 0.02},
            "class_names": ["0", HOSTILE],
            "final_test_accuracy_per_class": [0.5, 1.0],
        }
        (path / "result.json").write_text(json.dumps(result))
    write_report(folder, cells)
    return folder / "report/index.html"


def data_of(page):
    (text,) = re.findall(r'id="data">(.*?)</script>', page.read_text(), re.S)
    return json.loads(text)


def test_the_page_has_the_numbers_of_the_report(page):
    data = data_of(page)
    report = page.with_name("report.md").read_text()
    (row,) = data["rows"]
    first, second, third = row["settings"]
    assert first["seeds"] == pytest.approx(
        {str(seed): 100 * accuracy("avg", i) for i, seed in enumerate(SEEDS)}
    )
    for found, text in (
        (second["accuracy"], "| {mean:.2f} ± {half_width:.2f} (n = 4)"),
        (third["differences"]["avgpool"], "| {mean:+.2f} ± {half_width:.2f}, p"),
    ):
        assert text.format(**found) in report
    assert first["curves"]["train loss"]["mean"][-1] == [4, 1.75]
    assert first["curves"]["train loss"]["seeds"]["2"][0] == [1, 3]
    assert first["curves"]["test accuracy in %"]["mean"][0] == [1, 20]
    assert data["left_out"] == ["No result: Digits, FlexPool + Reg 0.1, seed 1003"]
    run = row["runs"][1]
    assert (run["seed"], run["accuracy"]) == (1, pytest.approx(90.1))
    assert all((page.parent / address).is_file() for _, address in run["links"])


def test_the_page_explains_which_control_a_setting_has(page):
    dropout, reg = (
        Arm((), "flexpool", 0.1, rate).baselines["control"].title for rate in (0.25, 0.0)
    )
    assert f"control of a setting with dropout is {dropout} with the same rate" in page.read_text()
    assert reg == "FlexPool"
    assert "any other setting with Reg is the same setting without Reg" in page.read_text()


@needs_browser
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_works_in_a_browser(width, page, tmp_path):
    found = used_in_browser(page, USE_PAGE, width, tmp_path)
    assert found["titles"] == [
        "What the numbers mean", "The paper's tables", "Digits", "Not in these numbers",
    ]  # fmt: skip
    assert found["facts"].startswith("11 finished runs")
    assert (found["marks"], found["singles"]) == (3, 11)
    assert found["compared"] == ["avgpool", "control"]
    assert found["differences"].startswith("Digits: difference to the control")
    assert found["curves"] == ["test accuracy in %", "train loss"]
    assert found["first"]["label"].startswith("Digits: test accuracy in % against the epoch, mean")
    assert (found["first"]["lines"], found["first"]["faint"]) == (3, 0)
    assert (found["second"]["lines"], found["second"]["faint"]) == (2, 7)
    assert found["third"]["label"] == "Digits: train loss against the epoch, seed 2"
    assert (found["third"]["lines"], found["third"]["faint"]) == (2, 0)
    assert found["ends"] == [f"{name}2.52.252.252.5" for name in ("FlexPool", "FlexPool + Reg 0.1")]
    assert len(found["links"]) == 22
    assert found["seeds"] == ["0", "1", "2", "1003", "0", "1", "2", "1003", "0", "1", "2"]
    assert HOSTILE in found["text"]
    assert found["cut"] == []


@needs_browser
def test_equal_accuracies_and_long_labels_are_drawn_on_a_narrow_phone(tmp_path):
    columns = ("avg", "flexpool+reg+dropout")
    sweep = small_sweep(columns=columns, sac=("0.1/0.2/0.7",), num_epochs=4, seeds=(0, 1, 2))
    folder = tmp_path / "sweep"
    for cell in grid.expand(sweep, CONFIGS_DIR):
        # Their mean differs from each of the three in its last bit.
        write_run(folder / cell.name, cell.config, 356 / 359)
    write_report(folder)
    script = tmp_path / "use.js"
    cut = re.findall(r"const isCut.*?;\nfound.cut.*?;\n", USE_PAGE.read_text(), re.S)
    script.write_text("\n".join([*cut, "finish();"]))
    found = used_in_browser(folder / "report/index.html", script, 340, tmp_path)
    assert found["cut"] == []
