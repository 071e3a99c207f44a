"""Workdirs that earlier releases wrote are read, evaluated and trained on."""

import json
import shutil
from pathlib import Path

import pytest

FIXTURES = sorted((Path(__file__).parents[1] / "fixtures").glob("workdir_*"))


@pytest.fixture(params=FIXTURES, ids=lambda path: path.name)
def old_workdir(request, tmp_path):
    return shutil.copytree(request.param, tmp_path / "run")


def test_there_is_a_workdir_of_the_first_release():
    assert "workdir_0_1" in [path.name for path in FIXTURES]


def test_an_old_workdir_evaluates_to_what_it_recorded(launch, old_workdir):
    result = json.loads((old_workdir / "result.json").read_text())
    launch.run(
        f"--workdir={old_workdir}", "--mode=eval", f"--config.dataset.data_dir={launch.data_dir}"
    )
    found = json.loads((old_workdir / "evaluation.json").read_text())
    assert found["accuracy"] == result["final_test_accuracy"]
    assert found["loss"] == pytest.approx(result["final_test_loss"], rel=1e-3)
    assert found["step"] == result["step"]


def test_a_finished_old_run_goes_on_where_it_is_given_more_epochs(launch, old_workdir):
    step = json.loads((old_workdir / "result.json").read_text())["step"]
    epochs = json.loads((old_workdir / "result.json").read_text())["epochs"]
    output = launch.run(
        f"--workdir={old_workdir}",
        f"--config.num_epochs={epochs + 1}",
        f"--config.dataset.data_dir={launch.data_dir}",
    )
    assert f"resuming after step {step}" in output
    lines = [json.loads(line) for line in (old_workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["split"] == "test"] == [
        float(epoch) for epoch in range(1, epochs + 2)
    ]
