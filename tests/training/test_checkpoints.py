"""Checkpoints on a real disk: what is kept, what is found to be damaged, what is never lost."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flexpool_jax.errors import UserError
from flexpool_jax.training import checkpoints
from flexpool_jax.training.steps import NotFinite, TrainState

TX = optax.adam(0.1)


def state_at(step):
    params = {"pool": {"w_fp": jnp.arange(2000.0).reshape(10, 10, 20) + step}}
    # No array is 0, as those are into which a checkpoint is read.
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), TX.init(params))
    return TrainState(
        jnp.asarray(step, jnp.int32), params, {"mean": jnp.full(3, step + 0.5)}, opt_state
    )


def save_all(workdir, accuracies):
    with checkpoints.open_checkpoints(workdir) as manager:
        for step, accuracy in accuracies.items():
            checkpoints.save(manager, state_at(step), {"seconds": 1.5 * step}, accuracy)
        checkpoints.wait(manager)


def restore_latest(workdir):
    with checkpoints.open_checkpoints(workdir) as manager:
        return checkpoints.restore_latest(manager, state_at(0))


def biggest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_restores_every_array_bit_by_bit_and_the_progress(tmp_path):
    save_all(tmp_path, {7: None})
    state, progress, _ = restore_latest(tmp_path)
    assert progress == {"seconds": 10.5}
    assert int(state.step) == 7
    jax.tree.map(np.testing.assert_array_equal, state, jax.device_get(state_at(7)))
    assert np.all(state.opt_state[0].mu["pool"]["w_fp"] == 7)


def test_an_optimizer_state_in_bfloat16_is_restored_as_it_was(tmp_path):
    params = state_at(7).params
    opt_state = optax.adam(0.1, mu_dtype=jnp.bfloat16).init(params)
    state = dataclasses.replace(state_at(7), opt_state=opt_state)
    with checkpoints.open_checkpoints(tmp_path) as manager:
        checkpoints.save(manager, state, {}, run={})
        checkpoints.wait(manager)
        restored, *_ = checkpoints.restore(manager, 7, state)
    assert restored.opt_state[0].mu["pool"]["w_fp"].dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, restored, jax.device_get(state))


def test_averaged_parameters_are_the_model_and_training_continues_from_the_others(tmp_path):
    state = dataclasses.replace(state_at(7), ema_params=state_at(3).params)
    with checkpoints.open_checkpoints(tmp_path) as manager:
        checkpoints.save(manager, state, {}, run={})
        checkpoints.wait(manager)
        restored, *_ = checkpoints.restore(manager, 7, state)
        model = checkpoints.restore_model(manager, 7, state)
    jax.tree.map(np.testing.assert_array_equal, restored, jax.device_get(state))
    jax.tree.map(np.testing.assert_array_equal, model["params"], state.ema_params)


def test_keeps_the_latest_two_and_the_best(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: 0.9, 3: 0.6, 4: 0.7, 5: 0.8})
    with checkpoints.open_checkpoints(tmp_path, read_only=True) as manager:
        assert sorted(manager.all_steps()) == [2, 4, 5]
        assert checkpoints.choose_step(manager, "best") == 2
        assert checkpoints.choose_step(manager, "latest") == 5
        assert checkpoints.choose_step(manager, "4") == checkpoints.choose_step(manager, 4) == 4
        with pytest.raises(UserError, match="2, 4, 5"):
            checkpoints.choose_step(manager, "3")


def test_nothing_saved_is_told_from_nothing_whole(tmp_path):
    assert restore_latest(tmp_path) is None
    with (
        checkpoints.open_checkpoints(tmp_path, read_only=True) as manager,
        pytest.raises(UserError, match="no checkpoint"),
    ):
        checkpoints.choose_step(manager, "best")


def truncate(folder):
    path = biggest_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(folder):
    path = biggest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def delete_half(folder):
    for path in sorted(p for p in folder.rglob("*") if p.is_file())[::2]:
        path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, delete_half])
@pytest.mark.parametrize("item", ["model", "optimizer", "progress", "."])
def test_a_damaged_latest_checkpoint_is_passed_over_and_kept_aside(tmp_path, damage, item, capsys):
    save_all(tmp_path, {1: 0.5, 2: 0.6})
    damage(tmp_path / "checkpoints" / "2" / item)
    state, *_ = restore_latest(tmp_path)
    # What only describes the checkpoint may be lost without loss of the checkpoint.
    if int(state.step) == 2:
        assert item in (".", "progress")
        assert damage is delete_half
        jax.tree.map(np.testing.assert_array_equal, state, jax.device_get(state_at(2)))
        return
    assert int(state.step) == 1
    assert "step 2" in capsys.readouterr().err
    assert (tmp_path / "checkpoints_damaged" / "2.0").is_dir()
    save_all(tmp_path, {2: 0.6})
    assert int(restore_latest(tmp_path)[0].step) == 2


def test_a_run_with_no_whole_checkpoint_is_not_started_over(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: 0.6})
    for step in "12":
        truncate(tmp_path / "checkpoints" / step / "model")
    with pytest.raises(UserError, match=r"damaged.*1, 2"):
        restore_latest(tmp_path)
    assert {p.name for p in (tmp_path / "checkpoints").glob("[0-9]*")} == {"1", "2"}


def test_a_run_without_its_optimizers_state_is_not_called_damaged(tmp_path):
    save_all(tmp_path, {7: None})
    shutil.rmtree(tmp_path / "checkpoints/7/optimizer")
    with pytest.raises(UserError, match=r"holds no state of an optimizer.*--config.init_from=FILE"):
        restore_latest(tmp_path)


def test_evaluation_of_a_damaged_step_fails_by_name(tmp_path):
    save_all(tmp_path, {3: 0.5})
    flip_a_bit(tmp_path / "checkpoints" / "3" / "model")
    with (
        checkpoints.open_checkpoints(tmp_path, read_only=True) as manager,
        pytest.raises(checkpoints.DamagedCheckpoint, match="step 3"),
    ):
        checkpoints.restore_model(manager, 3, state_at(0))


def test_saving_a_step_again_replaces_it(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: None})
    save_all(tmp_path, {2: 0.9})
    assert not list((tmp_path / "checkpoints_superseded").iterdir())
    with checkpoints.open_checkpoints(tmp_path) as manager:
        assert manager.best_step() == 2
    assert int(restore_latest(tmp_path)[0].step) == 2


def test_a_step_being_saved_again_is_not_lost_to_a_crash_in_between(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: None})
    # As a crash leaves it: the old one moved away, the new one not finished.
    (tmp_path / "checkpoints_superseded").mkdir()
    (tmp_path / "checkpoints_superseded/.DS_Store").touch()  # Written by a file manager.
    (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints_superseded" / "2")
    assert int(restore_latest(tmp_path)[0].step) == 2


def test_a_superseded_step_does_not_come_back_after_newer_ones(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: None})
    (tmp_path / "checkpoints_superseded").mkdir()
    shutil.copytree(tmp_path / "checkpoints/1", tmp_path / "checkpoints_superseded/1")
    shutil.rmtree(tmp_path / "checkpoints/1")  # As when later saves have replaced it.
    assert int(restore_latest(tmp_path)[0].step) == 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    assert not list((tmp_path / "checkpoints_superseded").iterdir())


def test_a_superseded_step_is_recovered_into_a_folder_that_was_deleted(tmp_path):
    save_all(tmp_path, {2: None})
    (tmp_path / "checkpoints").rename(tmp_path / "checkpoints_superseded")
    assert int(restore_latest(tmp_path)[0].step) == 2


def test_another_models_checkpoint_is_not_restored(tmp_path):
    save_all(tmp_path, {1: 0.5})
    other = state_at(0)
    other = other.replace(params={"pool": {"w_fp": jnp.zeros((9, 10, 20))}})
    with (
        checkpoints.open_checkpoints(tmp_path) as manager,
        pytest.raises(UserError, match=r"step 1 was saved by another model: .* \(10, 10, 20\)"),
    ):
        checkpoints.restore_latest(manager, other)


@pytest.mark.parametrize(
    "metrics", ["", "{}", "3", '{"accuracy": "x"}', '{"accuracy": NaN}', "0.1"]
)
def test_an_accuracy_that_cannot_be_read_is_no_accuracy(tmp_path, metrics):
    save_all(tmp_path, {1: 0.5, 2: 0.6})
    (tmp_path / "checkpoints" / "2" / "metrics" / "metrics").write_text(metrics)
    with pytest.raises(UserError, match="checkpoint 2"):
        checkpoints.open_checkpoints(tmp_path, read_only=True)
    assert int(restore_latest(tmp_path)[0].step) == 1
    assert (tmp_path / "checkpoints_damaged" / "2.0").is_dir()


def test_an_altered_accuracy_does_not_make_another_checkpoint_the_best(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: 0.6})
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text('{"accuracy": 0.9}')
    with checkpoints.open_checkpoints(tmp_path) as manager:
        assert manager.best_step() == 2


def test_a_state_that_was_not_evaluated_has_no_accuracy(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: None})
    shutil.copytree(tmp_path / "checkpoints/1/metrics", tmp_path / "checkpoints/2/metrics")
    with checkpoints.open_checkpoints(tmp_path) as manager:
        assert manager.best_step() == 1


def test_a_run_is_not_started_over_when_no_accuracy_can_be_read(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: 0.6})
    for step in "12":
        (tmp_path / "checkpoints" / step / "metrics" / "metrics").write_text("")
    for _ in range(2):
        with pytest.raises(UserError, match="damaged"):
            restore_latest(tmp_path)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    save_all(tmp_path, {1: 0.5})
    state = state_at(2).replace(batch_stats={"mean": jnp.array([0.0, jnp.nan, 0.0])})
    with checkpoints.open_checkpoints(tmp_path) as manager:
        with pytest.raises(NotFinite, match="mean"):
            checkpoints.save(manager, state, {}, 0.9)
        assert manager.all_steps() == [1]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    for read_only in (False, True):
        with pytest.raises(UserError, match="checkpoints is not a folder"):
            checkpoints.open_checkpoints(tmp_path, read_only=read_only)
