"""What a user's model may and may not do in training."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import digits
from flexpool_jax import load_trained, register_model, train
from flexpool_jax.errors import TrainingDiverged, UserError


class Noisy(nn.Module):
    """Adds noise from a stream of its own in training."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(images))
        if train:
            x = x + 0.1 * jax.random.normal(self.make_rng("noise"), x.shape)
        return {"stage1": x}


class Counting(nn.Module):
    """Has a variable that is neither a parameter nor a statistic."""

    @nn.compact
    def __call__(self, images, train=False):
        self.variable("counter", "calls", lambda: jnp.zeros(()))
        return {"stage1": nn.relu(nn.Conv(4, (3, 3), strides=2)(images))}


class Broken(nn.Module):
    """Is not a number from the start."""

    @nn.compact
    def __call__(self, images, train=False):
        return {"stage1": nn.Conv(4, (3, 3), strides=2)(images) * jnp.nan}


class Partitioned(nn.Module):
    """Says how its kernel may be divided among devices, as nn.with_partitioning does."""

    @nn.compact
    def __call__(self, images, train=False):
        kernel_init = nn.with_partitioning(nn.initializers.he_normal(), (None, None, None, "model"))
        return {"stage1": nn.relu(nn.Conv(4, (3, 3), strides=2, kernel_init=kernel_init)(images))}


class DrawsAlways(nn.Module):
    """Draws random numbers in evaluation too, where there is no stream of them."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(images))
        return {"stage1": x + jax.random.normal(self.make_rng("noise"), x.shape)}


for name, module in (
    ("draws_always", DrawsAlways),
    ("noisy", Noisy),
    ("counting", Counting),
    ("broken", Broken),
    ("partitioned", Partitioned),
):
    register_model(f"{name}_for_tests", num_stages=1)(lambda module=module, **fields: module())


@pytest.fixture
def run(tmp_path):
    def run(model):
        config = digits.get_config("flexpool,reg")
        config.update_from_flattened_dict(
            {
                "model": model,
                "dataset.data_dir": str(tmp_path / "data"),
                "dataset.image_size": 8,
                "num_epochs": 1,
                "tensorboard": False,
            }
        )
        return train(config, tmp_path / "run")

    return run


def test_a_stream_of_random_numbers_of_its_own_works(run):
    assert run("noisy_for_tests")["epochs"] == 1


def test_partitioned_parameters_are_trained(run, tmp_path):
    assert run("partitioned_for_tests")["epochs"] == 1
    assert np.load(tmp_path / "run/pool_weights.npz")["head/pool/w_fp"].shape == (4, 4, 4)
    trained = load_trained(tmp_path / "run")
    initial = trained.model.init(jax.random.key(trained.config.seed), jnp.zeros((1, 8, 8, 1)))
    before, after = (
        variables["params"]["backbone"]["Conv_0"]["kernel"]
        for variables in (nn.unbox(initial), trained.variables)
    )
    assert np.abs(after - before).max() > 0.01


def test_a_line_that_fails_is_named_before_training(run, tmp_path):
    line = inspect.getsourcelines(DrawsAlways.__call__)[1] + 3
    with pytest.raises(UserError, match=rf"test_user_models.py:{line}: InvalidRngError: .*noise"):
        run("draws_always_for_tests")
    assert not (tmp_path / "run").exists()


def test_variables_that_training_does_not_keep_are_named(run):
    with pytest.raises(UserError, match=r"'counting_for_tests' has variables in counter"):
        run("counting_for_tests")


def test_a_loss_that_is_not_finite_from_the_start_is_not_blamed_on_the_rate(run):
    with pytest.raises(TrainingDiverged, match=r"step 1 .*look at the model and the data") as error:
        run("broken_for_tests")
    assert "learning_rate" not in str(error.value)
