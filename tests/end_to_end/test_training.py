"""A run from the command line: what it writes, and that it does not depend on where it runs."""

import json
import shutil

import numpy as np

from tests.end_to_end.conftest import SMALL, assert_same_run, read_metrics


def test_a_workdir_holds_what_it_should(finished_run):
    assert {path.name for path in finished_run.iterdir() if path.name[0] != "."} == {
        "config.json",
        "run.json",
        "data.json",
        "checkpoints",
        "metrics.jsonl",
        "result.json",
        "predictions.npz",
        "pool_weights.npz",
    }
    train, test = read_metrics(finished_run, "train"), read_metrics(finished_run, "test")
    assert [line["epoch"] for line in train] == [1.0, 2.0, 3.0]
    assert [line["epoch"] for line in test] == [1.0, 2.0, 3.0]
    assert set(train[0]) == {
        "step",
        "epoch",
        "split",
        "loss",
        "accuracy",
        "cross_entropy",
        "cross_entropy_stage1",
        "cross_entropy_stage2",
        "sac",
        "regularizer",
        "learning_rate",
    }
    result = json.loads((finished_run / "result.json").read_text())
    assert result["final_test_accuracy"] == test[-1]["accuracy"]
    assert result["best_test_accuracy"] == max(line["accuracy"] for line in test)
    # Far from what the recipe reaches in full, and far from the one in ten of chance.
    assert result["final_test_accuracy"] > 0.6


def test_eight_devices_evaluate_as_one(launch, finished_run):
    result = json.loads((finished_run / "result.json").read_text())
    output = launch.run(f"--workdir={finished_run}", "--mode=eval", "--step=latest", devices=8)
    assert f"test accuracy {result['final_test_accuracy']:.2%}" in output


def test_eight_devices_follow_the_loss_curve_of_one(launch, tmp_path):
    curves = []
    for devices in (1, 8):
        workdir = tmp_path / str(devices)
        launch.run(
            "--config=configs/digits.py:flexpool,reg,sac",
            "--config.dataset.image_size=8",
            "--config.batch_size=128",
            "--config.num_epochs=1",
            "--config.log_every_steps=1",
            # Rounding grows with each step of a large rate, whatever the number of devices.
            "--config.learning_rate=3e-4",
            "--config.optimizer.name=sgd",
            f"--workdir={workdir}",
            devices=devices,
        )
        curves.append([line["loss"] for line in read_metrics(workdir, "train")])
    assert len(curves[0]) == 11
    np.testing.assert_allclose(*curves, atol=1e-4)


def test_superclasses_first_then_classes_and_both_steps_resume(launch, tmp_path):
    mapping = tmp_path / "mapping.json"
    mapping.write_text(json.dumps({str(digit): ["even", "odd"][digit % 2] for digit in range(10)}))
    workdir = tmp_path / "run"
    command = (
        *SMALL,
        "--config.num_epochs=2",
        "--config.superclass.epochs=1",
        f"--config.superclass.mapping={mapping}",
        f"--workdir={workdir}",
    )
    launch.run(*command)
    first = json.loads((workdir / "superclass" / "result.json").read_text())
    assert first["epochs"] == 1
    result = json.loads((workdir / "result.json").read_text())
    assert result["epochs"] == 2
    # As a crash between the two steps leaves it: the second begins anew from the first, which is
    # not run again.
    other = tmp_path / "other"
    shutil.copytree(workdir / "superclass", other / "superclass")
    output = launch.run(*command[:-1], f"--workdir={other}")
    assert "finished" in output
    assert_same_run(other, workdir)
