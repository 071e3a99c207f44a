"""Grids of runs, and the tables that are made of what they left."""

import csv
import shutil
import signal
import time

import pytest

from tests.black_box.conftest import (
    edit_json,
    outcome,
    read_json,
    run_in_process,
    start_process,
)

SWEEP = "--config=configs/paper_tables.py"


def sweep_command(launcher, workdir, *arguments, mode="sweep", seeds="0,1"):
    """Two cells, which are the run of `resnet_run` and the same with another seed."""
    overrides = "dataset.image_size=8 learning_rate=1e-3 tensorboard=False"
    return [
        f"--mode={mode}",
        SWEEP,
        f"--workdir={workdir}",
        "--config.datasets=digits",
        "--config.columns=flexpool+reg",
        "--config.sac=off",
        f"--config.seeds={seeds}",
        "--config.num_epochs=2",
        f"--config.overrides={overrides} dataset.data_dir={launcher.data_dir}",
        *arguments,
    ]


@pytest.fixture(scope="module")
def sweep(launcher, resnet_run, tmp_path_factory):
    """A sweep that was stopped, then continued with a damaged cell, then finished.

    Returns its folder and how the three commands ended.
    """
    workdir = tmp_path_factory.mktemp("sweep")
    command = sweep_command(launcher, workdir)
    cells = workdir / "digits/flexpool+reg"
    process = start_process(*command)
    while not (cells / "seed-0/checkpoints").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    stopped, _ = process.communicate(timeout=60)
    (cells / "seed-1").mkdir()
    (cells / "seed-1/config.json").write_text("{")
    failed = run_in_process(*command)
    shutil.rmtree(cells / "seed-1")
    finished = run_in_process(*command)
    return workdir, (process.returncode, stopped), failed, finished


def test_a_sweep_told_to_stop_leaves_with_75(sweep):
    _, (status, output), _, _ = sweep
    assert status == 75, output
    assert "Traceback" not in output


def test_a_failing_cell_stops_no_other_and_is_named_at_the_end(sweep):
    _, _, failed, _ = sweep
    assert failed.status == 1, failed.output
    assert "digits/flexpool+reg/seed-1" in failed.last_line
    assert "config.json" in failed.last_line
    assert "Traceback" not in failed.stderr


def test_a_sweep_passes_over_what_is_finished(sweep):
    workdir, _, _, finished = sweep
    assert finished.status == 0, finished.output
    assert "digits/flexpool+reg/seed-1" in finished.stderr
    assert "digits/flexpool+reg/seed-0" not in finished.stderr
    results = [read_json(path) for path in sorted(workdir.glob("digits/*/*/result.json"))]
    assert [result["config"]["seed"] for result in results] == [0, 1]


def test_a_cell_is_the_run_that_its_config_describes(sweep, resnet_run):
    assert outcome(sweep[0] / "digits/flexpool+reg/seed-0") == outcome(resnet_run)


@pytest.mark.parametrize(
    "argument", ["--config.num_epochs=3", "--config.overrides=dataset.image_size=16"]
)
def test_another_config_in_a_cells_folder_is_refused(launcher, sweep, argument):
    done = run_in_process(*sweep_command(launcher, sweep[0], argument))
    assert done.status == 2
    name = argument.removeprefix("--config.overrides=").partition("=")[0]
    assert "digits/flexpool+reg/seed-0" in done.last_line
    assert name.rpartition(".")[2] in done.last_line
    assert len(done.stderr.splitlines()) == 1


def test_folders_and_cadences_do_not_make_another_config(launcher, sweep):
    overrides = "dataset.image_size=8 learning_rate=1e-3 tensorboard=True log_every_steps=3"
    done = run_in_process(
        *sweep_command(launcher, sweep[0], f"--config.overrides={overrides} dataset.data_dir=/x")
    )
    assert done.status == 0, done.output


def test_a_report_of_a_sweep_holds_the_means_of_its_cells(launcher, sweep):
    workdir = sweep[0]
    done = run_in_process(*sweep_command(launcher, workdir, mode="report"))
    assert done.status == 0, done.output
    assert str(workdir / "report/report.md") in done.stdout
    results = [read_json(path) for path in workdir.glob("digits/*/*/result.json")]
    accuracies = [100 * result["final_test_accuracy"] for result in results]
    (row,) = rows(workdir, "settings.csv")
    assert float(row["accuracy"]) == pytest.approx(sum(accuracies) / 2)
    assert (row["n"], row["seeds"]) == ("2", "0 1")
    assert f"{sum(accuracies) / 2:.2f}" in (workdir / "report/report.md").read_text()


SWEEP_MISTAKES = [
    ("--config.seed=1", ["--config.seeds"]),
    ("--config.model=vgg11", ["model=VALUE"]),
    ("--config.seeds=a", ["seeds"]),
    ("--config.seeds=0,0", ["seeds"]),
    ("--config.seeds=-1", ["seeds"]),
    ("--config.datasets=mnist", ["fashion_mnist"]),
    ("--config.columns=flexpol", ["flexpool"]),
    ("--config.columns=avg,avg", ["columns"]),
    ("--config.columns=avg+reg", ["reg"]),
    ("--config.sac=maybe", ["sac"]),
    ("--config.sac=0.3/0.2/0.5", ["sac"]),
    ("--config.num_epochs=-1", ["num_epochs"]),
    ("--config.overrides=x=1", ["x"]),
    ("--config.overrides=seed=1", ["seed"]),
    ("--config.overrides=batch_size=ten", ["batch_size"]),
]


@pytest.mark.parametrize(("argument", "words"), SWEEP_MISTAKES)
def test_a_mistake_in_a_sweep_is_refused_before_anything_runs(tmp_path, refuses, argument, words):
    refuses("--mode=sweep", SWEEP, f"--workdir={tmp_path}/new", argument, words=words)


