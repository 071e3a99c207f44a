"""A run from the command line: what it writes, and that it does not depend on where it runs."""

import json
import shutil

import numpy as np

from tests.end_to_end.conftest import assert_same_run, read_metrics


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
    # Far from what the recipe reaches in full, and far from the one in ten of chance.
    assert result["final_test_accuracy"] > 0.6


def test_eight_devices_evaluate_as_one(launch, finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "run")
    result = json.loads((workdir / "result.json").read_text())
    output = launch.run(f"--workdir={workdir}", "--mode=eval", "--step=latest", devices=8)
    assert f"test accuracy {100 * result['final_test_accuracy']:.2f} %" in output


def test_eight_devices_follow_the_loss_curve_of_one(launch, tiny_config, tmp_path):
    curves = []
    for devices in (1, 8):
        workdir = tmp_path / str(devices)
        launch.run(
            f"--config={tiny_config}",
            "--config.num_epochs=1",
            # Adam divides by the size of a gradient, which enlarges the rounding of small ones.
            "--config.optimizer.name=sgd",
            f"--workdir={workdir}",
            devices=devices,
        )
        curves.append([line["loss"] for line in read_metrics(workdir, "train")])
    assert len(curves[0]) == 10
    np.testing.assert_allclose(*curves, rtol=1e-5)


def test_superclasses_first_then_classes_and_both_steps_resume(launch, tiny_config, tmp_path):
    mapping = tmp_path / "mapping.json"
    mapping.write_text(json.dumps({"a": "vowel", "b": "consonant", "c": "consonant"}))
    workdir = tmp_path / "run"
    command = (
        f"--config={tiny_config}",
        "--config.superclass.epochs=1",
        f"--config.superclass.mapping={mapping}",
    )
    launch.run(*command, f"--workdir={workdir}")
    first = json.loads((workdir / "superclass" / "result.json").read_text())
    assert first["epochs"] == 1
    result = json.loads((workdir / "result.json").read_text())
    assert result["epochs"] == 2
    # As a crash between the two steps leaves it: the second begins anew from the first, which is
    # not run again.
    other = tmp_path / "other"
    shutil.copytree(workdir / "superclass", other / "superclass")
    output = launch.run(*command, f"--workdir={other}")
    assert "finished" in output
    assert_same_run(other, workdir)
