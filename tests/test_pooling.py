"""FlexPool, Eq. 2 and the pools beside it, against NumPy, closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flexpool_jax import FlexPool, flexpool_regularizer
from flexpool_jax.pooling import (
    POOLS,
    avg_pool,
    create_pool,
    flex_pool,
    resample_weights,
    softmax_weights,
)

FEATURE_MAP = np.random.default_rng(0).normal(size=(3, 5, 4, 6)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(5, 4, 6)).astype(np.float32)


def numpy_regularizer(w):
    """Eq. 2, written as the paper writes it: a loop over channels."""
    return sum((w[:, :, k].astype(np.float64).sum() - 1) ** 2 for k in range(w.shape[2]))


@pytest.mark.parametrize("constraint", [None, "softmax"])
def test_starts_as_global_average_pooling(constraint):
    variables = FlexPool(constraint=constraint).init(jax.random.key(0), FEATURE_MAP)
    pooled = FlexPool(constraint=constraint).apply(variables, FEATURE_MAP)
    np.testing.assert_allclose(pooled, FEATURE_MAP.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)


def test_weights_are_float32_of_the_maps_shape_and_start_at_one_over_positions():
    variables = FlexPool().init(jax.random.key(0), FEATURE_MAP.astype(jnp.bfloat16))
    w = variables["params"]["w_fp"]
    assert w.dtype == jnp.float32
    np.testing.assert_array_equal(w, np.full((5, 4, 6), np.float32(1 / 20)))


def test_is_the_weighted_sum_over_positions():
    pooled = FlexPool().apply({"params": {"w_fp": WEIGHTS}}, FEATURE_MAP)
    expected = np.einsum("bhwc,hwc->bc", FEATURE_MAP.astype(np.float64), WEIGHTS)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-5)


def test_softmax_weights_are_positive_and_sum_to_one():
    w = softmax_weights(jnp.asarray(WEIGHTS * 10))
    assert np.all(w > 0)
    np.testing.assert_allclose(np.sum(w, axis=(0, 1)), 1.0, rtol=1e-6)
    pooled = FlexPool(constraint="softmax").apply({"params": {"w_fp": WEIGHTS * 10}}, FEATURE_MAP)
    np.testing.assert_allclose(pooled, flex_pool(FEATURE_MAP, w), rtol=1e-6)


def test_sums_bfloat16_maps_in_float32():
    # 256 + 1 is 256 in bfloat16: summed in it, one at a time, the ones would vanish.
    x = jnp.ones((1, 32, 32, 1), jnp.bfloat16)
    pooled = flex_pool(x, jnp.ones((32, 32, 1)))
    assert pooled.dtype == jnp.bfloat16
    assert float(pooled[0, 0]) == 1024.0


def test_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        x, w = jnp.asarray(FEATURE_MAP, jnp.float64), jnp.asarray(WEIGHTS, jnp.float64)

        def loss(w):
            return jnp.sum(jnp.tanh(flex_pool(x, w))) + flexpool_regularizer({"w_fp": w})

        gradient = jax.grad(loss)(w)
        for index in [(0, 0, 0), (4, 3, 5), (2, 1, 3)]:
            bump = jnp.zeros_like(w).at[index].set(1e-6)
            difference = (loss(w + bump) - loss(w - bump)) / 2e-6
            np.testing.assert_allclose(gradient[index], difference, rtol=1e-6)


def test_regularizer_is_equation_2_over_every_block():
    params = {
        "head": {"pool": {"w_fp": WEIGHTS}, "classifier": {"kernel": np.ones((6, 2))}},
        "aux_head_stage1": {"pool": {"w_fp": 2 * WEIGHTS}},
    }
    expected = numpy_regularizer(WEIGHTS) + numpy_regularizer(2 * WEIGHTS)
    np.testing.assert_allclose(flexpool_regularizer(params), expected, rtol=1e-5)


def test_regularizer_gradient_is_twice_the_excess_at_every_position():
    gradient = jax.grad(lambda w: flexpool_regularizer({"w_fp": w}))(jnp.asarray(WEIGHTS))
    excess = 2 * (WEIGHTS.sum(axis=(0, 1)) - 1)
    np.testing.assert_allclose(gradient, np.broadcast_to(excess, WEIGHTS.shape), rtol=1e-4)


@pytest.mark.parametrize("params", [{}, {"kernel": np.ones(3)}, [], {"w_fp_like": np.ones(3)}])
def test_regularizer_is_zero_without_a_block(params):
    assert float(flexpool_regularizer(params)) == 0.0


def test_optimizer_moves_weights_and_equation_2_holds_their_sums():
    x = jnp.asarray(FEATURE_MAP)
    target = jnp.asarray(np.random.default_rng(2).normal(size=(3, 6)), jnp.float32)
    params = FlexPool().init(jax.random.key(0), x)["params"]
    start = params["w_fp"]
    tx = optax.adam(2e-4)
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state):
        def loss(params):
            error = jnp.mean((FlexPool().apply({"params": params}, x) - target) ** 2)
            return error + 1e3 * flexpool_regularizer(params)

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(400):
        params, opt_state = step(params, opt_state)
        assert np.abs(np.sum(params["w_fp"], axis=(0, 1)) - 1).max() < 1e-2
    assert np.abs(params["w_fp"] - start).max() > 1e-2


@pytest.mark.parametrize("shape", [(4, 4, 6), (3, 5, 4, 6, 1), (3, 0, 4, 6)])
def test_refuses_what_is_not_a_feature_map(shape):
    with pytest.raises(ValueError, match=r"\(3, |\(4, 4, 6\)"):
        FlexPool().init(jax.random.key(0), jnp.ones(shape))


def test_names_both_shapes_and_the_remedy_at_another_resolution():
    variables = FlexPool().init(jax.random.key(0), FEATURE_MAP)
    with pytest.raises(ValueError, match=r"\(5, 4, 6\).*\(7, 7, 6\).*resample_weights") as error:
        FlexPool().apply(variables, jnp.ones((1, 7, 7, 6)))
    assert "\n" not in str(error.value)


def test_names_both_shapes_with_other_channels():
    variables = FlexPool().init(jax.random.key(0), FEATURE_MAP)
    with pytest.raises(ValueError, match=r"\(5, 4, 6\).*\(5, 4, 7\).*channels"):
        FlexPool().apply(variables, jnp.ones((1, 5, 4, 7)))


def test_refuses_an_unknown_constraint():
    with pytest.raises(ValueError, match="sofmax"):
        FlexPool(constraint="sofmax").init(jax.random.key(0), FEATURE_MAP)


@pytest.mark.parametrize("size", [(10, 8), (3, 3), (5, 4), (1, 1)])
def test_resampled_weights_keep_each_channels_sum(size):
    resampled = resample_weights(jnp.asarray(WEIGHTS), size)
    assert resampled.shape == (*size, 6)
    np.testing.assert_allclose(
        resampled.sum(axis=(0, 1)), WEIGHTS.sum(axis=(0, 1)), rtol=1e-4, atol=1e-5
    )


def test_resampled_average_pooling_is_average_pooling():
    resampled = resample_weights(jnp.full((8, 8, 6), 1 / 64), (5, 4))
    np.testing.assert_allclose(
        flex_pool(FEATURE_MAP, resampled), avg_pool(FEATURE_MAP), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(("name", "function"), [("avg", np.mean), ("max", np.max)])
def test_plain_pools_equal_numpy(name, function):
    pooled = create_pool(name).apply({}, FEATURE_MAP)
    np.testing.assert_allclose(pooled, function(FEATURE_MAP, axis=(1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", POOLS)
def test_every_pool_maps_a_feature_map_to_a_vector(name):
    pooled, _ = create_pool(name).init_with_output(jax.random.key(0), jnp.asarray(FEATURE_MAP))
    assert pooled.shape == (3, 6)
    assert pooled.dtype == jnp.float32


def test_unknown_pool_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'flexpol'.*flexpool"):
        create_pool("flexpol")