@pytest.mark.parametrize("name", ["lambda_ablation", "pool_reg", "pools"])
def test_every_sweep_of_the_project_is_checked_whole(tmp_path, refuses, name):
    # The last mistake is found only when every cell's own config has been read.
    refuses(
        "--mode=sweep",
        f"--config=configs/{name}.py",
        f"--workdir={tmp_path}/new",
        "--config.datasets=digits",
        "--config.overrides=num_epochs=0",
        words=["digits/", "num_epochs"],
    )


def rows(folder, name):
    """The rows of a table of a report."""
    with (folder / "report" / name).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def four_runs(launcher, tmp_path_factory):
    """A folder with two seeds of two pools; not to be changed."""
    folder = tmp_path_factory.mktemp("four")
    for pool in ("avg", "flexpool"):
        for seed in (0, 1):
            launcher.train(folder / pool / str(seed), f"--config.seed={seed}", variant=pool)
    return folder


@pytest.fixture
def runs(four_runs, tmp_path):
    """A copy of the four runs."""
    return shutil.copytree(four_runs, tmp_path / "runs")


def report(folder):
    done = run_in_process("--mode=report", f"--workdir={folder}")
    assert done.status == 0, done.output
    assert "Traceback" not in done.stderr
    return done


def test_a_report_averages_over_seeds_and_compares_with_average_pooling(runs):
    done = report(runs)
    assert done.stderr == ""
    accuracy = {
        pool: [
            100 * read_json(runs / f"{pool}/{seed}/result.json")["final_test_accuracy"]
            for seed in (0, 1)
        ]
        for pool in ("avg", "flexpool")
    }
    mean = {pool: sum(values) / 2 for pool, values in accuracy.items()}
    settings = {row["pool"]: row for row in rows(runs, "settings.csv")}
    assert settings.keys() == {"avg", "flexpool"}
    for pool, row in settings.items():
        assert float(row["accuracy"]) == pytest.approx(mean[pool])
        assert row["n"] == "2"
    difference = float(settings["flexpool"]["to_avgpool"])
    assert difference == pytest.approx(mean["flexpool"] - mean["avg"], abs=1e-6)
    assert len(rows(runs, "runs.csv")) == 4
    names = {path.name for path in (runs / "report").iterdir()}
    assert {"report.md", "table1.csv", "table2.csv", "settings.csv", "runs.csv"} <= names
    assert any(name.endswith(".png") for name in names)


def test_runs_of_another_recipe_are_never_averaged_with_others(launcher, runs):
    launcher.train(runs / "shorter", "--config.num_epochs=2", variant="avg")
    report(runs)
    counts = sorted(row["n"] for row in rows(runs, "settings.csv"))
    assert counts == ["1", "2", "2"]


DAMAGE = {
    "emptied": lambda path: path.write_text(""),
    "cut": lambda path: path.write_text(path.read_text()[:100]),
    "a list": lambda path: path.write_text("[]"),
    "no accuracy": lambda path: edit_json(path, lambda r: r.pop("final_test_accuracy")),
    "an accuracy above one": lambda path: edit_json(
        path, lambda r: r.update(final_test_accuracy=99)
    ),
    "no config": lambda path: edit_json(path, lambda r: r.pop("config")),
    "a wrong field": lambda path: edit_json(path, lambda r: r["config"].update(batch_size="x")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_result_is_named_and_left_out(runs, name):
    DAMAGE[name](runs / "avg/1/result.json")
    done = report(runs)
    assert "avg/1" in done.stderr
    assert "avg/1" in (runs / "report/report.md").read_text()
    settings = {row["pool"]: row["n"] for row in rows(runs, "settings.csv")}
    assert settings == {"avg": "1", "flexpool": "2"}


def test_a_run_without_a_result_is_called_unfinished(runs):
    (runs / "flexpool/0/result.json").unlink()
    report(runs)
    assert "flexpool/0" in (runs / "report/report.md").read_text()
    assert len(rows(runs, "runs.csv")) == 3


def test_a_copy_of_a_run_does_not_count_twice(runs):
    shutil.copytree(runs / "avg/0", runs / "copy")
    done = report(runs)
    assert "copy" in done.stderr
    assert len(rows(runs, "runs.csv")) == 4


def test_files_that_are_no_runs_are_passed_over(runs):
    (runs / "notes.txt").write_text("x")
    (runs / "other").mkdir()
    (runs / "other/data.json").write_text("{")
    report(runs)
    assert len(rows(runs, "runs.csv")) == 4


@pytest.mark.parametrize("damage", ["{", "", "null\n[]\n3\n", '{"step": "x"}\n'])
def test_damaged_metrics_do_not_stop_a_report(runs, damage):
    (runs / "avg/0/metrics.jsonl").write_text(damage)
    report(runs)
    assert len(rows(runs, "runs.csv")) == 4


def test_a_report_says_which_cells_have_not_been_run(launcher, sweep, tmp_path):
    workdir = shutil.copytree(sweep[0], tmp_path / "sweep")
    done = run_in_process(*sweep_command(launcher, workdir, mode="report", seeds="0,1,2,3"))
    assert done.status == 0, done.output
    (row,) = rows(workdir, "settings.csv")
    assert (row["n"], row["missing_seeds"]) == ("2", "2 3")


def test_a_report_leaves_runs_as_they_are(runs):
    def contents():
        paths = (p for p in runs.rglob("*") if p.is_file() and "report" not in p.parts[-2])
        return {path: path.read_bytes() for path in paths}

    before = contents()
    report(runs)
    assert contents() == before
