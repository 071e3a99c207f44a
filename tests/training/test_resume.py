"""The state from which a run starts: a checkpoint before everything else, then given weights."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import digits
from flexpool_jax import configuration
from flexpool_jax.data import Dataset, Split
from flexpool_jax.errors import UserError
from flexpool_jax.models.weights import save_weights
from flexpool_jax.training import checkpoints, processes
from flexpool_jax.training.identity import Identity
from flexpool_jax.training.resume import Progress, restore_or_init
from flexpool_jax.training.setup import set_up


def make(**fields):
    config = digits.get_config("flexpool")
    config.update_from_flattened_dict({"model": "linear_for_tests", "batch_size": 2, **fields})
    split = Split(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int32))
    one = np.ones(1, np.float32)
    dataset = Dataset("black", split, split, ("zero", "one"), one, one)
    return set_up(configuration.resolve(config), dataset)


def start(setup, workdir, pretrained=None):
    workdir.mkdir(exist_ok=True)
    with checkpoints.open_checkpoints(workdir) as manager:
        identity = Identity(None, setup.config, setup.dataset.digest)
        return restore_or_init(setup, manager, identity, pretrained)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("source", ["superclasses", "file"])
def test_the_optimizer_and_the_average_start_with_the_weights_that_are_given(tmp_path, source):
    # Prodigy keeps the parameters with which it began.
    fields = {"optimizer.name": "prodigy", "ema_decay": 0.9}
    trained = jax.tree.map(lambda x: np.asarray(x) + 1, make().init().variables)
    file = tmp_path / "model.safetensors"
    save_weights(file, trained)
    setup = make(**fields, **({"init_from": str(file)} if source == "file" else {}))
    state, _ = start(setup, tmp_path / "run", trained if source == "superclasses" else None)
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    kept = [leaf for path, leaf in leaves if "params0" in jax.tree_util.keystr(path)]
    assert_equal(kept, jax.tree.leaves(state.params))
    assert_equal(state.ema_params, state.params)
    assert_equal(state.params["backbone"], trained["params"]["backbone"])
    assert int(state.step) == 0


def test_weights_of_a_pool_with_another_constraint_are_not_a_start(tmp_path):
    file = tmp_path / "model.safetensors"
    save_weights(file, make().init().variables, pool="flexpool_softmax")
    with pytest.raises(UserError, match=r"'flexpool_softmax' .* the model's pool 'flexpool' "):
        start(make(init_from=str(file)), tmp_path / "run")


def test_a_run_that_continues_does_not_need_the_file_that_it_started_from(tmp_path):
    setup = make(init_from="nowhere.safetensors")
    with pytest.raises(UserError, match=r"nowhere.safetensors: there is no such file"):
        start(setup, tmp_path)
    saved = dataclasses.replace(setup.init(), step=np.int32(1))
    with checkpoints.open_checkpoints(tmp_path) as manager:
        run = Identity(None, setup.config, setup.dataset.digest).to_json()
        checkpoints.save(manager, saved, dataclasses.asdict(Progress()), run=run)
    state, _ = start(setup, tmp_path)
    assert int(state.step) == 1
    assert_equal(state.params, saved.params)


def test_a_run_continues_with_weight_decay_turned_off(tmp_path, capfd):
    before = make(**{"optimizer.name": "rmsprop", "optimizer.weight_decay": 0.1})
    saved = jax.tree.map(lambda x: np.ones_like(x), before.init())
    with checkpoints.open_checkpoints(tmp_path) as manager:
        run = Identity(None, before.config, before.dataset.digest).to_json()
        checkpoints.save(manager, saved, dataclasses.asdict(Progress()), run=run)
    state, _ = start(make(**{"optimizer.name": "rmsprop"}), tmp_path)
    assert_equal(state, saved)
    assert "damaged" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["adam", "prodigy"])
def test_the_optimizer_begins_anew_when_the_backbone_is_no_longer_frozen(tmp_path, capfd, name):
    fields = {"optimizer.name": name, "init_from": "nowhere.safetensors"}
    frozen = make(**fields, freeze="backbone")
    saved = jax.tree.map(lambda x: np.full_like(x, 7), frozen.init())
    with checkpoints.open_checkpoints(tmp_path) as manager:
        run = Identity(None, frozen.config, frozen.dataset.digest).to_json()
        checkpoints.save(manager, saved, dataclasses.asdict(Progress()), run=run)
    setup = make(**fields)
    state, _ = start(setup, tmp_path)
    said = capfd.readouterr().err
    assert_equal(state.params, saved.params)
    assert int(state.step) == 7
    if name == "prodigy":
        assert "freeze is now empty: prodigy keeps its state" in said
        assert_equal(state.opt_state, saved.opt_state)
        return
    assert "freeze is now empty: the optimizer's state begins anew" in said
    *moments, rate = state.opt_state
    assert int(rate.count) == 7
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(moments))
    # While the backbone stays frozen, the state is kept.
    assert_equal(start(frozen, tmp_path)[0], saved)


def test_processes_that_receive_the_state_need_no_file(tmp_path, monkeypatch):
    setup = make(init_from="nowhere.safetensors")
    monkeypatch.setattr(processes, "is_first", lambda: False)
    state, progress = start(setup, tmp_path)
    like = setup.abstract_state
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), like
    )
    assert progress == Progress()
