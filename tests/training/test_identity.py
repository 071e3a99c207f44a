"""Checkpoints that are not what they seem: renamed, of another run, of other data."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import linen as nn

import launch
from configs import digits
from flexpool_jax import (
    configuration,
    evaluate,
    files,
    layout,
    load_trained,
    register_metric,
    register_model,
    scoring,
    train,
)
from flexpool_jax.data import Dataset, Split, load_dataset
from flexpool_jax.errors import UserError
from flexpool_jax.evaluation import restore_workdir
from flexpool_jax.portable.card import model_card
from flexpool_jax.report.results import find_runs
from flexpool_jax.report.rows import make_rows
from flexpool_jax.source import commit, run_source_hash, source_hash
from flexpool_jax.training import checkpoints, identity, run
from flexpool_jax.training.setup import set_up

STEPS_PER_EPOCH = 11


class TwoConvs(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        first = nn.relu(nn.Conv(4, (3, 3))(images))
        return {"stage1": first, "stage2": nn.relu(nn.Conv(8, (3, 3), strides=2)(first))}


@register_model("two_small_convs", num_stages=2)
def two_small_convs(*, dtype, norm_axis_name):
    return TwoConvs()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def make_config(data_dir):
    def make(variant="flexpool,reg", **fields):
        config = digits.get_config(variant)
        config.update_from_flattened_dict(
            {
                "model": "two_small_convs",
                "dataset.data_dir": str(data_dir),
                "dataset.image_size": 8,
                "batch_size": 128,
                "num_epochs": 2,
                "tensorboard": False,
                **fields,
            }
        )
        return config

    return make


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    register_metric("mean_confidence")(lambda labels, probabilities: probabilities.max(1).mean())
    try:
        train(make_config(), workdir)
    finally:
        del scoring.METRICS["mean_confidence"]
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def result_of(workdir):
    return json.loads((workdir / "result.json").read_text())


def rename(workdir, **steps):
    folder = workdir / layout.CHECKPOINTS_FOLDER
    for old in steps:
        (folder / old[1:]).rename(folder / f"moved{old[1:]}")
    for old, new in steps.items():
        (folder / f"moved{old[1:]}").rename(folder / str(new))


def test_result_says_whether_the_seed_drew_the_test_images(finished, make_config, tmp_path):
    assert result_of(finished)["test_split"] == "official"
    train(make_config(num_epochs=1, **{"dataset.holdout": 0.25}), tmp_path / "run")
    assert result_of(tmp_path / "run")["test_split"] == "drawn"


def test_a_renamed_checkpoint_is_neither_evaluated_nor_continued(workdir, make_config):
    rename(workdir, _22=9999)
    with pytest.raises(UserError, match=r"9999 holds step 22.*renamed"):
        evaluate(workdir)
    with pytest.raises(UserError, match=r"9999 holds step 22"):
        train(make_config(num_epochs=3), workdir)
    rename(workdir, _9999=22)
    assert evaluate(workdir)["accuracy"] == result_of(workdir)["final_test_accuracy"]


def test_swapped_checkpoints_are_refused(workdir):
    rename(workdir, _11=22, _22=11)
    for step in ("11", "22", "latest"):
        with pytest.raises(UserError, match="holds step"):
            evaluate(workdir, step)


def test_a_checkpoint_of_release_0_1_that_was_renamed_is_refused(workdir, make_config):
    config = make_config()
    dataset = load_dataset("digits", config.dataset.data_dir, image_size=8)
    like = set_up(config, dataset).abstract_state
    with checkpoints.open_checkpoints(workdir) as manager:
        forget_run(workdir, 22)
        checkpoints.restore_model(manager, 22, like)
    rename(workdir, _22=33)
    with (
        checkpoints.open_checkpoints(workdir) as manager,
        pytest.raises(UserError, match="33 holds step 22"),
    ):
        checkpoints.restore_model(manager, 33, like)


def forget_run(workdir, step):
    """Makes a checkpoint one as release 0.1 wrote them."""
    path = workdir / layout.CHECKPOINTS_FOLDER / str(step) / "progress" / "metadata"
    content = json.loads(path.read_text())
    del content["run"], content["sha256"]["run"]
    path.write_text(json.dumps(content))


def test_a_run_that_was_identified_cannot_be_made_anonymous_by_half(workdir):
    path = workdir / layout.CHECKPOINTS_FOLDER / "22" / "progress" / "metadata"
    content = json.loads(path.read_text())
    del content["run"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="progress differs"):
        evaluate(workdir)


def test_a_checkpoint_that_does_not_name_its_run_is_accepted_with_a_warning(workdir, capsys):
    forget_run(workdir, 22)
    evaluate(workdir)
    assert "release 0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variant", "fields", "named"),
    [
        ("softmax", {}, "config.pool is"),
        ("flexpool,reg", {"seed": 1}, "config.seed is"),
        ("flexpool,reg", {"learning_rate": 0.02}, "id"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    workdir, make_config, tmp_path, variant, fields, named
):
    other = tmp_path / "other"
    train(make_config(variant, **fields), other)
    shutil.rmtree(workdir / layout.CHECKPOINTS_FOLDER / "22")
    shutil.copytree(
        other / layout.CHECKPOINTS_FOLDER / "22", workdir / layout.CHECKPOINTS_FOLDER / "22"
    )
    with pytest.raises(UserError, match=rf"checkpoint 22 is of another.*{named}"):
        evaluate(workdir)
    with pytest.raises(UserError, match=rf"checkpoint 22 is of another.*{named}"):
        train(make_config(num_epochs=3), workdir)


def test_another_model_in_config_json_is_called_that(workdir):
    path = configuration.config_path(workdir)
    path.write_text(path.read_text().replace("two_small_convs", "resnet20"))
    with pytest.raises(UserError, match="another model") as caught:
        evaluate(workdir)
    assert "damaged" not in str(caught.value)


def test_a_later_step_that_is_in_the_way_of_a_save_is_an_error(workdir, make_config, monkeypatch):
    copied = workdir / layout.CHECKPOINTS_FOLDER / "9999"

    def copy_first(*arguments):
        if not copied.exists():
            shutil.copytree(workdir / layout.CHECKPOINTS_FOLDER / "22", copied)
            arguments[0].reload()
        return save(*arguments)

    save = checkpoints.save
    monkeypatch.setattr(checkpoints, "save", copy_first)
    with pytest.raises(UserError, match=r"step 33 cannot be saved.*9999"):
        train(make_config(num_epochs=3), workdir)


def test_fewer_epochs_than_are_done_are_refused_and_nothing_is_written(workdir, make_config):
    before = configuration.config_path(workdir).read_bytes()
    with pytest.raises(UserError, match=r"num_epochs is 1, .*allowed: at least 2"):
        train(make_config(num_epochs=1), workdir)
    assert configuration.config_path(workdir).read_bytes() == before


@pytest.mark.parametrize("every", [1, 10])
def test_a_run_that_is_ended_at_an_earlier_epoch_is_evaluated_there_and_logged_once(
    make_config, tmp_path, monkeypatch, every
):
    def save_twice(*arguments):
        if int(arguments[1].step) == 33:
            raise KeyboardInterrupt
        save(*arguments)

    save = checkpoints.save
    fields = {"eval_every_epochs": every, "checkpoint_every_epochs": 1}
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save", save_twice)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(num_epochs=3, **fields), tmp_path)
    result = train(make_config(num_epochs=2, **fields), tmp_path)
    assert (result["step"], result["epochs"]) == (22, 2)
    assert evaluate(tmp_path)["accuracy"] == result["final_test_accuracy"]
    assert (tmp_path / "predictions.npz").is_file()
    assert train(make_config(num_epochs=2, **fields), tmp_path) == result_of(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    tests = [line["step"] for line in lines if line["split"] == "test"]
    assert tests == ([11, 22] if every == 1 else [22])


def test_changes_between_starts_are_recorded_where_they_change_what_is_computed(
    workdir, make_config
):
    assert result_of(workdir)["config_changes"] == []
    train(make_config(num_epochs=3, learning_rate=0.001, log_every_steps=7), workdir)
    train(make_config(num_epochs=4, learning_rate=0.001), workdir)
    assert result_of(workdir)["config_changes"] == [
        {"step": 22, "field": "learning_rate", "from": 0.01, "to": 0.001},
        {"step": 22, "field": "num_epochs", "from": 2, "to": 3},
        {"step": 33, "field": "num_epochs", "from": 3, "to": 4},
    ]


def test_another_number_of_devices_is_a_change_if_each_has_its_own_batch_statistics(
    make_config, tmp_path, monkeypatch
):
    saved = identity.Identity.to_json
    with monkeypatch.context() as patched:
        patched.setattr(identity.Identity, "to_json", lambda self: saved(self) | {"devices": 8})
        train(make_config(num_epochs=1, sync_batch_norm=False), tmp_path / "run")
    train(make_config(num_epochs=2, sync_batch_norm=False), tmp_path / "run")
    change = {"step": 11, "field": "devices", "from": 8, "to": jax.device_count()}
    assert change in result_of(tmp_path / "run")["config_changes"]
    synchronised = make_config()
    assert identity.Identity(None, synchronised, "").changes(11, synchronised, devices=8) == []


def test_a_move_of_the_users_own_data_is_no_change_of_the_run(make_config, data_dir, tmp_path):
    dataset = load_dataset("digits", data_dir, image_size=8)
    (here := tmp_path / "here").mkdir()
    arrays = {"x_train": dataset.train.images, "y_train": dataset.train.labels}
    arrays |= {"x_test": dataset.test.images, "y_test": dataset.test.labels}
    np.savez(here / "mine.npz", **arrays)

    def fields(folder):
        return {"dataset.name": "npz", "dataset.raw_dir": str(folder / "mine.npz")}

    train(make_config(num_epochs=1, **fields(here)), tmp_path / "run")
    there = here.rename(tmp_path / "there")
    train(make_config(num_epochs=2, **fields(there)), tmp_path / "run")
    changed = [change["field"] for change in result_of(tmp_path / "run")["config_changes"]]
    assert changed == ["num_epochs"]


def test_a_change_is_recorded_although_the_run_was_stopped_before_it_saved_again(
    workdir, make_config, monkeypatch
):
    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save", fail)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(num_epochs=3, learning_rate=0.001), workdir)
    train(make_config(num_epochs=3, learning_rate=0.001), workdir)
    changed = {change["field"] for change in result_of(workdir)["config_changes"]}
    assert changed == {"learning_rate", "num_epochs"}


def other_data(dataset: Dataset, change: str) -> Dataset:
    if change == "class names":
        return dataclasses.replace(dataset, class_names=("zero", *dataset.class_names[1:]))
    if change == "training images":
        fewer = Split(dataset.train.images[:-1], dataset.train.labels[:-1])
        return dataclasses.replace(dataset, train=fewer)
    swapped = Split(dataset.test.images[::-1], dataset.test.labels[::-1])
    return dataclasses.replace(dataset, test=swapped)


@pytest.mark.parametrize("change", ["class names", "training images", "other pixels or labels"])
def test_other_data_under_the_same_name_are_refused(workdir, make_config, monkeypatch, change):
    config = make_config()
    dataset = other_data(load_dataset("digits", config.dataset.data_dir, image_size=8), change)
    monkeypatch.setattr("flexpool_jax.evaluation.load_configured_dataset", lambda config: dataset)
    monkeypatch.setattr(run, "load_configured_dataset", lambda config: dataset)
    with pytest.raises(UserError, match=f"other data.*{change}"):
        evaluate(workdir)
    with pytest.raises(UserError, match=f"other data.*{change}"):
        train(make_config(num_epochs=3), workdir)


def test_data_are_fixed_once_a_checkpoint_is_saved(make_config, tmp_path):
    config = make_config()
    first = load_dataset("digits", config.dataset.data_dir, image_size=8)
    given = dataclasses.replace(other_data(first, "other pixels or labels"), mean=first.mean / 2)
    begun = identity.begin(tmp_path, config, first)
    assert identity.begin(tmp_path, config, given) == dataclasses.replace(begun, data=given.digest)
    data = json.loads((tmp_path / layout.DATA_FILE).read_text())
    assert data["digest"] == given.digest
    np.testing.assert_array_equal(np.float32(data["mean"]), given.mean)
    (tmp_path / layout.CHECKPOINTS_FOLDER / "11").mkdir(parents=True)
    with pytest.raises(UserError, match="other data"):
        identity.begin(tmp_path, config, first)


@pytest.mark.parametrize("name", ["evaluation.json", "probe.json"])
def test_measurements_of_a_deleted_run_are_removed_when_another_begins(make_config, tmp_path, name):
    config = make_config()
    dataset = load_dataset("digits", config.dataset.data_dir, image_size=8)
    (tmp_path / name).write_text("{}")
    identity.begin(tmp_path, config, dataset)
    assert not (tmp_path / name).exists()
    (tmp_path / name).write_text("{}")
    (tmp_path / "result.json").write_text("{}")
    identity.begin(tmp_path, config, dataset)
    assert not (tmp_path / name).exists()
    (tmp_path / name).write_text("{}")
    (tmp_path / layout.CHECKPOINTS_FOLDER / "11").mkdir(parents=True)
    identity.begin(tmp_path, config, dataset)
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("moved", ["checkpoints_damaged/11.0", "checkpoints_superseded/11"])
def test_measurements_stay_while_a_checkpoint_is_set_aside(moved, make_config, tmp_path):
    config = make_config()
    (tmp_path / moved).mkdir(parents=True)
    (tmp_path / "probe.json").write_text("{}")
    dataset = load_dataset("digits", config.dataset.data_dir, image_size=8)
    identity.begin(tmp_path, config, dataset)
    assert (tmp_path / "probe.json").exists()
    assert not (tmp_path / "run.json").exists()  # The checkpoint has an id of its own.


def test_arrays_from_a_program_are_not_taken_for_the_set_of_that_name(
    make_config, tmp_path, capsys
):
    config = make_config()
    builtin = load_dataset("digits", config.dataset.data_dir, image_size=8)
    given = other_data(builtin, "other pixels or labels")
    result = train(config, tmp_path, given)
    assert result["data_digest"] == given.digest != builtin.digest
    with pytest.raises(UserError, match="other data"):
        evaluate(tmp_path)
    with pytest.raises(UserError, match="other data"):
        train(make_config(num_epochs=3), tmp_path)
    assert launch.main([f"--workdir={tmp_path}", "--mode=eval"]) == 2
    assert "other data" in capsys.readouterr().err
    assert evaluate(tmp_path, dataset=given)["accuracy"] == result["final_test_accuracy"]
    assert train(make_config(num_epochs=3), tmp_path, given)["epochs"] == 3


def test_a_trained_model_predicts_what_its_run_did(workdir, make_config):
    trained = load_trained(workdir)
    test = load_dataset("digits", make_config().dataset.data_dir, image_size=8).test
    logits = trained.model.apply(trained.variables, trained.preprocess(test.images))
    with np.load(workdir / "predictions.npz") as file:
        np.testing.assert_array_equal(np.argmax(logits, -1), file["predictions"])
    assert trained.class_names == tuple("0123456789")


def test_the_digest_of_the_checkpoint_holds_where_data_json_is_missing(
    workdir, make_config, monkeypatch
):
    config = make_config()
    dataset = other_data(load_dataset("digits", config.dataset.data_dir, image_size=8), "pixels")
    (workdir / layout.DATA_FILE).unlink()
    monkeypatch.setattr("flexpool_jax.evaluation.load_configured_dataset", lambda config: dataset)
    with pytest.raises(UserError, match="other data"):
        evaluate(workdir)


def test_a_workdir_says_what_its_data_were(workdir, make_config):
    dataset = load_dataset("digits", make_config().dataset.data_dir, image_size=8)
    data = json.loads((workdir / layout.DATA_FILE).read_text())
    assert data["class_names"] == list("0123456789")
    assert data["image_shape"] == [8, 8, 1]
    np.testing.assert_array_equal(np.float32(data["mean"]), dataset.mean)
    assert data["digest"] == dataset.digest == result_of(workdir)["data_digest"]


def test_the_result_names_what_it_was_made_with(workdir, make_config):
    result = result_of(workdir)
    # The model is defined here, outside the package.
    assert result["source_hash"] == run_source_hash(make_config()) != source_hash()
    assert result["commit"] == commit()
    assert result["test_images"] == 359
    assert result["convolutions"].startswith(("oneDNN", "XLA"))


def test_code_that_changed_midway_is_recorded(workdir, make_config, monkeypatch):
    monkeypatch.setattr(run, "run_source_hash", lambda config: "other")
    train(make_config(num_epochs=3), workdir)
    assert result_of(workdir)["source_hash"] == [run_source_hash(make_config()), "other"]


def test_predictions_give_the_final_accuracy_and_evaluation_leaves_them_alone(workdir, make_config):
    path = workdir / "predictions.npz"
    content = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    dataset = load_dataset("digits", make_config().dataset.data_dir, image_size=8)
    np.testing.assert_array_equal(arrays["labels"], dataset.test.labels)
    assert {name: a.dtype for name, a in arrays.items()} == {
        "labels": np.int16,
        "predictions": np.int16,
        "confidences": np.float16,
    }
    accuracy = np.mean(arrays["predictions"] == arrays["labels"])
    assert accuracy == pytest.approx(result_of(workdir)["final_test_accuracy"])
    assert arrays["confidences"].min() >= 0.1
    assert arrays["confidences"].max() <= 1
    evaluate(workdir, "11")
    assert path.read_bytes() == content


def test_metrics_beside_accuracy_are_logged_and_in_the_result(workdir):
    result, lines = result_of(workdir), (workdir / "metrics.jsonl").read_text().splitlines()
    restored = restore_workdir(workdir)
    dataset = restored.setup.dataset
    images = np.float32((dataset.test.images / 255 - dataset.mean) / dataset.std)
    logits = restored.setup.model.apply(restored.variables, images)
    probabilities = scoring.softmax(np.asarray(logits))
    expected = {
        "calibration_error": scoring.calibration_error(dataset.test.labels, probabilities),
        "mean_confidence": probabilities.max(axis=1).mean(),
    }
    assert result["final_test_metrics"] == pytest.approx(expected, abs=1e-4)
    last = json.loads(lines[-1])
    assert {name: last[name] for name in expected} == result["final_test_metrics"]
    assert not any(isinstance(value, list | dict) for value in last.values())
    per_class = scoring.accuracy_per_class(dataset.test.labels, probabilities)
    assert result["final_test_accuracy_per_class"] == per_class
    assert result["class_names"] == list("0123456789")
    evaluated = evaluate(workdir)
    assert evaluated["accuracy_per_class"] == per_class
    assert evaluated["calibration_error"] == pytest.approx(expected["calibration_error"], abs=1e-4)


def test_pool_weights_are_those_of_the_last_step(workdir, make_config):
    config = make_config()
    dataset = load_dataset("digits", config.dataset.data_dir, image_size=8)
    like = set_up(config, dataset).abstract_state
    with checkpoints.open_checkpoints(workdir, read_only=True) as manager:
        params = checkpoints.restore_model(manager, 22, like)["params"]
    with np.load(workdir / "pool_weights.npz") as file:
        assert list(file) == ["head/pool/w_fp"]
        np.testing.assert_array_equal(file["head/pool/w_fp"], params["head"]["pool"]["w_fp"])


def test_confidences_are_of_the_predicted_class(workdir, make_config):
    restored = restore_workdir(workdir)
    dataset = restored.setup.dataset
    images = (dataset.test.images / 255 - dataset.mean) / dataset.std
    logits = restored.setup.model.apply(restored.variables, np.float32(images))
    with np.load(workdir / "predictions.npz") as file:
        np.testing.assert_allclose(
            file["confidences"], jax.nn.softmax(logits).max(axis=-1), atol=1e-3
        )


def test_a_result_that_was_altered_is_neither_told_again_nor_reported(workdir, make_config):
    path = workdir / "result.json"
    content = json.loads(path.read_text())
    right = content["final_test_accuracy"]
    path.write_text(json.dumps({**content, "final_test_accuracy": 0.999}))
    found = find_runs(workdir.parent)
    assert not found.runs
    assert "not those that were written" in found.skipped[0]
    assert train(make_config(), workdir)["final_test_accuracy"] == right
    assert [run.result["final_test_accuracy"] for run in find_runs(workdir.parent).runs] == [right]


def test_another_normalisation_of_the_same_images_is_refused(workdir, make_config):
    config = make_config()
    dataset = load_dataset("digits", config.dataset.data_dir, image_size=8)
    other = dataclasses.replace(dataset, mean=dataset.mean + 0.1)
    content = (workdir / layout.DATA_FILE).read_text()
    for command in (
        lambda: train(config, workdir, dataset=other),
        lambda: evaluate(workdir, dataset=other),
    ):
        with pytest.raises(UserError, match=r"was trained with mean .* and the data set has"):
            command()
    assert (workdir / layout.DATA_FILE).read_text() == content


def test_a_result_that_was_copied_from_another_run_is_replaced(workdir, make_config, tmp_path):
    right = result_of(workdir)
    train(make_config(seed=1), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "result.json", workdir)
    again = train(make_config(), workdir)
    assert again["final_test_loss"] == right["final_test_loss"]
    assert again["sha256"] == result_of(workdir)["sha256"]
    assert result_of(workdir)["model_digest"] == right["model_digest"]


def test_a_finished_run_says_that_another_value_has_no_effect(workdir, make_config, capsys):
    train(make_config(learning_rate=0.5), workdir)
    assert (
        "not trained again with another value: config.learning_rate is 0.5"
        in capsys.readouterr().err
    )


def test_a_checkpoint_that_training_deletes_meanwhile_is_passed_over(workdir, monkeypatch):
    checkpoint, later = workdir / "checkpoints" / "22", workdir.parent / "22"
    checkpoint.rename(later)
    read_run = checkpoints.read_run

    def read_after_training_has_saved(manager, step):
        if later.exists():
            shutil.rmtree(workdir / "checkpoints" / "11")
            later.rename(checkpoint)
        return read_run(manager, step)

    monkeypatch.setattr(checkpoints, "read_run", read_after_training_has_saved)
    assert load_trained(workdir).step == 22


def test_a_result_of_fewer_epochs_is_replaced(workdir, make_config):
    path = workdir / "result.json"
    content = json.loads(path.read_text())
    right = content["final_test_accuracy"]
    # As after an extension from one epoch to two whose result could not be written.
    old = {**content, "epochs": 1, "step": STEPS_PER_EPOCH, "final_test_accuracy": 0.1}
    del old["sha256"]
    files.write_json(path, files.with_digest(old))
    assert train(make_config(), workdir)["final_test_accuracy"] == right
    assert result_of(workdir)["step"] == 2 * STEPS_PER_EPOCH


@pytest.mark.parametrize(("pool", "drifts"), [("flexpool", True), ("flexpool_softmax", False)])
def test_the_regularizer_is_logged_of_the_weights_that_are_used(
    make_config, tmp_path, pool, drifts
):
    train(make_config(pool, num_epochs=1), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if line["split"] == "train"]
    assert all((line["regularizer"] > 0) == drifts for line in steps)


def test_the_best_step_is_said_to_be_chosen_on_the_same_images(workdir, capsys):
    assert launch.main([f"--workdir={workdir}", "--mode=eval", "--step=best"]) == 0
    assert "chosen by its accuracy on these images" in capsys.readouterr().out
    assert launch.main([f"--workdir={workdir}", "--mode=eval"]) == 0
    assert "chosen" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ["[]", '"id"', "{}", "{"])
def test_a_damaged_run_json_is_named_by_evaluation_and_loading_alike(workdir, content):
    (workdir / layout.RUN_FILE).write_text(content)
    for command in (evaluate, load_trained):
        with pytest.raises(UserError, match=r"run\.json (is damaged|cannot be read)"):
            command(workdir)


def test_the_pools_weights_are_those_that_are_evaluated(make_config, tmp_path):
    train(make_config(ema_decay=0.9, num_epochs=1), tmp_path / "run")
    expected = load_trained(tmp_path / "run").variables["params"]["head"]["pool"]["w_fp"]
    with np.load(tmp_path / "run" / "pool_weights.npz") as file:
        np.testing.assert_array_equal(file["head/pool/w_fp"], expected)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    sums = np.sum(expected, axis=(0, 1))
    assert last["head/pool/sum_mean"] == pytest.approx(sums.mean(), abs=1e-6)
    assert last["head/pool/sum_sd"] == pytest.approx(sums.std(), abs=1e-6)


def test_a_finished_run_without_its_checkpoints_is_not_trained_again(workdir, make_config):
    shutil.rmtree(workdir / layout.CHECKPOINTS_FOLDER)
    before = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    for epochs in (2, 3):
        with pytest.raises(UserError, match="result of a finished run and no checkpoint"):
            train(make_config(num_epochs=epochs), workdir)
    assert {p.name: p.read_bytes() for p in workdir.iterdir() if p.is_file()} == before


def test_code_of_a_model_that_changed_is_not_called_damage(make_config, tmp_path):
    class Growing(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            return {"stage1": nn.Dense(features)(images)}

    features = 2
    register_model("growing", num_stages=1)(lambda **fields: Growing())
    train(make_config(model="growing", num_epochs=1), tmp_path)
    features = 3
    with pytest.raises(UserError, match=r"saved by another model: .* \(2,\), and needs .* \(3,\)"):
        train(make_config(model="growing", num_epochs=2), tmp_path)
    assert (tmp_path / layout.CHECKPOINTS_FOLDER / "11").is_dir()


def test_a_report_names_the_data_that_were_used(make_config, tmp_path):
    config = make_config(num_epochs=1)
    mine = dataclasses.replace(
        load_dataset("digits", config.dataset.data_dir, image_size=8), name="mine"
    )
    train(config, tmp_path, mine)
    (row,) = make_rows(find_runs(tmp_path).runs)
    assert row.title.startswith("mine")
    assert "# two_small_convs with the pool flexpool on mine\n" in model_card(
        load_trained(tmp_path)
    )


def test_a_trained_model_can_be_trained_on_in_another_program(workdir):
    trained = load_trained(workdir)
    images = trained.preprocess(np.zeros((2, 8, 8, 1), np.uint8))
    logits, updates = trained.model.apply(
        trained.variables, images, train=True, mutable=["batch_stats"]
    )
    assert logits.shape == (2, 10)
    assert updates["batch_stats"].keys() == trained.variables["batch_stats"].keys()
