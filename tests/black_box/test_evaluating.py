"""`--mode=eval`: the accuracy of a checkpoint, from the workdir alone."""

import subprocess
import sys

import pytest

from tests.black_box.conftest import (
    SCRIPT,
    metrics,
    outcome,
    read_json,
    run_in_process,
    saved_steps,
    snapshot,
)


def evaluate(workdir, *arguments):
    done = run_in_process(f"--workdir={workdir}", "--mode=eval", *arguments)
    assert done.status == 0, done.output
    return done, read_json(workdir / "evaluation.json")


def test_evaluation_repeats_what_training_measured(resnet_copy):
    done, found = evaluate(resnet_copy)
    result = read_json(resnet_copy / "result.json")
    assert found["accuracy"] == result["final_test_accuracy"]
    assert found["loss"] == pytest.approx(result["final_test_loss"], rel=1e-5)
    assert (found["step"], found["examples"], found["split"]) == (44, 359, "test")
    assert f"{100 * result['final_test_accuracy']:.2f} %" in done.stdout


def test_a_step_is_chosen_by_its_number(resnet_copy):
    _, found = evaluate(resnet_copy, "--step=22")
    first = metrics(resnet_copy, "test")[0]
    assert found["step"] == 22
    assert found["accuracy"] == first["accuracy"]
    assert found["loss"] == pytest.approx(first["loss"], rel=1e-5)


@pytest.mark.parametrize("step", ["best", "latest"])
def test_a_step_is_chosen_by_its_merit_or_age(resnet_copy, step):
    _, found = evaluate(resnet_copy, f"--step={step}")
    lines = {line["step"]: line["accuracy"] for line in metrics(resnet_copy, "test")}
    expected = max(lines.values()) if step == "best" else lines[44]
    assert found["accuracy"] == expected


@pytest.mark.parametrize("batch_size", ["7", "1e3"])
def test_every_image_counts_once_whatever_the_batch(resnet_copy, batch_size):
    _, found = evaluate(resnet_copy, f"--config.eval_batch_size={batch_size}")
    accuracy, loss, *_ = outcome(resnet_copy)
    assert found["examples"] == 359
    assert found["accuracy"] == accuracy
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


def test_evaluation_writes_nothing_but_its_own_file(resnet_copy):
    before = snapshot(resnet_copy)
    evaluate(resnet_copy)
    changed = set(snapshot(resnet_copy).items()) ^ set(before.items())
    assert {name for name, _ in changed} == {"evaluation.json"}


def test_a_reader_that_is_gone_costs_no_result(resnet_copy, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    command = [sys.executable, SCRIPT, f"--workdir={resnet_copy}", "--mode=eval"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert read_json(resnet_copy / "evaluation.json")["examples"] == 359


def test_a_backbone_of_ones_own_is_evaluated_with_its_config(launcher, small_copy):
    _, found = evaluate(small_copy, *launcher.small())
    assert found["accuracy"] == outcome(small_copy)[0]


@pytest.mark.parametrize("step", ["99", "0", "-1", "1e3", "last", "LATEST", "", "٣"])
def test_a_step_that_does_not_exist_is_refused(resnet_copy, refuses, step):
    refuses(f"--workdir={resnet_copy}", "--mode=eval", f"--step={step}", words=["step"])


def test_the_steps_that_exist_are_named(resnet_copy, refuses):
    words = ["22", "44", "best", "latest"]
    refuses(f"--workdir={resnet_copy}", "--mode=eval", "--step=23", words=words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=resnet32", ["config.model", "resnet32", "resnet20"]),
        ("pool=max", ["config.pool"]),
        ("dataset.name=cifar10", ["dataset.name"]),
        ("dataset.image_size=16", ["dataset.image_size"]),
    ],
)
def test_a_config_of_another_model_or_data_is_refused(resnet_copy, refuses, override, words):
    arguments = [f"--workdir={resnet_copy}", "--mode=eval", f"--config.{override}"]
    if override.startswith("pool="):
        arguments.append("--config.pool_reg=0")
    refuses(*arguments, words=words)


def test_a_folder_without_a_run_is_refused(tmp_path, refuses):
    refuses(f"--workdir={tmp_path / 'new'}", "--mode=eval", words=["config.json"])


def test_a_run_without_a_checkpoint_is_refused(resnet_copy, refuses):
    for step in saved_steps(resnet_copy):
        (resnet_copy / "checkpoints" / str(step)).rename(resnet_copy / f"moved-{step}")
    refuses(f"--workdir={resnet_copy}", "--mode=eval", words=["checkpoint"])
