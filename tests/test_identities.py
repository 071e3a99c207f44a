"""Identities of docs/paper.md: what FlexPool is, and what Eq. 2 can and cannot do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flexpool_jax import FlexPool, flexpool_regularizer
from flexpool_jax.models.classifier import Head

RNG = np.random.default_rng(0)
H, W, C, N = 4, 5, 6, 3
X = RNG.normal(size=(2, H, W, C)).astype(np.float32)
# Around the start, far enough from it that signs differ.
WEIGHTS = (1 / (H * W) + RNG.normal(size=(H, W, C)) / 5).astype(np.float32)
KERNEL = RNG.normal(size=(C, N)).astype(np.float32)
BIAS = RNG.normal(size=N).astype(np.float32)


def logits(weights, kernel):
    params = {"pool": {"w_fp": weights}, "classifier": {"kernel": kernel, "bias": BIAS}}
    return Head(N, "flexpool").apply({"params": params}, X)


def test_flexpool_and_dense_are_a_linear_classifier_of_rank_one_per_channel():
    t = np.einsum("kn,ijk->nijk", KERNEL, WEIGHTS)
    expected = np.einsum("nijk,bijk->bn", t, X) + BIAS
    np.testing.assert_allclose(logits(WEIGHTS, KERNEL), expected, rtol=1e-4, atol=1e-5)
    ranks = np.linalg.matrix_rank(np.moveaxis(t.reshape(N, H * W, C), -1, 0), tol=1e-5)
    assert ranks.tolist() == [1] * C


def test_flattened_maps_have_a_weight_for_each_class_position_and_channel():
    def count(pool):
        shapes = jax.eval_shape(Head(10, pool).init, jax.random.key(0), jnp.zeros((1, 8, 8, 64)))
        params = shapes["params"]
        return [
            sum(leaf.size for leaf in jax.tree.leaves(params.get("pool", {}))),
            params["classifier"]["kernel"].size,
        ]

    assert count("flexpool") == [4096, 640]
    assert count("flatten") == [0, 40_960]


def test_scaling_a_channels_weights_is_undone_by_its_row_of_the_dense_layer():
    factors = RNG.uniform(-3, 3, size=C).astype(np.float32)
    np.testing.assert_allclose(
        logits(WEIGHTS * factors, KERNEL / factors[:, None]),
        logits(WEIGHTS, KERNEL),
        rtol=1e-3,
        atol=1e-4,
    )


def test_equation_2_can_be_met_without_changing_the_function():
    sums = WEIGHTS.sum(axis=(0, 1))
    met = WEIGHTS / sums
    assert float(flexpool_regularizer({"w_fp": WEIGHTS})) > 0.1
    assert float(flexpool_regularizer({"w_fp": met})) == pytest.approx(0, abs=1e-8)
    np.testing.assert_allclose(
        logits(met, KERNEL * sums[:, None]), logits(WEIGHTS, KERNEL), rtol=1e-3, atol=1e-4
    )


def test_equation_2_fixes_neither_signs_nor_shape():
    one_pixel = np.zeros((H, W, C), np.float32)
    one_pixel[0, 0] = 1
    opposed = np.zeros((H, W, C), np.float32)
    opposed[0, 0], opposed[0, 1] = 101, -100
    for weights in (one_pixel, opposed):
        assert float(flexpool_regularizer({"w_fp": weights})) == 0


def test_largest_curvature_of_equation_2_is_twice_the_number_of_positions():
    hessian = jax.hessian(lambda w: flexpool_regularizer({"w_fp": w}))(jnp.asarray(WEIGHTS))
    largest = np.linalg.eigvalsh(np.reshape(hessian, (H * W * C, H * W * C))).max()
    assert largest == pytest.approx(2 * H * W, rel=1e-4)


def test_adam_moves_each_weight_by_the_learning_rate_in_its_first_step():
    tx = optax.adam(0.01)
    params = FlexPool().init(jax.random.key(0), jnp.ones((1, 7, 7, C)))["params"]
    gradient = jax.grad(lambda p: (FlexPool().apply({"params": p}, jnp.ones((1, 7, 7, C)))).sum())
    updates, _ = tx.update(gradient(params), tx.init(params))
    relative = np.abs(updates["w_fp"]) / np.asarray(params["w_fp"])
    np.testing.assert_allclose(relative, 0.49, rtol=1e-3)
