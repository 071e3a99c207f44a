"""FlexPool and Eq. 2 against NumPy, closed forms and finite differences."""

import ast
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict

from flexpool_jax import FlexPool, flexpool_regularizer, pooling
from flexpool_jax.pooling import flex_pool, resample_weights, resize_flexpool, softmax_weights
from flexpool_jax.pools import avg_pool, pool_summary

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


def test_regularizer_of_narrow_weights_is_summed_in_float32():
    # The sum 1 + 2⁻⁸ is 1 in bfloat16.
    w = jnp.full((8, 8, 2), 1 / 64, jnp.bfloat16).at[0, 0].set(1.25 / 64)
    expected = 2 * 2.0**-16
    np.testing.assert_allclose(flexpool_regularizer({"w_fp": w}), expected, rtol=1e-3)


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


def test_names_both_shapes_and_the_remedy_at_another_resolution():
    variables = FlexPool().init(jax.random.key(0), FEATURE_MAP)
    with pytest.raises(ValueError, match=r"\(5, 4, 6\).*\(7, 7, 6\).*resize_flexpool") as error:
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


def test_resampled_weights_are_interpolated_linearly_and_shared_out_over_the_new_positions():
    expected = WEIGHTS
    for axis, count in enumerate(WEIGHTS.shape[:2]):
        positions = (np.arange(2 * count) + 0.5) / 2 - 0.5
        expected = np.apply_along_axis(
            lambda w, at=positions: np.interp(at, np.arange(len(w)), w), axis, expected
        )
    resampled = resample_weights(jnp.asarray(WEIGHTS), (10, 8))
    np.testing.assert_allclose(resampled, expected / 4, rtol=1e-4, atol=1e-6)


TWO_POOLS = {
    "head": {"pool": {"w_fp": jnp.asarray(WEIGHTS)}, "classifier": {"kernel": jnp.ones((6, 2))}},
    "aux_head": {"pool": {"w_fp": jnp.asarray(WEIGHTS[:, :, :1])}},
}


def shapes_of_two_pools(size):
    return {
        "head": {"pool": {"w_fp": (*size, 6)}},
        "aux_head": {"pool": {"w_fp": jax.ShapeDtypeStruct((*size, 1), jnp.float32)}},
    }


def test_resizing_a_tree_resamples_each_w_fp_and_leaves_the_rest():
    resized = resize_flexpool(TWO_POOLS, like=shapes_of_two_pools((9, 7)))
    for owner, pool in (("head", WEIGHTS), ("aux_head", WEIGHTS[:, :, :1])):
        w = resized[owner]["pool"]["w_fp"]
        assert w.shape == (9, 7, pool.shape[2])
        np.testing.assert_allclose(w.sum((0, 1)), pool.sum((0, 1)), rtol=1e-4, atol=1e-5)
    assert resized["head"]["classifier"]["kernel"] is TWO_POOLS["head"]["classifier"]["kernel"]


def test_resizing_tells_the_pools_of_a_list_apart():
    params = {"pools": [{"w_fp": jnp.ones((8, 8, 2))}, {"w_fp": jnp.ones((4, 4, 2))}]}
    like = {"pools": [{"w_fp": (6, 6, 2)}, {"w_fp": (3, 3, 2)}]}
    resized = resize_flexpool(params, like=like)
    assert [pool["w_fp"].shape for pool in resized["pools"]] == [(6, 6, 2), (3, 3, 2)]


def test_resizing_takes_shapes_computed_with_numpy():
    shape = tuple(np.array([8, 8, 2]) // [2, 2, 1])
    resized = resize_flexpool({"w_fp": jnp.ones((8, 8, 2))}, like={"w_fp": shape})
    assert resized["w_fp"].shape == (4, 4, 2)


@pytest.mark.parametrize("constraint", [None, "softmax"])
def test_resizing_to_the_same_size_changes_nothing(constraint):
    same = resize_flexpool(
        TWO_POOLS, like=shapes_of_two_pools(WEIGHTS.shape[:2]), constraint=constraint
    )
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (same, TWO_POOLS)), strict=True))


@pytest.mark.parametrize("size", [(2, 3), (9, 7)])
def test_resized_softmax_weights_stay_positive_sum_to_one_and_keep_their_shape(size):
    # Concentrated on few positions, where a correction by addition would go below zero.
    stored = jnp.asarray(WEIGHTS) * 10
    resized = resize_flexpool({"w_fp": stored}, like={"w_fp": (*size, 6)}, constraint="softmax")
    used = softmax_weights(resized["w_fp"])
    assert float(used.min()) > 0
    np.testing.assert_allclose(used.sum((0, 1)), 1, rtol=1e-5)
    shape = jax.image.resize(softmax_weights(stored), used.shape, "bilinear")
    np.testing.assert_allclose(used, shape / shape.sum((0, 1)), rtol=1e-3, atol=1e-7)


