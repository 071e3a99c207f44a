"""What a training run computes, prints and writes."""

import json

import numpy as np
import pytest

from tests.black_box.conftest import metrics, outcome, read_json, run_in_process, run_process


def column(workdir, split, name):
    return [line[name] for line in metrics(workdir, split)]


# The tolerances are several times what other instruction sets, XLA's own convolutions, four
# devices or JAX 0.12 do to these numbers.
def test_resnet20_trains_to_the_known_numbers(resnet_run):
    assert column(resnet_run, "train", "loss") == pytest.approx([1.7834, 0.6103], rel=0.02)
    assert column(resnet_run, "test", "loss") == pytest.approx([0.7578, 0.3278], rel=0.02)
    assert column(resnet_run, "test", "accuracy") == pytest.approx([0.847, 0.916], abs=0.015)
    assert column(resnet_run, "test", "step") == [22, 44]
    assert column(resnet_run, "test", "epoch") == [1.0, 2.0]
    assert read_json(resnet_run / "result.json")["parameters"] == 269_690


def test_sac_and_dropout_train_to_the_known_numbers(small_run):
    assert column(small_run, "train", "loss") == pytest.approx([2.2110, 1.4476, 0.9814], rel=2e-3)
    assert column(small_run, "test", "loss") == pytest.approx([1.6499, 0.5667, 0.4301], rel=2e-3)
    assert column(small_run, "test", "accuracy") == pytest.approx([0.532, 0.847, 0.891], abs=0.006)
    assert column(small_run, "test", "step") == [11, 22, 33]
    assert read_json(small_run / "result.json")["parameters"] == 7_374


def test_the_loss_is_the_sum_that_the_paper_gives(small_run):
    for line in metrics(small_run, "train"):
        stages = [line[f"cross_entropy{stage}"] for stage in ("_stage1", "_stage2", "")]
        assert line["sac"] == pytest.approx(np.dot((0.1, 0.2, 0.7), stages))
        assert line["loss"] == pytest.approx(line["sac"] + 0.1 * line["regularizer"])


def test_a_run_leaves_what_the_readme_lists(small_run):
    names = {path.name for path in small_run.iterdir()}
    assert {"config.json", "checkpoints", "metrics.jsonl", "tensorboard", "result.json"} <= names
    assert list((small_run / "tensorboard").glob("events.out.tfevents.*"))


