"""The protocol of docs/evidence.md and the sweeps of configs/evidence.py say the same."""

import re
from pathlib import Path

import pytest

from configs import evidence
from evidence.page import MARKER
from flexpool_jax.errors import UserError
from flexpool_jax.sweeps import grid

# The protocol; what stands below the marker is written from the runs' files.
PAGE = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text().partition(MARKER)[0]
# The runs of each experiment, the parts of one added up.
RUNS = {"e0": 14, "e1": 30, "e2": 15, "e3": 10, "e4": 15, "e5": 15, "e6": 36}


def sweep(name, rates="avg=0.003,flexpool=0.01"):
    given = "" if name in evidence.WITHOUT_RATES else f",{rates}"
    return evidence.get_config(f"{name}{given}")


def cells(name):
    return grid.expand(sweep(name), "configs", reads_data=False)


@pytest.fixture
def power():
    """The functions of the page's program."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    namespace = {}
    exec(program, namespace)
    return namespace


@pytest.mark.parametrize("experiment", RUNS)
def test_number_of_runs_is_that_of_the_page(experiment):
    names = [name for name in evidence.DESIGNS if name.split("_")[0] == experiment]
    assert sum(len(cells(name)) for name in names) == RUNS[experiment]
    rows = re.findall(r"^\| (E\d)? *\|.*\| (\d+) \|$", PAGE, re.M)
    counts, current = {}, ""
    for label, count in rows:
        current = label.lower() or current
        counts[current] = counts.get(current, 0) + int(count)
    assert counts[experiment] == RUNS[experiment]


def test_columns_of_the_page_are_those_of_the_sweeps():
    for name in ("e1", "e2", "e3", "e4", "e5"):
        row = re.findall(rf"^\| {name.upper()} \|.*\|$", PAGE, re.M)[0]
        assert tuple(re.findall(r"`([^`]+)`", row)) == evidence.DESIGNS[name]["columns"]


def test_pools_with_spatial_weights_train_at_flexpools_rate():
    spatial = {"flexpool", "flexpool_shared", "gdconv"}
    seen = set()
    for name in set(evidence.DESIGNS) - set(evidence.WITHOUT_RATES):
        for cell in cells(name):
            assert cell.config.learning_rate == (0.01 if cell.config.pool in spatial else 0.003)
            seen.add(cell.config.pool)
    assert seen == spatial | {"avg", "channel_scale", "flatten"}


def test_one_rate_for_both_is_no_part_of_a_column():
    config = sweep("e1", "flexpool=1e-2,avg=0.01")
    assert config.columns == evidence.DESIGNS["e1"]["columns"]
    assert {
        cell.config.learning_rate for cell in grid.expand(config, "configs", reads_data=False)
    } == {0.01}


def test_seeds_are_outermost_and_every_run_but_e0s_is_probed():
    seeds = [cell.config.seed for cell in cells("e1")]
    assert seeds == sorted(seeds)
    assert {name for name in evidence.DESIGNS if not sweep(name).probe} == {"e0", "e0_paper"}


def test_test_images_have_no_say_in_the_rate():
    assert {cell.config.dataset.holdout for cell in cells("e0") + cells("e0_paper")} == {0.1}
    assert {cell.config.dataset.holdout for cell in cells("e1")} == {0.0}


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("e9", "unknown design 'e9'"),
        ("e1", "e1,avg=RATE,flexpool=RATE"),
        ("e1,avg=0.01", "e1,avg=RATE,flexpool=RATE"),
        ("e1,avg=0.01,flexpool=fast", "e1,avg=RATE,flexpool=RATE"),
        ("e1,avg=0.01,avg=0.01", "e1,avg=RATE,flexpool=RATE"),
        ("e0,avg=0.01,flexpool=0.01", "allowed: e0"),
    ],
)
def test_argument_that_cannot_be_meant(argument, words):
    with pytest.raises(UserError, match=re.escape(words)):
        evidence.get_config(argument)


def test_power_table_is_what_its_program_computes(power):
    rows = re.findall(r"^\| (0\.\d\d) \|((?: [\d.]+ \|){6})$", PAGE, re.M)
    assert len(rows) == 8
    for sd, rest in rows:
        said = [cell.strip() for cell in rest.split("|")[:-1]]
        computed = [
            value
            for seeds in (6, 10)
            for value in (
                power["detectable"](float(sd), 5, seeds),
                power["detectable"](float(sd), 5, seeds, alpha=0.05 / 3),
                power["tost_power"](float(sd), 5, seeds),
            )
        ]
        assert said == [f"{value:.2f}" for value in computed]


def test_small_experiments_detect_what_the_page_says(power):
    rows = re.findall(r"\| (\d) × (\d) \| (\d\.\d\d) \| (\d\.\d\d) \|", PAGE)
    assert len(rows) == 4
    for columns, seeds, unit, at_three_tenths in rows:
        value = power["detectable"](1, int(columns), int(seeds))
        assert (unit, at_three_tenths) == (f"{value:.2f}", f"{0.3 * value:.2f}")


def test_stopping_rule_is_half_a_point_at_holms_strictest_level(power):
    (limit,) = re.findall(
        r"deviation of the model below is above (\S+) points", " ".join(PAGE.split())
    )
    assert f"{0.5 / power['detectable'](1, 5, 6, alpha=0.05 / 3):.3f}" == limit
