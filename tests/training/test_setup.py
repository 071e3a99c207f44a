"""What is checked of a config with its data: some of it only before training."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from configs import digits
from flexpool_jax import configuration, register_model
from flexpool_jax.data import Dataset, Split
from flexpool_jax.errors import UserError
from flexpool_jax.training.setup import check_training, set_up


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return {"stage1": nn.Dense(2)(images)}


register_model("linear_for_setup", num_stages=1)(lambda **fields: Linear())


def make(num_images, variant="flexpool", **fields):
    """A set-up for black images of 8 x 8 pixels."""
    config = digits.get_config(variant)
    config.update_from_flattened_dict({"model": "linear_for_setup", **fields})
    split = Split(np.zeros((num_images, 8, 8, 1), np.uint8), np.zeros(num_images, np.int32))
    one = np.ones(1, np.float32)
    dataset = Dataset("black", split, split, ("zero", "one"), one, one)
    return set_up(configuration.resolve(config), dataset)


def test_only_training_needs_a_batch_that_the_devices_can_share(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    setup = make(500, batch_size=125)
    assert setup.abstract_state().step.shape == ()
    with pytest.raises(UserError, match=r"batch_size is 125, which 2 devices cannot share"):
        check_training(setup)
    check_training(make(500, batch_size=124))


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
    with pytest.raises(UserError, match=r"pool_reg is 10, which SGD cannot hold.*map of 8x8"):
        check_training(setup)