def test_each_epoch_has_a_line_about_training_and_one_about_the_test(resnet_run):
    lines = [json.loads(line) for line in (resnet_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines] == ["train", "test"] * 2
    assert all({"step", "epoch", "loss", "accuracy", "images_per_second"} <= set(x) for x in lines)
    parts = {"cross_entropy", "regularizer", "learning_rate"}
    assert all(parts <= set(line) for line in lines if line["split"] == "train")


def test_the_result_says_what_was_run_and_what_came_out(resnet_run):
    result = read_json(resnet_run / "result.json")
    test = metrics(resnet_run, "test")
    assert result["final_test_accuracy"] == test[-1]["accuracy"]
    assert result["final_test_loss"] == test[-1]["loss"]
    assert result["best_test_accuracy"] == max(line["accuracy"] for line in test)
    assert (result["step"], result["epochs"], result["split"]) == (44, 2, "test")
    assert result["config"] == read_json(resnet_run / "config.json")
    assert len(result["config_digest"]) == 16
    assert result["seconds"] > 0
    assert result["images_per_second"] > 0
    assert (result["devices"], result["platform"]) == (1, "cpu")
    assert {"python", "jax", "flax", "flexpool_jax"} <= set(result["versions"])


def test_the_workdir_keeps_every_field(small_run):
    config = read_json(small_run / "config.json")
    assert config["pool"] == "flexpool"
    assert config["pool_reg"] == 0.1
    assert config["dropout_rate"] == 0.25
    assert config["sac"] == {"enabled": True, "weights": [0.1, 0.2, 0.7]}
    assert config["dataset"]["name"] == "digits"
    assert config["batch_size"] == 128


def test_a_run_says_on_what_it_runs_and_how_far_it_is(launcher, tmp_path):
    done = run_in_process(*launcher.small(f"--workdir={tmp_path / 'run'}"))
    assert done.status == 0
    for word in ("cpu", "7,374 parameters", "1,438", "359", "33 steps", "epoch 3/3", "accuracy"):
        assert word in done.stderr
    assert f"{tmp_path / 'run'}/result.json" in done.stdout
    assert "final test accuracy" in done.stdout


def test_the_same_command_gives_the_same_numbers(launcher, small_run, tmp_path):
    launcher.train(tmp_path / "again", variant="flexpool,reg,dropout,sac")
    assert metrics(tmp_path / "again") == metrics(small_run)
    assert outcome(tmp_path / "again") == outcome(small_run)


def test_the_pool_of_the_released_code_trains(launcher, tmp_path):
    workdir = launcher.train(tmp_path / "run", variant="softmax")
    losses = column(workdir, "train", "loss")
    assert losses[2] < losses[0]
    assert read_json(workdir / "config.json")["pool"] == "flexpool_softmax"


def test_bfloat16_trains_to_nearly_the_same_loss(launcher, tmp_path):
    losses = [
        column(launcher.train(tmp_path / dtype, f"--config.dtype={dtype}"), "train", "loss")
        for dtype in ("float32", "bfloat16")
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_cadences_say_what_is_written(launcher, tmp_path):
    workdir = launcher.train(
        tmp_path / "run", "--config.eval_every_epochs=2", "--config.log_every_steps=5"
    )
    steps = [5, 10, 11, 15, 20, 22, 25, 30, 33]
    assert column(workdir, "train", "step") == steps
    assert column(workdir, "train", "epoch") == pytest.approx([step / 11 for step in steps])
    assert column(workdir, "test", "step") == [22, 33]


def test_a_holdout_is_measured_in_the_place_of_the_test_images(launcher, tmp_path):
    workdir = launcher.train(tmp_path / "run", "--config.dataset.holdout=0.25")
    result = read_json(workdir / "result.json")
    assert result["split"] == "validation"
    assert {line["split"] for line in metrics(workdir)} == {"train", "validation"}
    # A quarter of the 1,438 training images is held out, which leaves 8 steps of 128.
    assert result["step"] == 24


def test_a_loss_that_is_not_finite_stops_the_run_and_a_lower_rate_continues_it(launcher, tmp_path):
    sgd = ["--config.optimizer.name=sgd", "--config.schedule=constant", f"--workdir={tmp_path}/run"]
    command = launcher.small(*sgd, variant="flexpool")
    assert run_in_process(*command, "--config.num_epochs=1").status == 0
    done = run_in_process(*command, "--config.num_epochs=2", "--config.learning_rate=1000")
    assert done.status == 1
    assert "Traceback" not in done.output
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert "nan" in done.last_line or "inf" in done.last_line
    assert "step 11" in done.last_line
    assert "--config.learning_rate" in done.last_line
    done = run_in_process(*command, "--config.num_epochs=2", "--config.learning_rate=0.01")
    assert done.status == 0, done.output
    assert column(tmp_path / "run", "test", "step") == [11, 22]


def test_sgd_is_refused_where_eq_2_cannot_be_stable(launcher, refuses, tmp_path):
    sgd = ("--config.optimizer.name=sgd", "--config.learning_rate=5")
    refuses(
        *launcher.small(*sgd, f"--workdir={tmp_path}/run", variant="flexpool,reg"),
        words=["config.pool_reg", "stable"],
    )


def test_closed_standard_streams_do_not_stop_training(launcher, tmp_path):
    workdir = tmp_path / "run"
    command = launcher.small(f"--workdir={workdir}", "--config.num_epochs=1")
    status, _ = run_process(*command, before=("sh", "-c", 'exec "$@" <&- 2>&-', "sh"))
    assert status == 0
    assert read_json(workdir / "result.json")["epochs"] == 1