def test_resized_softmax_weights_are_finite_if_they_were_too_small_for_float32():
    stored = jnp.full((2, 2, 1), -200.0).at[0, 0].set(0.0)
    resized = resize_flexpool({"w_fp": stored}, like={"w_fp": (8, 8, 1)}, constraint="softmax")
    assert np.isfinite(resized["w_fp"]).all()


def test_resizing_reads_an_nnx_state_of_shapes():
    state = nnx.State({"pool": {"w_fp": nnx.Param(jnp.asarray(WEIGHTS))}})
    like = jax.eval_shape(lambda: nnx.State({"pool": {"w_fp": nnx.Param(jnp.zeros((3, 3, 6)))}}))
    resized = resize_flexpool(state, like=like)
    np.testing.assert_array_equal(
        resized["pool"]["w_fp"][...], resample_weights(jnp.asarray(WEIGHTS), (3, 3))
    )


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"pool": {"w_fp": (5, 4, 7)}}, "pool/w_fp is .* H and W alone"),
        ({"other": {"w_fp": (5, 4, 6)}}, "pool/w_fp has no new shape"),
        ({"pool": {"w_fp": (5, 4, 6)}, "kernel": (3, 2)}, "kernel is .* only w_fp"),
    ],
)
def test_what_cannot_be_resized_is_named(like, message):
    params = {"pool": {"w_fp": jnp.asarray(WEIGHTS)}, "kernel": jnp.ones((6, 2))}
    with pytest.raises(ValueError, match=message):
        resize_flexpool(params, like=like)


def test_resampled_average_pooling_is_average_pooling():
    resampled = resample_weights(jnp.full((8, 8, 6), 1 / 64), (5, 4))
    np.testing.assert_allclose(
        flex_pool(FEATURE_MAP, resampled), avg_pool(FEATURE_MAP), rtol=1e-4, atol=1e-6
    )


def test_the_file_can_be_copied_alone():
    tree = ast.parse(Path(pooling.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).partition(".")[0]
        for node in imports
        for alias in node.names
    }
    assert modules - set(sys.stdlib_module_names) == {"jax", "flax"}


def test_regularizer_finds_the_weights_in_an_nnx_state():
    class Pool(nnx.Module):
        def __init__(self):
            self.w_fp = nnx.Param(jnp.full((2, 2, 3), 0.5))

    class Net(nnx.Module):
        def __init__(self):
            self.value = nnx.Param(jnp.ones(3))
            self.pool = Pool()

    state = nnx.state(Net())
    assert float(flexpool_regularizer(state)) == 3.0
    assert float(flexpool_regularizer(nnx.to_pure_dict(state))) == 3.0
    gradient = jax.grad(flexpool_regularizer)(state)
    np.testing.assert_allclose(gradient["pool"]["w_fp"].get_value(), 2.0)


def with_names_joined(separator):
    return lambda tree: flatten_dict(nnx.to_pure_dict(tree), sep=separator)


@pytest.mark.parametrize(
    "flatten",
    [
        *(with_names_joined("/"), with_names_joined("."), with_names_joined(None)),
        *(nnx.to_flat_state, lambda tree: dict(nnx.to_flat_state(tree))),
    ],
    ids=["slashes", "dots", "tuples", "FlatState", "tuples of boxes"],
)
def test_flattened_parameters_have_the_values_of_nested_ones(flatten):
    nested = nnx.State(
        {
            "head": {"pool": {"w_fp": nnx.Param(jnp.asarray(WEIGHTS))}, "w_fp_like": jnp.ones(3)},
            "aux": {"w_fp": nnx.Param(jnp.ones((2, 2, 1)))},
        }
    )
    flat = flatten(nested)
    expected = numpy_regularizer(WEIGHTS) + 9
    np.testing.assert_allclose(flexpool_regularizer(flat), expected, rtol=1e-5)
    summary = pool_summary(flat)
    assert summary.keys() == pool_summary(nested).keys()
    assert "head/pool/sum_mean" in summary
    like = {"head": {"pool": {"w_fp": (7, 8, 6)}}, "aux": {"w_fp": (2, 2, 1)}}
    resized = resize_flexpool(flat, like=like)
    assert (7, 8, 6) in [leaf.shape for leaf in jax.tree.leaves(resized)]
    np.testing.assert_allclose(flexpool_regularizer(resized), expected, rtol=1e-4)


def test_regularizer_finds_partitioned_weights_of_linen():
    boxed = nn.Partitioned(jnp.full((2, 2, 3), 0.5), names=(None, None, None))
    assert float(flexpool_regularizer({"pool": {"w_fp": boxed}})) == 3.0


def test_regularizer_refuses_weights_of_another_rank():
    with pytest.raises(ValueError, match=r"\[H, W, C\]; got shape \(4, 3\)"):
        flexpool_regularizer({"w_fp": jnp.ones((4, 3))})
