"""A workdir gives its config back as it was, and lets a run change only what it may."""

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import default, digits
from flexpool_jax import layout
from flexpool_jax.configuration import (
    FIELDS,
    check_resume,
    check_workdir,
    compare_with_workdir,
    config_from_json,
    digest,
    has_checkpoint,
    read_config,
    write_config,
)
from flexpool_jax.errors import UserError

RESULTS = Path(__file__).parents[2] / "results"

# Another valid value for every field.
OTHER = {
    "seed": 1,
    "model": "resnet32",
    "norm_after_relu": True,
    "projection_shortcuts": True,
    "pool": "avg",
    "pool_reg": 0.2,
    "pool_learning_rate_scale": 0.02,
    "dropout_rate": 0.5,
    "init_from": "other.safetensors",
    "freeze": "backbone",
    "sac.enabled": True,
    "sac.weights": (0.05, 0.1, 0.85),
    "dataset.name": "cifar100",
    "dataset.data_dir": "elsewhere",
    "dataset.raw_dir": "downloads",
    "dataset.image_size": 64,
    "dataset.resize": "crop",
    "dataset.center_crop": 56,
    "dataset.placement": "stream",
    "dataset.holdout": 0.1,
    "dataset.mean": (0.5, 0.5, 0.5),
    "dataset.std": (0.25, 0.25, 0.25),
    "batch_size": 128,
    "num_epochs": 7,
    "eval_batch_size": 10,
    "optimizer.name": "sgd",
    "optimizer.momentum": 0.5,
    "optimizer.weight_decay": 1e-4,
    "optimizer.weight_decay_kind": "decoupled",
    "optimizer.decay_pool": True,
    "optimizer.clip_norm": 1.0,
    "learning_rate": 0.01,
    "schedule": "cosine",
    "warmup_epochs": 3,
    "ema_decay": 0.999,
    "label_smoothing": 0.1,
    "dtype": "bfloat16",
    "deterministic": True,
    "grad_accum_steps": 2,
    "sync_batch_norm": False,
    "augment.flip": False,
    "augment.scale": (1.0, 1.0),
    "augment.crop": 4,
    "augment.random_resized_crop": (0.08, 1.0),
    "superclass.epochs": 10,
    "superclass.mapping": "animals.json",
    "eval_every_epochs": 2,
    "checkpoint_every_epochs": 2,
    "log_every_steps": 1,
    "steps_per_dispatch": 1,
    "tensorboard": False,
    "compilation_cache": "",
}
FIXED = {
    *("seed", "model", "norm_after_relu", "pool", "sac.enabled", "batch_size", "optimizer.name"),
    *("ema_decay", "projection_shortcuts", "init_from", "dtype"),
    *("dataset.name", "dataset.image_size", "dataset.holdout", "dataset.mean", "dataset.std"),
    *("augment.flip", "augment.scale", "augment.crop", "superclass.epochs", "superclass.mapping"),
    *("dataset.resize", "dataset.center_crop", "augment.random_resized_crop"),
}


def changed(name):
    config = default.get_config()
    config.update_from_flattened_dict({name: OTHER[name]})
    return config


def test_every_field_has_another_value():
    assert set(OTHER) == set(FIELDS)


def test_config_is_read_back_as_it_was_written(tmp_path):
    config = digits.get_config("flexpool,reg,dropout,sac")
    write_config(config, tmp_path)
    saved = read_config(tmp_path)
    assert saved.to_dict() == config.to_dict()
    assert type(saved.sac.weights) is tuple
    assert saved.is_locked
    assert digest(saved) == digest(config)


