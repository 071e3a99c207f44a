"""What is checked of a config with its data: some of it only before training."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental.compilation_cache import compilation_cache

from configs import digits
from flexpool_jax import configuration, register_model
from flexpool_jax.data import Dataset, Split
from flexpool_jax.errors import UserError
from flexpool_jax.training import feed, processes, steps
from flexpool_jax.training.environment import agree_on_compilation_cache
from flexpool_jax.training.setup import _memory_for_images, check_training, set_up


def make(num_images, variant="flexpool", side=8, **fields):
    """A set-up for black images: training images of side x side pixels, test images of 8 x 8."""
    config = digits.get_config(variant)
    config.update_from_flattened_dict({"model": "linear_for_tests", **fields})
    train, test = (
        Split(np.zeros((num_images, size, size, 1), np.uint8), np.zeros(num_images, np.int32))
        for size in (side, 8)
    )
    one = np.ones(1, np.float32)
    dataset = Dataset("black", train, test, ("zero", "one"), one, one)
    return set_up(configuration.resolve(config), dataset)


def test_only_training_needs_a_batch_that_the_devices_can_share(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    setup = make(500, batch_size=125)
    assert setup.abstract_state.step.shape == ()
    with pytest.raises(UserError, match=r"batch_size is 125, which 2 devices cannot share"):
        check_training(setup)
    check_training(make(500, batch_size=124))


def test_another_normalisation_reads_no_images_for_their_digest():
    setup = make(500, **{"dataset.mean": (0.5,), "dataset.std": (0.25,)})
    assert setup.dataset.mean == 0.5
    assert "digest" not in vars(setup.dataset)


def test_only_random_crops_take_training_images_of_another_size():
    augment = {"augment.random_resized_crop": (0.08, 1.0), "augment.scale": (1.0, 1.0)}
    check_training(make(500, batch_size=100, side=12, **augment))
    with pytest.raises(UserError, match="12 x 12 pixels and the test images 8 x 8"):
        check_training(make(500, batch_size=100, side=12))


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "step", "warmup_cosine"])
def test_only_training_needs_as_many_images_as_a_batch(schedule):
    setup = make(3, batch_size=125, schedule=schedule)
    with pytest.raises(UserError, match=r"batch_size is 125, more than the 3 training images"):
        check_training(setup)


def test_only_training_needs_a_stable_pool_reg():
    setup = make(
        500,
        "flexpool,reg=10,optimizer.name=sgd",
        batch_size=100,
        learning_rate=0.1,
    )
    with pytest.raises(UserError, match=r"pool_reg is 10, which is not stable.*map of 8x8"):
        check_training(setup)


class Normed(nn.Module):
    norm_axis_name: str | None

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.BatchNorm(not train, axis_name=self.norm_axis_name)(images)
        return {"stage1": x, "stage2": nn.Dense(2)(x)}


register_model("normed_for_setup", num_stages=2)(
    lambda *, norm_axis_name, **fields: Normed(norm_axis_name)
)


@functools.cache
def program(**fields):
    """What is compiled for one step of 8 images."""
    setup = make(32, model="normed_for_setup", batch_size=8, num_epochs=4, **fields)
    images = jax.ShapeDtypeStruct((32, 8, 8, 1), np.uint8)
    data = steps.DeviceSplit(images, jax.ShapeDtypeStruct((32,), np.int32))
    devices = jax.local_device_count()
    part = jax.ShapeDtypeStruct((devices, 1, 8 // devices), np.int32)
    return setup.train_steps.lower(setup.abstract_state, data, part, jax.random.key(0)).as_text()


@pytest.mark.parametrize(
    "fields",
    [
        {"augment.flip": True},
        {"augment.scale": (0.5, 1.5)},
        {"augment.crop": 2},
        {"grad_accum_steps": 2},
        {"pool_learning_rate_scale": 0.5},
        {"pool_reg": 0.1},
        {"label_smoothing": 0.1},
        {"dropout_rate": 0.5},
        {"ema_decay": 0.9},
        {"sync_batch_norm": False},
        {"schedule": "cosine"},
        {"learning_rate": 0.02},
        {"optimizer.clip_norm": 1.0},
        {"optimizer.weight_decay": 0.1},
        {"sac.enabled": True},
        {"sac.weights": (0.3, 0.7)},
        {"dataset.mean": (0.25,)},
        {"dataset.std": (0.25,)},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_each_field_reaches_the_step(fields):
    # Fields that have an effect only together with others.
    others = {
        "sac.weights": {"sac.enabled": True, "sac.weights": (0.1, 0.9)},
        "dataset.mean": {"dataset.mean": (0.5,), "dataset.std": (0.5,)},
        "dataset.std": {"dataset.mean": (0.5,), "dataset.std": (0.5,)},
    }
    before = others.get(next(iter(fields)), {})
    assert program(**before | fields) != program(**before)


def test_the_seed_draws_the_weights_and_the_order():
    zero, one = (make(500, seed=seed) for seed in (0, 1))
    kernels = [setup.init().params["backbone"]["Dense_0"]["kernel"] for setup in (zero, one)]
    assert not np.allclose(*kernels)
    orders = [
        feed._epoch_indices(*place) for place in ((zero, 500, 0), (one, 500, 0), (zero, 500, 1))
    ]
    assert len({order.tobytes() for order in orders}) == 3


def test_the_processes_of_a_machine_share_its_memory(monkeypatch):
    config = digits.get_config()
    alone = _memory_for_images(config)
    monkeypatch.setattr(processes, "gather", lambda host: [host, "another", host, host])
    assert _memory_for_images(config) == alone / 3


@pytest.mark.parametrize("other_has_it", [True, False])
def test_the_compile_cache_is_used_if_all_processes_find_the_same_in_it(
    other_has_it, tmp_path, monkeypatch, capsys
):
    found_by_the_other = []
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        if other_has_it:
            (tmp_path / "step-1234-cache").touch()
        monkeypatch.setattr(
            processes, "gather", lambda found: found_by_the_other.append(found) or []
        )
        agree_on_compilation_cache()
        monkeypatch.setattr(processes, "gather", lambda found: [found, *found_by_the_other])
        (tmp_path / "step-1234-cache").touch()
        agree_on_compilation_cache()
        assert jax.config.jax_enable_compilation_cache == other_has_it
        assert ("not use them" in capsys.readouterr().err) != other_has_it
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
