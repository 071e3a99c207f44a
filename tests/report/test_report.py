"""A report says what the results say, and where it knows nothing it says that."""

import contextlib
import csv
import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from configs import lambda_ablation, paper_tables, pools
from flexpool_jax import configuration
from flexpool_jax.errors import UserError
from flexpool_jax.report import figures
from flexpool_jax.report.analysis import holm
from flexpool_jax.report.page import write_report
from flexpool_jax.report.results import Arm, Found, find_runs
from flexpool_jax.report.rows import make_rows
from flexpool_jax.report.tables import write_csv
from flexpool_jax.report.words import recipe
from flexpool_jax.sweeps import grid
from tests.sweeps.conftest import CONFIGS_DIR, small_sweep, write_run

AVG, FLEXPOOL = "digits/avg", "digits/flexpool"


def accuracy_of(cell):
    """Some accuracy that depends on the cell alone."""
    column, seed = cell.name.split("/")[1:]
    return 0.90 + 0.001 * (sum(map(ord, column)) % 40) + 0.002 * (int(seed[-1]) * 7 % 5)


def tables_of(path):
    """The rows of every Markdown table of a file, by the heading they stand under."""
    tables = {}
    for part in path.read_text().split("\n## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        tables[part.splitlines()[0]] = rows[2:]
    return tables


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_table_holds_means_intervals_and_paired_tests(write_sweep):
    sweep = small_sweep(datasets=("fashion_mnist",), num_epochs=2, seeds=(0, 1, 2, 3, 4))
    accuracies = {}

    def accuracy(cell):
        value = accuracy_of(cell) + 0.001 * np.random.default_rng(len(accuracies)).normal()
        accuracies.setdefault(cell.name.split("/")[1], []).append(100 * value)
        return value

    folder = write_sweep(sweep, accuracy)
    path, skipped = write_report(folder)
    assert skipped == []
    tables = tables_of(path)
    here, paper, difference = tables["Table 1: one classifier"]
    assert here[0] == "Fashion-MNIST"
    assert paper[2:] == ["91.38", "92.35", "93.48", "93.98"]
    assert difference[2] == "–"
    columns = ["avg", "flexpool", "flexpool+reg", "flexpool+reg+dropout"]
    for i, column in enumerate(columns, start=2):
        values = accuracies[column]
        half = stats.t.ppf(0.975, 4) * stats.sem(values)
        assert here[i] == f"{np.mean(values):.2f} ± {half:.2f} (n = 5)"
    for i, column in enumerate(columns[1:], start=3):
        test = stats.ttest_rel(accuracies[column], accuracies["avg"])
        shown, p_value = re.fullmatch(r"(\S+) ± \S+, (p .*?)( \*)?", difference[i]).groups()[:2]
        mean = np.mean(np.subtract(accuracies[column], accuracies["avg"]))
        assert shown == f"{mean:+.2f}"
        assert p_value == ("p < 0.001" if test.pvalue < 0.001 else f"p = {test.pvalue:.3f}")
    assert "No run belongs to this table." in path.read_text()
    assert "This report tests 4 differences" in path.read_text()
    # Each of the 20 runs took 36 seconds.
    assert "20 finished runs, 0.2 hours of training" in path.read_text()
    record = read_csv(path.parent / "table1.csv")[1]
    assert float(record["accuracy"]) == pytest.approx(np.mean(accuracies["flexpool"]))
    assert (record["column"], record["paper"], record["n"]) == ("FlexPool", "92.35", "5")


def test_headline_is_the_last_epoch_not_the_best(tmp_path):
    cells = grid.expand(small_sweep(columns=("avg",), num_epochs=1, seeds=(0, 1)), CONFIGS_DIR)
    for cell, best in zip(cells, (0.95, 0.92), strict=True):
        write_run(tmp_path / cell.name, cell.config, 0.91, best)
    path, _ = write_report(tmp_path)
    tables = tables_of(path)
    assert tables["Table 1: one classifier"][0][2] == "91.00 (n = 2, all alike)"
    assert tables["Digits: every setting"][0][2:4] == ["91.00 (n = 2, all alike)", "93.50"]


def test_missing_cells_and_seeds_say_so(write_sweep):
    folder = write_sweep(small_sweep(num_epochs=1, seeds=(0, 1, 2)), accuracy_of)
    for seed in range(3):
        (folder / f"digits/flexpool+reg/seed-{seed}/result.json").unlink()
    (folder / FLEXPOOL / "seed-1/result.json").unlink()
    here, paper, difference = tables_of(write_report(folder)[0])["Table 1: one classifier"]
    assert here[3].endswith("(n = 2); without seed 1")
    assert difference[3].endswith("(2 pairs, all alike)")
    assert (here[4], difference[4]) == ("not run", "–")
    assert paper[2:] == ["not in it"] * 4
    text = (folder / "report/report.md").read_text()
    assert "- Begun, not finished: digits/flexpool/seed-1" in text


def test_pairs_are_counted_where_the_baseline_lacks_a_seed(write_sweep):
    sweep = small_sweep(num_epochs=1, columns=("avg", "flexpool"), seeds=(0, 1, 2, 3))
    accuracies = iter((0.90, 0.92, 0.91, 0.94, 0.90, 0.95, 0.92, 0.93))
    folder = write_sweep(sweep, lambda cell: next(accuracies))
    (folder / AVG / "seed-1/result.json").unlink()
    *_, difference = tables_of(write_report(folder)[0])["Table 1: one classifier"]
    assert difference[3].endswith(" (3 pairs)")


def test_sweep_tells_what_has_not_been_run_at_all(write_sweep):
    run = small_sweep(num_epochs=1, columns=("avg",), seeds=(0, 1))
    asked = small_sweep(num_epochs=1, datasets=("digits", "cifar10"), seeds=(0, 1, 2))
    folder = write_sweep(run, accuracy_of)
    path, _ = write_report(folder, grid.expand(asked, CONFIGS_DIR))
    rows = tables_of(path)["Table 1: one classifier"]
    assert [rows[0][0], rows[3][0]] == ["Digits", "CIFAR-10"]
    assert rows[0][2].endswith("(n = 2); without seed 2")
    assert rows[0][3:] == ["not run"] * 3
    assert rows[3][2:] == ["not run"] * 4
    assert rows[4][2:] == ["91.63", "91.91", "91.87", "92.32"]
    assert "- No result: Digits, AvgPool, seed 2" in path.read_text()


def test_report_on_a_sweep_needs_neither_its_weights_nor_its_superclasses(tmp_path):
    sweep = small_sweep(num_epochs=1, columns=("avg", "flexpool"))
    sweep.overrides = (
        "init_from=/nowhere/a.safetensors superclass.epochs=1 superclass.mapping=/nowhere/b.json"
    )
    cells = grid.expand(sweep, CONFIGS_DIR, tmp_path, reads_data=False)
    # As training does, which reads these numbers from the weights' file.
    cells[0].config.dataset.mean, cells[0].config.dataset.std = (0.5,), (0.25,)
    write_run(tmp_path / cells[0].name, cells[0].config, 0.9)
    found, _ = grid.expand(sweep, CONFIGS_DIR, tmp_path, reads_data=False)
    assert found.config.dataset.mean == (0.5,)
    path, _ = write_report(tmp_path, [found])
    assert "No result" not in path.read_text()


DAMAGE = {
    "no config": (lambda result: json.dumps(result | {"config": None}), "no config"),
    "no field": (lambda result: json.dumps(result | {"config": {"seed": 1}}), "lacks a field"),
    "text": (lambda result: json.dumps(result | {"final_test_accuracy": "0.9"}), "'0.9'"),
    "null": (lambda result: json.dumps(result | {"final_test_accuracy": None}), "None"),
    "true": (lambda result: json.dumps(result | {"best_test_accuracy": True}), "True"),
    "per cent": (lambda result: json.dumps(result | {"final_test_accuracy": 91.0}), "91.0"),
    "nan": (lambda result: json.dumps(result | {"final_test_accuracy": float("nan")}), "nan"),
    "deep": (lambda result: "[" * 100_000, "damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_results_are_named_and_left_out(damage, write_sweep):
    folder = write_sweep(
        small_sweep(num_epochs=1, columns=("avg",), seeds=(0, 1)), lambda cell: 0.9
    )
    path = folder / AVG / "seed-1/result.json"
    spoil, words = DAMAGE[damage]
    path.write_text(spoil(json.loads(path.read_text())))
    report, skipped = write_report(folder)
    assert len(skipped) == 1
    assert f"{AVG}/seed-1/result.json" in skipped[0]
    assert words in skipped[0]
    assert f"- Skipped: {skipped[0]}" in report.read_text()
    assert tables_of(report)["Table 1: one classifier"][0][2] == "90.00 (n = 1, no interval)"


def test_no_field_of_a_result_is_trusted(write_sweep):
    folder = write_sweep(small_sweep(num_epochs=1, columns=("avg",)), lambda cell: 0.9)
    path = folder / AVG / "seed-0/result.json"
    result = json.loads(path.read_text())
    for field in configuration.FIELDS:
        *groups, last = field.split(".")
        for junk in ({}, None, -1, "?\n"):
            spoilt = json.loads(path.read_text())
            group = spoilt["config"]
            for name in groups:
                group = group[name]
            group[last] = junk
            (folder / "result.json").write_text(json.dumps(spoilt))
            found = find_runs(folder)
            assert len(found.runs) + len(found.skipped) == 2, field
            if not isinstance(junk, str):
                assert len(found.skipped) == 1, field
    (folder / "result.json").unlink()
    others = set(result) - {"config", "final_test_accuracy", "best_test_accuracy"}
    for junk in (None, {}, "x"):
        path.write_text(json.dumps(result | dict.fromkeys(others, junk)))
        assert write_report(folder)[1] == []


def test_same_run_twice_counts_once(write_sweep):
    folder = write_sweep(small_sweep(num_epochs=1, columns=("avg",)), accuracy_of)
    (cell,) = grid.expand(small_sweep(num_epochs=1, columns=("avg",)), CONFIGS_DIR)
    write_run(folder / "zz-copy", cell.config, 0.5)
    path, skipped = write_report(folder)
    assert "zz-copy" in skipped[0]
    assert len(read_csv(path.parent / "runs.csv")) == 1
    assert "50.00" not in tables_of(path)["Table 1: one classifier"][0][2]


def test_runs_on_other_data_are_named_and_left_out(write_sweep):
    sweep = small_sweep(num_epochs=1, columns=("avg", "flexpool"), seeds=(0, 1))
    folder = write_sweep(sweep, accuracy_of)
    for seed in range(2):
        edit_result(folder / AVG / f"seed-{seed}", data_digest=f"draw of seed {seed}")
    edit_result(folder / FLEXPOOL / "seed-0", data_digest="draw of seed 0")
    edit_result(folder / FLEXPOOL / "seed-1", data_digest="more images")
    shutil.copytree(folder / AVG / "seed-0", folder / "zz-again")
    edit_result(folder / "zz-again", data_digest="more images")
    path, skipped = write_report(folder)
    assert skipped == [
        f"{FLEXPOOL}/seed-1: trained on other data than {AVG}/seed-1",
        f"zz-again: trained on other data than {AVG}/seed-0",
    ]
    here, _, difference = tables_of(path)["Table 1: one classifier"]
    assert here[2].endswith("(n = 2)")
    assert difference[3].endswith("(one pair, no interval)")


def test_seeds_share_their_data_unless_they_draw_the_test_split(write_sweep):
    folder = write_sweep(small_sweep(num_epochs=1, columns=("avg",), seeds=(0, 1)), accuracy_of)
    for seed in range(2):
        edit_result(folder / AVG / f"seed-{seed}", data_digest=str(seed), test_split="drawn")
    path, skipped = write_report(folder)
    assert skipped == []
    text = " ".join(path.read_text().split())
    assert "on the test split (drawn by the seed if a data set has none), in per cent" in text
    assert "where the seed draws the test split, they include that too" in text
    for seed in range(2):
        edit_result(folder / AVG / f"seed-{seed}", data_digest=str(seed), test_split="official")
    path, skipped = write_report(folder)
    assert skipped == [f"{AVG}/seed-1: trained on other data than {AVG}/seed-0"]
    assert "drawn by the seed" not in path.read_text()


def test_most_runs_decide_which_data_count(write_sweep):
    columns = ("avg", "flexpool", "flexpool+reg")
    folder = write_sweep(small_sweep(num_epochs=1, columns=columns, seeds=(0, 1)), accuracy_of)
    for path in folder.glob("digits/*/seed-*"):
        edit_result(path, data_digest="images", test_split="official")
    edit_result(folder / AVG / "seed-0", data_digest="fewer images")
    # Copies of one run do not outvote the others.
    for i in range(9):
        shutil.copytree(folder / AVG / "seed-0", folder / f"digits/avg/copy-{i}")
    path, skipped = write_report(folder)
    copies = [f"copy-{i}" for i in range(9)]
    assert skipped == [
        f"{AVG}/{name}: trained on other data than {AVG}/seed-1" for name in (*copies, "seed-0")
    ]
    assert tables_of(path)["Table 1: one classifier"][0][2].endswith("without seed 0")
    for column in ("flexpool", "flexpool+reg"):
        edit_result(folder / f"digits/{column}/seed-0", data_digest="fewer images")
    _, skipped = write_report(folder)
    assert [line.split(":")[0] for line in skipped if "other data" in line] == [
        f"digits/{column}/seed-1" for column in columns
    ]


def test_runs_that_do_not_record_their_data_are_compared(write_sweep):
    sweep = small_sweep(num_epochs=1, columns=("avg", "flexpool"))
    folder = write_sweep(sweep, accuracy_of)
    edit_result(folder / AVG / "seed-0", data_digest="images")
    path, skipped = write_report(folder)
    assert skipped == []
    assert len(read_csv(path.parent / "runs.csv")) == 2


def test_finished_run_of_a_named_version_is_that_of_the_sweeps_cell(tmp_path):
    name = "food101/small-2.x:2.0.0"
    (cell,) = grid.expand(small_sweep(columns=("avg",), num_epochs=1), CONFIGS_DIR)
    cell.config.dataset.name = name
    write_run(tmp_path / "run", cell.config, 0.9)
    edit_result(tmp_path / "run", dataset=name)
    path, _ = write_report(tmp_path, [cell])
    assert "No result" not in path.read_text()
    assert tables_of(path)["Table 1: one classifier"][0][0] == name
    edit_result(tmp_path / "run", dataset="<b>*mine*")
    path, _ = write_report(tmp_path)
    assert tables_of(path)["Table 1: one classifier"][0][0] == "_b__mine_"


def test_different_recipes_are_never_averaged(tmp_path):
    for epochs, value in ((1, 0.8), (2, 0.9)):
        sweep = small_sweep(columns=("avg",), num_epochs=epochs)
        (cell,) = grid.expand(sweep, CONFIGS_DIR)
        write_run(tmp_path / str(epochs), cell.config, value)
    rows = tables_of(write_report(tmp_path)[0])["Table 1: one classifier"]
    assert {row[0]: row[2] for row in rows if row[0]} == {
        "Digits (num_epochs 1)": "80.00 (n = 1, no interval)",
        "Digits (num_epochs 2)": "90.00 (n = 1, no interval)",
    }


def test_recipe_says_at_which_size_a_network_was_trained(tmp_path):
    # With image_size 0, digits are trained at their default of 32 pixels and stored at 8.
    sizes = {0: "images of the data set's default size", 8: "8×8 pixels"}
    for size in sizes:
        sweep = small_sweep(columns=("avg",), overrides=f"dataset.image_size={size}")
        (cell,) = grid.expand(sweep, CONFIGS_DIR)
        write_run(tmp_path / str(size), cell.config, 0.8)
    rows = make_rows(find_runs(tmp_path).runs)
    said = {row.config.dataset.image_size: recipe(row).split(", ")[1] for row in rows}
    assert said == sizes


def test_recipe_names_what_else_was_changed_from_the_defaults(tmp_path):
    fields = {
        "grad_accum_steps": 2,
        "optimizer.clip_norm": 1.0,
        "label_smoothing": 0.1,
        "ema_decay": 0.9,
        "init_from": "weights.safetensors",
        "freeze": "backbone",
        "norm_after_relu": True,
        "optimizer.name": "sgd",
        "superclass.epochs": 10,
    }
    (cell,) = grid.expand(small_sweep(columns=("avg",)), CONFIGS_DIR)
    write_run(tmp_path / "plain", cell.config, 0.8)
    cell.config.update_from_flattened_dict(fields)
    write_run(tmp_path / "changed", cell.config, 0.8)
    rows = make_rows(find_runs(tmp_path).runs)
    said = {row.config.grad_accum_steps: recipe(row) for row in rows}
    before, after = said[1].split("float32")
    assert said[2] == (
        f"{before.replace('adam', 'sgd')}float32, BatchNorm after ReLU, momentum 0.9, "
        "after 10 epochs on superclasses, gradients averaged over 2 parts, "
        "gradients clipped to the norm 1, label smoothing 0.1, "
        "moving average of the weights with decay 0.9, "
        f"initial weights from a file, frozen backbone{after}"
    )


def test_fields_that_are_empty_are_named_none(tmp_path):
    for i, fields in enumerate(("", "dataset.mean=0.5 dataset.std=0.25")):
        (cell,) = grid.expand(small_sweep(columns=("avg",), overrides=fields), CONFIGS_DIR)
        write_run(tmp_path / str(i), cell.config, 0.8)
    rows = tables_of(write_report(tmp_path)[0])["Table 1: one classifier"]
    assert [row[0] for row in rows if row[0]] == [
        "Digits (dataset.mean none, dataset.std none)",
        "Digits (dataset.mean (0.5,), dataset.std (0.25,))",
    ]


def test_optimizer_keywords_tell_rows_apart(tmp_path):
    keywords = {"none": {}, "b1": {"b1": 0.5}, "number": {"b1": 1}, "text": {"b1": "1"}}
    for name, kwargs in keywords.items():
        (cell,) = grid.expand(small_sweep(columns=("avg",), num_epochs=1), CONFIGS_DIR)
        with cell.config.unlocked():
            cell.config.optimizer.kwargs = kwargs
        write_run(tmp_path / name, cell.config, 0.8)
    rows = tables_of(write_report(tmp_path)[0])["Table 1: one classifier"]
    assert {row[0] for row in rows if row[0]} == {
        "Digits (optimizer.kwargs.b1 none)",
        "Digits (optimizer.kwargs.b1 0.5)",
        "Digits (optimizer.kwargs.b1 1)",
        "Digits (optimizer.kwargs.b1 1) [2]",
    }


@pytest.mark.parametrize("name", ["image_folder", "npz"])
def test_data_of_one_name_stay_apart(name, tmp_path):
    for i, value in enumerate((0.8, 0.9)):
        sweep = small_sweep(
            datasets=(name,),
            columns=("avg",),
            num_epochs=1,
            seeds=(i,),
            overrides=f"dataset.raw_dir=/data{i}/cats",
        )
        (cell,) = grid.expand(sweep, CONFIGS_DIR, reads_data=False)
        write_run(tmp_path / str(i), cell.config, value)
    path, _ = write_report(tmp_path)
    rows = tables_of(path)["Table 1: one classifier"]
    assert [row[0] for row in rows if row[0]] == [
        f"Images of cats (dataset.raw_dir /data{i}/cats)" for i in range(2)
    ]
    assert len(list(path.parent.glob("curves-*.png"))) == 2


def test_folders_inside_a_run_are_not_runs(tmp_path):
    (cell,) = grid.expand(small_sweep(columns=("avg",), num_epochs=1), CONFIGS_DIR)
    write_run(tmp_path / "run", cell.config, 0.8)
    cell.config.seed += 1
    write_run(tmp_path / "run/superclass", cell.config, 0.9)
    (tmp_path / "run/export").mkdir()
    (tmp_path / "run/export/config.json").write_text("{}")
    path, _ = write_report(tmp_path)
    assert len(read_csv(path.parent / "runs.csv")) == 1
    assert "not finished" not in path.read_text()


def test_rows_whose_titles_differ_after_a_hundred_letters_have_figures_of_their_own(tmp_path):
    other = (
        "batch_size=32 learning_rate=0.003 schedule=constant optimizer.weight_decay=0.001 "
        "optimizer.name=sgd optimizer.momentum=0.5 model=resnet32"
    )
    for i, fields in enumerate(("", other, f"{other} label_smoothing=0.1")):
        sweep = small_sweep(columns=("avg",), num_epochs=1, overrides=fields)
        (cell,) = grid.expand(sweep, CONFIGS_DIR)
        write_run(tmp_path / str(i), cell.config, 0.8)
    path, _ = write_report(tmp_path)
    names = [file.name for file in path.parent.glob("curves-*.png")]
    assert len(names) == 3
    assert len({name[:100] for name in names}) == 2
    assert all(f"({name})" in path.read_text() for name in names)


def test_rows_whose_titles_differ_in_other_letters_alone_have_figures_of_their_own(tmp_path):
    folders = ("żaba", "żabą", "cats 2", "cats", "CATS+2", "жук")
    for name in folders:
        sweep = small_sweep(columns=("avg",), num_epochs=1)
        (cell,) = grid.expand(sweep, CONFIGS_DIR)
        cell.config.dataset.name, cell.config.dataset.raw_dir = "image_folder", f"/data/{name}"
        write_run(tmp_path / name, cell.config, 0.8)
    path, _ = write_report(tmp_path)
    names = {file.name for file in path.parent.glob("curves-*.png")}
    assert len(names) == len(folders)
    assert "curves-images-of-cats.png" in names
    assert all(f"({name})" in path.read_text() for name in names)


def test_different_settings_of_a_column_are_listed_not_averaged(write_sweep):
    sweep = lambda_ablation.get_config()
    sweep.datasets, sweep.num_epochs, sweep.seeds = ("digits",), 1, (0, 1)
    path, _ = write_report(write_sweep(sweep, accuracy_of))
    tables = tables_of(path)
    assert tables["Table 2: with SAC"][0][2] == "4 settings, see below"
    rows = tables["Digits: every setting"]
    assert len(rows) == 10
    assert {row[0] for row in rows} == {
        *("–", "0.1/0.2/0.7", "0.01/0.11/0.88", "0.05/0.1/0.85", "0.32/0.33/0.35")
    }
    assert (path.parent / "settings-digits.png").exists()
    assert not (path.parent / "figure4.png").exists()


def test_runs_whose_pools_learn_at_other_rates_are_one_row_and_two_arms(write_sweep):
    columns = ("avg", "flexpool", "flexpool+pool_learning_rate_scale=0.02+reg", "avg+dropout")
    sweep = small_sweep(columns=columns, num_epochs=1, seeds=(0, 1))
    accuracies = dict(zip(columns, (0.90, 0.92, 0.94, 0.91), strict=True))
    path, _ = write_report(write_sweep(sweep, lambda cell: accuracies[cell.name.split("/")[1]]))
    tables = tables_of(path)
    # The table of the paper's columns has the paper's rate.
    assert tables["Table 1: one classifier"][0][2:5] == [
        "90.00 (n = 2, all alike)",
        "92.00 (n = 2, all alike)",
        "not run",
    ]
    assert {row[1]: row[2] for row in tables["Digits: every setting"]} == {
        "AvgPool": "90.00 (n = 2, all alike)",
        "FlexPool": "92.00 (n = 2, all alike)",
        "FlexPool (pool rate ×0.02) + Reg 0.1": "94.00 (n = 2, all alike)",
        "AvgPool + Dropout": "91.00 (n = 2, all alike)",
    }
    rates = {
        (row["pool"], row["pool_learning_rate_scale"])
        for row in read_csv(path.parent / "settings.csv")
    }
    assert rates == {("avg", ""), ("flexpool", ""), ("flexpool", "0.02")}


def test_settings_of_a_row_have_labels_of_their_own(write_sweep):
    columns = (
        *("avg", "avg+dropout", "avg+dropout_rate=0.5", "flexpool", "flexpool+dropout"),
        *("flexpool+reg", "flexpool+reg=1", "flexpool+reg=1+dropout", "flexpool+dropout_rate=0.5"),
        *("flexpool+reg=1+dropout_rate=0.5", "flexpool+reg+pool_learning_rate_scale=0.02"),
    )
    sweep = small_sweep(num_epochs=1, columns=columns, sac=("off", "on", "0.05/0.1/0.85"))
    (row,) = make_rows(find_runs(write_sweep(sweep, accuracy_of)).runs)
    labels = [arm.label for arm in row.settings]
    assert len(set(labels)) == len(labels) == 3 * len(columns)
    assert labels[:4] == ["AvgPool", "FlexPool", "FlexPool + Reg 0.1", "FlexPool + Reg 1"]
    assert {"AvgPool + Dropout", "AvgPool + Dropout 0.5"} <= set(labels)


def test_pools_that_are_not_registered_here_are_reported_by_their_names(tmp_path):
    (cell,) = grid.expand(small_sweep(columns=("flexpool",), num_epochs=1), CONFIGS_DIR)
    # One that reads like a column of the paper is still another pool.
    for pool, accuracy in (("flexpool", 0.9), ("trimmed_mean", 0.91), ("FlexPool", 0.5)):
        cell.config.pool = pool
        write_run(tmp_path / pool, cell.config, accuracy)
    path, skipped = write_report(tmp_path)
    assert skipped == []
    tables = tables_of(path)
    assert tables["Table 1: one classifier"][0][3] == "90.00 (n = 1, no interval)"
    assert [row[1] for row in tables["Digits: every setting"]] == [
        "FlexPool",
        "FlexPool",
        "trimmed mean",
    ]


def test_numbers_on_training_images_do_not_pass_for_the_papers_kind(write_sweep):
    sweep = small_sweep(
        datasets=("cifar10",), columns=("avg",), num_epochs=1, overrides="dataset.holdout=0.1"
    )
    rows = tables_of(write_report(write_sweep(sweep, accuracy_of))[0])["Table 1: one classifier"]
    assert rows[0][0] == "CIFAR-10, held-out training images"
    assert rows[1][2:] == ["not in it"] * 4


@pytest.mark.parametrize(("model", "number"), [("resnet20", "91.63"), ("vgg11", "not in it")])
def test_the_papers_numbers_are_those_of_resnet20_alone(model, number, write_sweep):
    sweep = small_sweep(
        datasets=("cifar10",), columns=("avg",), num_epochs=1, overrides=f"model={model}"
    )
    path, _ = write_report(write_sweep(sweep, accuracy_of))
    assert tables_of(path)["Table 1: one classifier"][1][2] == number


def test_asterisks_are_holms(write_sweep):
    # One clear difference, one that the correction takes away, and twelve that there are not.
    sweep = pools.get_config()
    sweep.datasets, sweep.num_epochs, sweep.seeds = ("digits",), 1, tuple(range(5))

    def accuracy(cell):
        noise = np.random.default_rng([*cell.name.encode()]).normal()
        effect = 0.1 * ("gem" in cell.name) + 0.006 * ("lse" in cell.name)
        return 0.8 + effect + 0.002 * noise

    path, _ = write_report(write_sweep(sweep, accuracy))
    rows = {row[1]: row[4] for row in tables_of(path)["Digits: every setting"]}
    assert [name for name, difference in rows.items() if difference.endswith("*")] == ["gem"]
    assert "p = 0.0" in rows["lse"]
    assert "This report tests 14 differences" in path.read_text()
    records = read_csv(path.parent / "settings.csv")
    columns = [f"to_{name}_p" for name in ("avgpool", "control", "one_classifier")]
    found = [(r[name], r[f"{name}_holm"]) for r in records for name in columns if r[name]]
    raw, adjusted = np.array(found, float).T
    assert adjusted == pytest.approx(holm(raw))


def test_figures_are_pictures_and_the_same_each_time(write_sweep):
    sweep = paper_tables.get_config()
    sweep.datasets, sweep.num_epochs, sweep.seeds = ("digits", "fashion_mnist"), 3, (0, 1)
    folder = write_sweep(sweep, accuracy_of)
    path, _ = write_report(folder)
    names = ["figure2.png", "figure4.png", "curves-digits.png", "curves-fashion-mnist.png"]
    assert {p.name for p in path.parent.glob("*.png")} == set(names)
    for name in names:
        assert f"({name})" in path.read_text()
        pixels = np.asarray(Image.open(path.parent / name).convert("L"))
        assert min(pixels.shape) > 400
        assert (pixels < 128).mean() > 0.005
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    write_report(folder)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


@pytest.fixture
def figure(monkeypatch):
    """The figure that a function draws; it is not written to a file."""
    figure = Figure()
    monkeypatch.setattr(figures, "drawn", lambda *_: contextlib.nullcontext(figure))
    return figure


def test_each_column_of_a_table_is_a_mean_with_its_interval(write_sweep, figure):
    sweep = small_sweep(num_epochs=1, columns=("avg", "flexpool"), seeds=(0, 1, 2))
    (row,) = make_rows(find_runs(write_sweep(sweep, accuracy_of)).runs)
    assert figures.draw_table([row], Path("figure2.png"), title="Figure 2", sac=False)
    drawn = [container.lines for container in figure.axes[0].containers]
    for x, (setting, (point, _, (bar,))) in enumerate(zip(row.run_settings, drawn, strict=True)):
        values = list(setting.accuracies.values())
        half = stats.t.ppf(0.975, 2) * stats.sem(values)
        np.testing.assert_allclose(point.get_xydata(), [[x, np.mean(values)]])
        ends = [[x, np.mean(values) + side * half] for side in (-1, 1)]
        np.testing.assert_allclose(bar.get_segments(), [ends])


def test_training_curves_are_accuracy_and_training_loss_by_epoch(write_sweep, figure):
    sweep = small_sweep(num_epochs=3, columns=("avg",), seeds=(0, 1))
    (row,) = make_rows(find_runs(write_sweep(sweep, accuracy_of)).runs)
    assert figures.draw_curves(row, Path("curves.png"))
    accuracies = list(row.run_settings[0].accuracies.values())
    left, right = ([line.get_xydata().T for line in ax.get_lines()] for ax in figure.axes)
    for (epochs, drawn), accuracy in zip(left, [*accuracies, np.mean(accuracies)], strict=True):
        np.testing.assert_allclose([epochs, drawn], [[1, 2, 3], [accuracy] * 3])
    for epochs, drawn in right:
        np.testing.assert_allclose([epochs, drawn], [[1, 2, 3], [1, 1 / 2, 1 / 3]])


def test_each_training_curve_has_a_name_and_a_look_of_its_own(write_sweep, figure):
    sweep = pools.get_config()
    sweep.datasets, sweep.num_epochs, sweep.seeds = ("digits",), 2, (0,)
    sweep.columns += ("flexpool+reg=1", "flexpool+dropout_rate=0.5")
    (row,) = make_rows(find_runs(write_sweep(sweep, accuracy_of)).runs)
    assert figures.draw_curves(row, Path("curves.png"))
    assert len(row.settings) > 10
    for ax in figure.axes:
        lines = ax.get_lines()
        names = [line.get_label() for line in lines]
        assert names == [arm.label for arm in row.settings]
        assert len(set(names)) == len(names)
        looks = {(line.get_color(), line.get_linestyle()) for line in lines}
        assert len(looks) == len(lines)


def test_what_an_earlier_report_had_is_gone(write_sweep):
    sweep = small_sweep(num_epochs=1, columns=("avg",), sac=("off", "on"))
    folder = write_sweep(sweep, accuracy_of)
    path, _ = write_report(folder)
    assert (path.parent / "figure4.png").exists()
    (folder / "digits/avg+sac/seed-0/result.json").unlink()
    mine = path.with_name("mine.csv")
    mine.write_text("a,b")
    path.with_name("classes.csv").write_text("old")
    write_report(folder)
    assert not (path.parent / "figure4.png").exists()
    assert not (path.parent / "classes.csv").exists()
    assert mine.read_text() == "a,b"


def test_a_report_that_fails_leaves_the_last_one(write_sweep, monkeypatch):
    folder = write_sweep(small_sweep(num_epochs=1, columns=("avg",)), accuracy_of)
    path, _ = write_report(folder)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_report(folder)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_torn_metrics_do_not_matter(write_sweep):
    folder = write_sweep(small_sweep(num_epochs=2, columns=("avg",)), accuracy_of)
    metrics = folder / AVG / "seed-0/metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes() + b'{"step": 3, "epo\n[]\nnull\n\xff\n')
    path, _ = write_report(folder)
    assert (path.parent / "curves-digits.png").exists()
    metrics.unlink()
    path, _ = write_report(folder)
    assert not (path.parent / "curves-digits.png").exists()


def test_lines_within_an_epoch_become_the_mean_over_its_steps(write_sweep):
    folder = write_sweep(small_sweep(num_epochs=2, columns=("avg",)), accuracy_of)
    (run,) = find_runs(folder).runs
    # 4 steps an epoch, a line every 3: means over 3, 1, 2 and 2 steps.
    lines = [(3, 0.75, 4.0), (4, 1.0, 8.0), (6, 1.5, 3.0), (8, 2.0, 1.0)]
    (run.folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": step, "epoch": epoch, "split": "train", "loss": loss}) + "\n"
            for step, epoch, loss in lines
        )
    )
    assert run.curves == {("train", "loss"): {1: 5.0, 2: 2.0}}


def test_seeds_that_are_all_alike_say_so(write_sweep):
    sweep = small_sweep(num_epochs=1, columns=("avg", "flexpool"), seeds=(0, 1))
    path, _ = write_report(write_sweep(sweep, lambda cell: 0.9))
    here, _, difference = tables_of(path)["Table 1: one classifier"]
    assert here[2] == "90.00 (n = 2, all alike)"
    assert difference[3] == "+0.00 (2 pairs, all alike)"
    assert "This report tests" not in path.read_text()


def test_without_a_result_there_is_no_report(tmp_path):
    with pytest.raises(UserError, match=r"has no result.json"):
        write_report(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


def edit_result(folder, **fields):
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def measured(seed, **fields):
    return {
        "final_test_metrics": {"calibration_error": 0.02 + 0.001 * seed, "top5_accuracy": 0.99},
        "class_names": ["cat|dog", "*owl*", "_eel_"],
        "final_test_accuracy_per_class": [0.9 + 0.01 * seed, 1.0, None],
        **fields,
    }


def test_metrics_beside_accuracy_have_tables_and_columns(write_sweep):
    folder = write_sweep(
        small_sweep(num_epochs=1, columns=("avg", "flexpool"), seeds=(0, 1, 2)), accuracy_of
    )
    without, _ = write_report(folder)
    assert "calibration" not in without.read_text() + (without.parent / "runs.csv").read_text()
    assert not (without.parent / "classes.csv").exists()
    for seed in range(3):
        edit_result(folder / FLEXPOOL / f"seed-{seed}", **measured(seed))
    path, _ = write_report(folder)
    rows = tables_of(path)["Digits: every setting"]
    half = stats.t.ppf(0.975, 2) * stats.sem([0.02, 0.021, 0.022])
    assert rows[4:6] == [
        ["AvgPool", "–", "–"],
        ["FlexPool", f"0.021 ± {half:.2g} (n = 3)", "99.00 (n = 3, all alike)"],
    ]
    assert rows[6] == ["setting", r"cat\|dog", r"\*owl\*", r"\_eel\_"]
    assert rows[8:] == [["FlexPool", "91.00", "100.00", "–"]]
    setting = read_csv(path.parent / "settings.csv")[1]
    assert float(setting["calibration_error_half_width"]) == pytest.approx(half)
    assert read_csv(path.parent / "runs.csv")[-1]["top5_accuracy"] == "99.0"
    edit_result(folder / FLEXPOOL / "seed-2", final_test_metrics={"seed": 0.5, "mine": 0.5})
    last = read_csv(write_report(folder)[0].parent / "runs.csv")[-1]
    assert (last["seed"], last["mine"]) == ("2", "0.5")
    first, _, empty = read_csv(path.parent / "classes.csv")
    assert (first["class"], first["n"], first["accuracy"]) == ("cat|dog", "3", "91.0")
    assert (empty["class"], empty["n"], empty["accuracy"]) == ("_eel_", "0", "")


@pytest.mark.parametrize(
    "fields",
    [
        {"final_test_metrics": [0.1], "class_names": None},
        {"final_test_metrics": {"calibration_error": "low"}, "class_names": ["cat"]},
        {"final_test_metrics": {"calibration_error": 10**400}, "class_names": [1, 2, 3]},
    ],
)
def test_metrics_that_are_not_numbers_are_left_out(fields, write_sweep):
    folder = write_sweep(
        small_sweep(num_epochs=1, columns=("avg",), seeds=(0, 1)), lambda cell: 0.9
    )
    edit_result(folder / AVG / "seed-0", **measured(0))
    edit_result(folder / AVG / "seed-1", **measured(1, **fields))
    path, skipped = write_report(folder)
    assert skipped == []
    assert "calibration" not in path.read_text()
    assert not (path.parent / "classes.csv").exists()


def test_runs_of_other_source_code_are_marked_and_not_averaged(write_sweep):
    sweep = small_sweep(num_epochs=1, columns=("avg", "flexpool"), seeds=(0, 1, 2))
    folder = write_sweep(sweep, accuracy_of)
    for path in folder.glob("digits/*/seed-*"):
        edit_result(path, source_hash="new" if path.name == "seed-2" else "old")
    path, skipped = write_report(folder, grid.expand(sweep, CONFIGS_DIR))
    assert skipped == []
    rows = {row[0]: row[2:] for row in tables_of(path)["Table 1: one classifier"] if row[0]}
    assert rows["Digits (source code old)"][0].endswith("(n = 2); without seed 2")
    assert "(n = 1, no interval)" in rows["Digits (source code new)"][0]
    assert "not averaged or compared with others" in " ".join(path.read_text().split())


def test_runs_whose_code_changed_midway_are_not_averaged_with_others(write_sweep):
    sources = (["new", "newer"], ["new", "newest"], "new", None, ["new", "newer"])
    sweep = small_sweep(num_epochs=1, columns=("avg",), seeds=tuple(range(len(sources))))
    folder = write_sweep(sweep, accuracy_of)
    for seed, source in enumerate(sources):
        edit_result(folder / AVG / f"seed-{seed}", source_hash=source)
    rows = tables_of(write_report(folder)[0])["Table 1: one classifier"]
    assert {row[0]: "(n = 2)" in row[2] for row in rows if row[0]} == {
        "Digits (source code new, newer)": True,
        "Digits (source code new, newest)": False,
        "Digits (source code new)": False,
        "Digits (source code unknown)": False,
    }


def test_runs_on_other_numbers_of_devices_are_averaged_if_batch_norm_is_synchronised(write_sweep):
    folder = write_sweep(small_sweep(num_epochs=1, columns=("avg",), seeds=(0, 1, 2)), accuracy_of)
    for seed, devices in enumerate((1, 8, 8)):
        edit_result(folder / AVG / f"seed-{seed}", devices=devices)
    rows = tables_of(write_report(folder)[0])["Table 1: one classifier"]
    assert [row[0] for row in rows if row[0]] == ["Digits"]
    for path in folder.rglob("result.json"):
        config = json.loads(path.read_text())["config"]
        edit_result(path.parent, config=config | {"sync_batch_norm": False})
    rows = tables_of(write_report(folder)[0])["Table 1: one classifier"]
    assert {row[0]: "(n = 2)" in row[2] for row in rows if row[0]} == {
        "Digits (devices 1)": False,
        "Digits (devices 8)": True,
    }


def test_runs_that_changed_midway_are_marked_and_not_averaged(write_sweep):
    change = {"step": 40, "field": "learning_rate", "from": 0.1, "to": 0.01}
    folder = write_sweep(
        small_sweep(num_epochs=1, columns=("avg",), seeds=(0, 1, 2, 3)), accuracy_of
    )
    for seed in (2, 3):
        edit_result(folder / AVG / f"seed-{seed}", config_changes=[change])
    rows = {
        row[0]: row[2]
        for row in tables_of(write_report(folder)[0])["Table 1: one classifier"]
        if row[0]
    }
    assert len(rows) == 3
    assert "(n = 2)" in rows["Digits"]
    marked = "Digits (changed midway, seed 3: learning_rate from 0.1 to 0.01 at step 40)"
    assert "(n = 1, no interval)" in rows[marked]


def test_runs_of_a_sweep_that_are_in_another_row_are_not_called_missing(write_sweep):
    change = {"step": 40, "field": "learning_rate", "from": 0.1, "to": 0.01}
    sweep = small_sweep(num_epochs=1, columns=("avg",), seeds=(0, 1, 2, 3, 4))
    folder = write_sweep(sweep, accuracy_of)
    for seed, source in enumerate(("old", "old", "new", "old")):
        edit_result(folder / AVG / f"seed-{seed}", source_hash=source)
    edit_result(folder / AVG / "seed-3", config_changes=[change])
    (folder / AVG / "seed-4/result.json").unlink()
    path, _ = write_report(folder, grid.expand(sweep, CONFIGS_DIR))
    expected = "Digits (source code old), AvgPool, seed"
    changed = "changed midway, seed 3: learning_rate from 0.1 to 0.01 at step 40"
    listed = [line for line in path.read_text().splitlines() if expected in line]
    assert listed == [
        f"- In the row Digits (source code new), not averaged with others: {expected} 2",
        f"- In the row Digits (source code old, {changed}), not averaged with others: {expected} 3",
        f"- No result: {expected} 4",
    ]


def test_additions_are_compared_with_what_they_are_added_to(write_sweep):
    columns = ("avg", "avg+dropout", "flexpool", "flexpool+reg", "flexpool+reg+dropout")
    accuracies = dict(zip(columns, (0.90, 0.91, 0.93, 0.97, 0.98), strict=True))
    sweep = small_sweep(num_epochs=1, columns=columns, seeds=(0, 1, 2))

    def accuracy(cell):
        _, column, seed = cell.name.split("/")
        return accuracies[column] + 0.001 * (int(seed[-1]) - 1) * (1 + len(column) % 3)

    path, _ = write_report(write_sweep(sweep, accuracy))
    rows = {row[1]: row for row in tables_of(path)["Digits: every setting"]}
    assert rows["FlexPool + Reg 0.1"][5].startswith("FlexPool: +4")
    assert rows["FlexPool + Reg 0.1 + Dropout"][5].startswith("AvgPool + Dropout: +7")
    assert [rows[name][5] for name in ("AvgPool", "AvgPool + Dropout", "FlexPool")] == ["–"] * 3


def test_arms_with_sac_are_compared_with_average_pooling_with_sac():
    sac = (0.1, 0.2, 0.7)
    avg = Arm(sac, "avg", 0.0, 0.0)
    reg, dropout = Arm(sac, "flexpool", 0.1, 0.0), Arm(sac, "flexpool", 0.1, 0.25)
    assert avg.baselines == {"one_classifier": Arm((), "avg", 0.0, 0.0)}
    assert reg.baselines == {
        "avgpool": avg,
        "control": Arm(sac, "flexpool", 0.0, 0.0),
        "one_classifier": Arm((), "flexpool", 0.1, 0.0),
    }
    assert dropout.baselines == {
        "avgpool": avg,
        "control": Arm(sac, "avg", 0.0, 0.25),
        "one_classifier": Arm((), "flexpool", 0.1, 0.25),
    }


def test_rounding_errors_are_written_as_zero_and_small_p_values_as_they_are(tmp_path):
    tiny = 1e-15
    names = ("accuracy", "to_avgpool", "to_avgpool_p", "to_avgpool_p_holm")
    write_csv(tmp_path / "a.csv", [dict.fromkeys(names, tiny)])
    (record,) = read_csv(tmp_path / "a.csv")
    assert [float(record[name]) for name in names] == [0, 0, tiny, tiny]


def test_links_to_folders_are_named_and_not_followed(write_sweep):
    folder = write_sweep(small_sweep(num_epochs=1, columns=("avg", "flexpool")), accuracy_of)
    elsewhere = folder.with_name("elsewhere")
    (folder / FLEXPOOL).rename(elsewhere)
    (folder / FLEXPOOL).symlink_to(elsewhere)
    # A run's own folders may be links, for example to a larger disk.
    (folder / AVG / "seed-0/checkpoints").symlink_to(elsewhere)
    path, skipped = write_report(folder)
    assert skipped == [f"{FLEXPOOL}: a link to a folder, which is not followed"]
    assert f"- Skipped: {skipped[0]}" in path.read_text()
    assert len(read_csv(path.parent / "runs.csv")) == 1


def test_folders_that_cannot_be_read_are_named(write_sweep, monkeypatch):
    folder = write_sweep(small_sweep(num_epochs=1, columns=("avg", "flexpool")), accuracy_of)
    scandir = os.scandir

    # Nothing is forbidden to root, as which tests may run.
    def forbidding(path):
        if Path(path) == folder / FLEXPOOL:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    path, skipped = write_report(folder)
    assert skipped == [f"{FLEXPOOL}: Permission denied"]
    assert f"- Skipped: {skipped[0]}" in path.read_text()


def test_missing_folder_has_no_runs(tmp_path):
    assert find_runs(tmp_path / "none") == Found([], [], [])


def test_folders_whose_names_are_not_utf8_are_named(write_sweep):
    folder = write_sweep(small_sweep(num_epochs=1, columns=("avg", "flexpool")), accuracy_of)
    (folder / FLEXPOOL).rename(os.fsdecode(bytes(folder) + b"/h\xf6here"))
    path, skipped = write_report(folder)
    assert skipped == [r"h\xf6here: its name is not UTF-8"]
    # Markdown shows two backslashes as one.
    assert r"- Skipped: h\\xf6here: its name is not UTF-8" in path.read_text()
    assert len(read_csv(path.parent / "runs.csv")) == 1


def test_only_in_the_folder_of_a_run_do_some_names_hold_no_run(write_sweep):
    folder = write_sweep(small_sweep(num_epochs=1, columns=("avg",)), lambda cell: 0.9)
    (folder / AVG).rename(folder / "superclass")
    (run,) = find_runs(folder).runs
    assert run.folder == folder / "superclass/seed-0"
    (folder / "config.json").write_text("{}")
    assert find_runs(folder).runs == []
