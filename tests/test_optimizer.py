"""Schedules against their closed forms, optimisers against PyTorch's update rules in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flexpool_jax.errors import UserError
from flexpool_jax.optimizer import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule, restart

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


@pytest.mark.parametrize("step", [0, 1, 250, 500, 999])
def test_cosine_falls_from_the_rate_to_zero_and_constant_stays(step):
    falling = 0.1 * (1 + np.cos(np.pi * step / 1000)) / 2
    np.testing.assert_allclose(
        make_schedule("cosine", 0.1, 1000)(step), falling, rtol=1e-4, atol=1e-8
    )
    np.testing.assert_allclose(make_schedule("constant", 0.1, 1000)(step), 0.1, rtol=1e-6)


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


def test_sgd_takes_nesterovs_momentum_as_a_keyword():
    tx = make_optimizer("sgd", optax.constant_schedule(0.1), kwargs={"nesterov": True})
    params, state = PARAMS, tx.init(PARAMS)
    kernel, velocity, gradient = np.array([1.0, -2.0]), np.zeros(2), np.array([0.1, 0.3])
    for _ in range(2):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        velocity = 0.9 * velocity + gradient
        kernel = kernel - 0.1 * (gradient + 0.9 * velocity)
    np.testing.assert_allclose(params["conv"]["kernel"], kernel, rtol=1e-6)


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


def test_warmup_cosine_is_a_straight_line_and_half_a_cosine():
    schedule = make_schedule("warmup_cosine", 0.1, 100, warmup_steps=20)
    for step in range(100):
        rising = 0.1 / 21 + (0.1 - 0.1 / 21) * step / 20
        falling = 0.05 * (1 + np.cos(np.pi * (step - 20) / 80))
        np.testing.assert_allclose(
            schedule(step), rising if step < 20 else falling, rtol=1e-5, atol=1e-8
        )


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_the_state_is_that_of_the_first_release_whatever_is_switched_on(name):
    """A run continues with other coefficients, and checkpoints of release 0.1 are restored."""
    scale = optax.ScaleByAdamState if name == "adam" else optax.TraceState
    for options in ({}, {"clip_norm": 1.0, "decay_pool": True, "weight_decay": 0.1}):
        state = make_optimizer(name, optax.constant_schedule(0.1), **options).init(PARAMS)
        assert len(state) == 4
        assert isinstance(state[1], scale)
        assert [len(jax.tree.leaves(part)) for part in state] == [
            0,
            5 if name == "adam" else 2,
            0,
            1,
        ]


def decay_of(name, **options):
    """What weight decay adds to the first update of each weight."""
    params = {**PARAMS, "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}}
    grads = jax.tree.map(jnp.ones_like, params)
    moved = []
    for weight_decay in (0.1, 0.0):
        tx = make_optimizer(
            name, optax.constant_schedule(0.01), weight_decay=weight_decay, **options
        )
        moved.append(tx.update(grads, tx.init(params), params)[0])
    return jax.tree.map(lambda a, b: np.asarray(a - b), *moved)


USABLE = [
    name
    for name in OPTIMIZERS
    if name
    not in (
        *("galore", "lbfgs", "momo", "momo_adam", "noisy_sgd", "optimistic_adam", "rprop"),
        *("sm3", "sophia"),
    )
]


@pytest.mark.parametrize("name", USABLE)
def test_every_optimizer_keeps_decay_off_norms_biases_and_the_pool(name):
    decay = decay_of(name, weight_decay_kind="decoupled")
    for leaf in (decay["pool"]["w_fp"], decay["norm"]["scale"], decay["norm"]["bias"]):
        # dog and dowg choose one rate by all gradients, and the decay of kernels changes it a bit.
        np.testing.assert_allclose(leaf, 0, atol=1e-6)
    # The first steps of these two do not depend on weights or gradients by design.
    if name not in ("cocob", "adopt"):
        assert np.any(decay["conv"]["kernel"] != 0)


@pytest.mark.parametrize("name", USABLE)
def test_the_tree_of_the_state_is_the_same_with_every_weight_decay(name):
    """A run continues with weight decay turned on or off, or of the other kind."""
    rate = optax.constant_schedule(0.1)
    plain, l2, decoupled = (
        make_optimizer(name, rate, weight_decay=decay, weight_decay_kind=kind)
        for decay, kind in ((0.0, "l2"), (0.1, "l2"), (0.1, "decoupled"))
    )
    expected = jax.eval_shape(plain.init, PARAMS)
    for tx in (l2, decoupled):
        assert jax.eval_shape(tx.init, PARAMS) == expected


@pytest.mark.parametrize("name", ["radam", "madgrad", "muon", "adafactor"])
def test_decoupled_decay_follows_the_schedule_of_the_optimizer(name):
    params = {"conv": {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.25]])}}
    grads = jax.tree.map(jnp.zeros_like, params)
    schedule = optax.piecewise_constant_schedule(0.1, {1: 0.5, 2: 0.1})
    tx = make_optimizer(name, schedule, weight_decay=0.2, weight_decay_kind="decoupled")
    state = tx.init(params)
    for rate in (0.1, 0.05, 0.005):
        updates, state = tx.update(grads, state, params)
        expected = -rate * 0.2 * params["conv"]["kernel"]
        np.testing.assert_allclose(updates["conv"]["kernel"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_weights_that_were_frozen_begin_at_the_rate_after_a_restart(name):
    tx = make_optimizer(name, lambda step: jnp.where(step == 10_000, 0.1, 1.0))
    # The counts are 10,000, and the moments are still 0.
    state = jax.tree.map(lambda x: x if x.ndim else jnp.full_like(x, 10_000), tx.init(PARAMS))
    restarted = restart(tx, PARAMS, state)
    assert jax.tree.structure(restarted) == jax.tree.structure(state)
    largest = [
        np.abs(tx.update(GRADS, given, PARAMS)[0]["conv"]["kernel"]).max()
        for given in (state, restarted)
    ]
    assert largest[0] > 0.3
    np.testing.assert_allclose(largest[1], 0.1, rtol=1e-3)


def test_only_three_optimizers_with_one_count_cannot_restart():
    optimizers = {name: make_optimizer(name, optax.constant_schedule(1.0)) for name in USABLE}
    kept = {n for n, tx in optimizers.items() if restart(tx, PARAMS, tx.init(PARAMS)) is None}
    assert kept == {"prodigy", "madgrad", "dadapt_adamw"}


@pytest.mark.parametrize("name", ["adam", "sgd", "adamw", "rmsprop"])
def test_decay_reaches_the_pool_when_it_is_told_to(name):
    decay = decay_of(name, weight_decay_kind="decoupled", decay_pool=True)
    np.testing.assert_allclose(decay["pool"]["w_fp"], -0.01 * 0.1 * 0.5, rtol=1e-3)
    np.testing.assert_allclose(decay["conv"]["kernel"], [-0.001, 0.002], rtol=1e-3)


def test_l2_goes_through_an_optimizer_without_a_decay_of_its_own():
    params, rate = PARAMS, optax.constant_schedule(0.1)
    tx = make_optimizer("adagrad", rate, weight_decay=0.1)
    plain = make_optimizer("adagrad", rate)
    grads = {
        "conv": {"kernel": GRADS["conv"]["kernel"] + 0.1 * params["conv"]["kernel"]},
        "pool": GRADS["pool"],
    }
    found = tx.update(GRADS, tx.init(params), params)[0]
    expected = plain.update(grads, plain.init(params), params)[0]
    jax.tree.map(np.testing.assert_allclose, found, expected)


def test_adamw_is_optaxs_own():
    rate = optax.cosine_decay_schedule(0.1, 10)
    ours = make_optimizer("adamw", rate, weight_decay=0.1, kwargs={"b1": 0.8})
    theirs = optax.adamw(rate, b1=0.8, weight_decay=0.1, mask={"conv": True, "pool": False})
    params = other = PARAMS
    state, other_state = ours.init(params), theirs.init(other)
    for _ in range(3):
        updates, state = ours.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        updates, other_state = theirs.update(GRADS, other_state, other)
        other = optax.apply_updates(other, updates)
    jax.tree.map(np.testing.assert_allclose, params, other)


def test_clipping_scales_all_gradients_by_one_factor():
    tx = make_optimizer("sgd", optax.constant_schedule(1.0), momentum=0.0, clip_norm=0.1)
    norm = np.sqrt(0.1**2 + 0.3**2 + 0.2**2 + 0.4**2)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    for found, gradient in zip(jax.tree.leaves(updates), jax.tree.leaves(GRADS), strict=True):
        np.testing.assert_allclose(found, -0.1 / norm * gradient, rtol=1e-5)
    small = jax.tree.map(lambda leaf: 0.1 * leaf, GRADS)
    updates, _ = tx.update(small, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["conv"]["kernel"], [-0.01, -0.03], rtol=1e-6)


def test_gradients_are_clipped_before_decay_momentum_and_rate():
    tx = make_optimizer("sgd", optax.constant_schedule(0.5), weight_decay=0.01, clip_norm=0.1)
    params, state = PARAMS, tx.init(PARAMS)
    kernel, velocity = np.array([1.0, -2.0]), np.zeros(2)
    clipped = 0.1 / np.linalg.norm([0.1, 0.3, 0.2, -0.4]) * np.array([0.1, 0.3])
    for _ in range(2):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        velocity = 0.9 * velocity + clipped + 0.01 * kernel
        kernel = kernel - 0.5 * velocity
    np.testing.assert_allclose(params["conv"]["kernel"], kernel, rtol=1e-6)


def test_only_whole_optimizers_are_offered():
    assert {"adam", "sgd", "adamw", "nadam", "lion", "rmsprop", "muon", "prodigy"} <= set(
        OPTIMIZERS
    )
    for name in ("apply_updates", "scale_by_adam", "schedule_free_sgd", "dpsgd", "sam", "__doc__"):
        assert name not in OPTIMIZERS


def test_optimizers_whose_state_cannot_be_saved_are_refused():
    with pytest.raises(UserError, match=r"galore.*array without elements"):
        make_optimizer("galore", optax.constant_schedule(0.1))


def test_unknown_names_are_refused_with_the_closest():
    with pytest.raises(UserError, match=r"'one-cycle'.*'onecycle'"):
        make_schedule("one-cycle", 0.1, 10)
    with pytest.raises(UserError, match=r"'rmsprob'.*'rmsprop'"):
        make_optimizer("rmsprob", optax.constant_schedule(0.1))
    with pytest.raises(UserError, match=r"'decouple'.*'decoupled'"):
        make_optimizer("sgd", optax.constant_schedule(0.1), weight_decay_kind="decouple")