def test_writing_leaves_one_file_that_others_may_read(tmp_path):
    write_config(default.get_config(), tmp_path)
    write_config(changed("seed"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert read_config(tmp_path).seed == 1
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "config.json").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_config_that_cannot_be_written_leaves_the_old_one_whole(tmp_path):
    write_config(default.get_config(), tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_config(ConfigDict({"learning_rate": float("nan")}), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b'{"pool_learning_rate_scale": {}}',
        b'{"seed": 0',
        b'{"seed": 0}}',
        b'{"seed": {"a.b": 1}}',
        b'{"a.b": 1}',
        b"null",
    ],
)
def test_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged") as error:
        read_config(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_config_is_no_workdir(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"no config\.json"):
        read_config(tmp_path / "absent")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", sorted(FIXED))
def test_what_makes_model_or_data_cannot_change(name):
    with pytest.raises(UserError) as error:
        compare_with_workdir(changed(name), default.get_config())
    before = default.get_config()
    for part in name.split("."):
        before = before[part]
    assert f"config.{name} is {OTHER[name]!r} (was {before!r})" in str(error.value)


@pytest.mark.parametrize("name", sorted(set(FIELDS) - FIXED))
def test_everything_else_can_and_is_reported(name):
    (change,) = compare_with_workdir(changed(name), default.get_config())
    assert (change.field, change.given) == (name, OTHER[name])


def test_all_fields_that_differ_are_named_at_once():
    config = changed("seed")
    config.model = "resnet56"
    with pytest.raises(UserError, match=r"config\.model .*config\.seed "):
        compare_with_workdir(config, default.get_config())


def test_a_whole_number_equals_the_same_float(tmp_path):
    config = default.get_config()
    config.augment.scale = (1.0, 2.0)
    write_config(config, tmp_path)
    saved = read_config(tmp_path)
    config.augment.scale = (1, 2)
    assert compare_with_workdir(config, saved) == []
    assert digest(config) == digest(saved)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_digest_names_what_a_config_computes(name):
    same = digest(changed(name)) == digest(default.get_config())
    assert same != FIELDS[name].has_effect


def test_digest_stays_what_it_was_in_other_versions():
    """Results are matched with configs by their digests, across releases too."""
    config = ConfigDict({"seed": 0, "learning_rate": 0.1, "sac": {"weights": (0.1, 0.2, 0.7)}})
    assert digest(config) == "d616c6fe80a5bed1"


def test_results_of_earlier_releases_keep_their_digests():
    results = [json.loads(path.read_text()) for path in RESULTS.rglob("result.json")]
    assert len(results) > 50
    for result in results:
        config = config_from_json(result["config"])
        saved = result["config"].get("pool_learning_rate_scale", 1.0)
        assert config.pool_learning_rate_scale == saved
        assert digest(config) == result["config_digest"]


def test_digest_does_not_tell_zero_from_negative_zero():
    one, other = default.get_config(), default.get_config()
    one.label_smoothing, other.label_smoothing = 0.0, -0.0
    one.augment.scale, other.augment.scale = (0.0, 1.0), (-0.0, 1.0)
    assert digest(one) == digest(other)


def test_digest_tells_image_folders_apart():
    one, other = default.get_config(), default.get_config()
    for config, folder in ((one, "cats"), (other, "dogs")):
        config.dataset.name = "image_folder"
        config.dataset.raw_dir = folder
    assert digest(one) != digest(other)


def test_keywords_of_the_optimizer_cannot_change_and_have_an_effect():
    one, other = default.get_config(), default.get_config()
    with other.unlocked():
        other.optimizer.kwargs = {"b1": 0.8}
    assert digest(one) != digest(other)
    with pytest.raises(UserError, match=r"config\.optimizer\.kwargs\.b1 is 0\.8"):
        compare_with_workdir(other, one)


def test_resuming_in_a_workdir(tmp_path):
    config = default.get_config()
    assert check_resume(config, tmp_path) == []
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no config\.json"):
        check_resume(config, tmp_path)
    write_config(changed("num_epochs"), tmp_path)
    assert [change.field for change in check_resume(config, tmp_path)] == ["num_epochs"]


def test_a_run_without_saved_state_may_start_again_with_another_model(tmp_path):
    write_config(changed("model"), tmp_path)
    (tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "checkpoints_damaged").mkdir()
    (tmp_path / "run.json").write_text("{}")
    (change,) = check_resume(default.get_config(), tmp_path)
    assert (change.field, change.saved) == ("model", "resnet32")


@pytest.mark.parametrize(
    "saved",
    ["checkpoints/12", "checkpoints_damaged/12.0", "checkpoints_superseded/12", "result.json"],
)
def test_saved_state_fixes_the_model(tmp_path, saved):
    write_config(changed("model"), tmp_path)
    (tmp_path / saved).mkdir(parents=True)
    with pytest.raises(UserError, match=r"config\.model"):
        check_resume(default.get_config(), tmp_path)


def test_only_finished_checkpoints_count(tmp_path):
    assert not has_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not has_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "12").mkdir()
    assert has_checkpoint(tmp_path)


def test_workdir_may_be_new_or_there_and_nothing_is_made(tmp_path):
    check_workdir(str(tmp_path))
    check_workdir(str(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


def test_workdir_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / "dangling"):
        with pytest.raises(UserError, match="is a file"):
            check_workdir(str(path))
    for path in ("gs://bucket/run", "a\0b"):
        with pytest.raises(UserError, match="on this machine"):
            check_workdir(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_workdir_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="permission"):
        check_workdir(str(tmp_path / "run"))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    )
)
def test_no_json_raises_anything_but_a_user_error(tmp_path_factory, value):
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "config.json").write_text(json.dumps(value))
    with contextlib.suppress(UserError):
        assert read_config(workdir).to_dict().keys() >= value.keys()


@pytest.mark.parametrize(
    ("workdir", "named"),
    [
        ("  ", "path of a folder"),
        ("~nosuchuser", "no user"),
        ("~nosuchuser/run", "no user"),
        ("x" * 256, "too long"),
        ("a\udcff", "UTF-8"),
        ("loop/run", "symbolic links"),
    ],
)
def test_a_path_that_cannot_be_a_folders_is_refused(tmp_path, monkeypatch, workdir, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match=named) as error:
        check_workdir(workdir)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_a_folder_whose_name_begins_with_a_tilde_is_allowed(tmp_path, monkeypatch):
    check_workdir(str(tmp_path / "~mine"))
    monkeypatch.chdir(tmp_path)
    check_workdir("./~mine")


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", ".lock", "events.out"])
def test_a_link_to_a_file_is_refused_and_its_target_stays(tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / name).symlink_to(outside)
    with pytest.raises(UserError, match=f"{name} is a link to a file"):
        check_workdir(str(workdir))
    assert outside.read_text() == "mine"


def test_a_linked_folder_is_allowed(tmp_path):
    (tmp_path / "scratch").mkdir()
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "checkpoints").symlink_to(tmp_path / "scratch")
    check_workdir(str(workdir))


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "predictions.npz", ".lock"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a folder where a file belongs"):
        check_workdir(str(tmp_path))


@pytest.mark.parametrize("name", layout.FOLDERS)
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=f"{name} is a file where a folder belongs"):
        check_workdir(str(tmp_path))


def test_an_exported_network_is_not_called_a_damaged_workdir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "a", "pretrained_cfg": {}}))
    with pytest.raises(UserError, match=r"is an exported network .* flexpool_jax.load_exp"):
        read_config(tmp_path)
