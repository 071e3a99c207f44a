"""Schedules against their closed forms, optimisers against PyTorch's update rules in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flexpool_jax.errors import UserError
from flexpool_jax.training.optimizer import SCHEDULES, make_optimizer, make_schedule

PARAMS = {"conv": {"kernel": jnp.array([1.0, -2.0])}, "pool": {"w_fp": jnp.array([0.5, 0.5])}}
GRADS = {"conv": {"kernel": jnp.array([0.1, 0.3])}, "pool": {"w_fp": jnp.array([0.2, -0.4])}}


def onecycle(step, total, peak):
    """PyTorch's OneCycleLR with its defaults: 30 % up from peak/25, then down to peak/250,000."""
    low, lowest, turn = peak / 25, peak / 25e4, 0.3 * total
    if step <= turn:
        return low + (peak - low) * (1 - np.cos(np.pi * step / turn)) / 2
    return lowest + (peak - lowest) * (1 + np.cos(np.pi * (step - turn) / (total - turn))) / 2


def test_onecycle_is_pytorchs():
    schedule = make_schedule("onecycle", 0.1, 1000)
    for step in (0, 1, 150, 300, 301, 700, 999):
        np.testing.assert_allclose(schedule(step), onecycle(step, 1000, 0.1), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.1), (499, 0.1), (500, 0.01), (749, 0.01), (750, 0.001), (999, 0.001)]
)
def test_step_schedule_divides_by_ten_at_one_half_and_three_quarters(step, rate):
    np.testing.assert_allclose(make_schedule("step", 0.1, 1000)(step), rate, rtol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 5, 10])
def test_every_schedule_is_finite_and_positive_however_short_the_run(name, total_steps):
    schedule = make_schedule(name, 0.1, total_steps)
    rates = np.array([schedule(step) for step in range(total_steps)])
    assert np.all(np.isfinite(rates))
    assert np.all((rates > 0) & (rates <= 0.1001))


def test_l2_adds_the_weight_to_the_gradient_of_kernels_only():
    tx = make_optimizer("sgd", optax.constant_schedule(0.1), momentum=0.9, weight_decay=0.01)
    params, state = PARAMS, tx.init(PARAMS)
    kernel, velocity = np.array([1.0, -2.0]), np.zeros(2)
    for _ in range(3):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        velocity = 0.9 * velocity + np.array([0.1, 0.3]) + 0.01 * kernel
        kernel = kernel - 0.1 * velocity
    np.testing.assert_allclose(params["conv"]["kernel"], kernel, rtol=1e-5)
    # 0.1 (1 + 1.9 + 2.71) g, free of decay.
    np.testing.assert_allclose(
        params["pool"]["w_fp"], 0.5 - 0.561 * np.array([0.2, -0.4]), rtol=1e-5
    )


def test_decoupled_decay_shrinks_weights_beside_adams_step():
    with_decay, without = (
        make_optimizer(
            "adam",
            optax.constant_schedule(0.1),
            weight_decay=decay,
            weight_decay_kind="decoupled",
        )
        for decay in (0.01, 0.0)
    )
    moved = [tx.update(GRADS, tx.init(PARAMS), PARAMS)[0] for tx in (with_decay, without)]
    difference = jax.tree.map(lambda a, b: a - b, *moved)
    np.testing.assert_allclose(difference["conv"]["kernel"], [-0.001, 0.002], rtol=1e-3)
    np.testing.assert_array_equal(difference["pool"]["w_fp"], 0.0)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_the_pools_weights_learn_at_a_rate_of_their_own(name):
    plain, scaled = (
        make_optimizer(
            name,
            optax.constant_schedule(0.1),
            weight_decay=0.01,
            weight_decay_kind="decoupled",
            pool_learning_rate_scale=scale,
        )
        for scale in (1.0, 0.25)
    )
    state = plain.init(PARAMS)
    for _ in range(3):
        # One state serves both, so that the scale may change in the middle of a run.
        expected, after = plain.update(GRADS, state, PARAMS)
        updates, state = scaled.update(GRADS, state, PARAMS)
        assert jax.tree.structure(state) == jax.tree.structure(after)
        jax.tree.map(np.testing.assert_array_equal, state, after)
        np.testing.assert_array_equal(updates["conv"]["kernel"], expected["conv"]["kernel"])
        np.testing.assert_allclose(updates["pool"]["w_fp"], 0.25 * expected["pool"]["w_fp"])
        assert np.all(expected["pool"]["w_fp"] != 0)


def test_unknown_names_are_refused_with_the_closest():
    with pytest.raises(UserError, match=r"'one-cycle'.*'onecycle'"):
        make_schedule("one-cycle", 0.1, 10)
    with pytest.raises(UserError, match=r"'adamm'.*'adam'"):
        make_optimizer("adamm", optax.constant_schedule(0.1))
    with pytest.raises(UserError, match=r"'decouple'.*'decoupled'"):
        make_optimizer("sgd", optax.constant_schedule(0.1), weight_decay_kind="decouple")
