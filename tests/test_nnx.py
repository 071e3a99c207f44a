"""The NNX module has the parameter and the numbers of the linen one, and crosses the bridge."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.nnx import bridge

import flexpool_jax
from flexpool_jax.nnx import FlexPool
from flexpool_jax.optimizer import is_decayed

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 4, 6)).astype(np.float32)
W = RNG.normal(size=(5, 4, 6)).astype(np.float32)


@pytest.mark.parametrize("constraint", [None, "softmax"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_same_parameter_and_numbers_as_linen(constraint, dtype):
    x = jnp.asarray(X, dtype)
    linen = flexpool_jax.FlexPool(constraint)
    y, variables = linen.init_with_output(jax.random.key(0), x)
    pool = FlexPool((5, 4, 6), constraint=constraint)
    np.testing.assert_array_equal(pool.w_fp[...], variables["params"]["w_fp"])
    np.testing.assert_array_equal(pool(x), y)
    pool.w_fp[...] = W
    np.testing.assert_array_equal(pool(x), linen.apply({"params": {"w_fp": jnp.asarray(W)}}, x))


def test_gradient_is_linens():
    pool = FlexPool((5, 4, 6))
    grads = nnx.grad(lambda pool: jnp.sum(pool(X) ** 2))(pool)
    linen = flexpool_jax.FlexPool()
    expected = jax.grad(lambda w: jnp.sum(linen.apply({"params": {"w_fp": w}}, X) ** 2))(
        pool.w_fp[...]
    )
    np.testing.assert_allclose(grads["w_fp"][...], expected, rtol=1e-6)


def test_trains_and_is_regularized_inside_a_module():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.pool = FlexPool((5, 4, 6), rngs=rngs)
            self.dense = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            return self.dense(self.pool(x))

    net = Net(nnx.Rngs(0))
    net.pool.w_fp[...] = W
    before = flexpool_jax.flexpool_regularizer(nnx.state(net))
    np.testing.assert_allclose(before, ((W.sum((0, 1)) - 1) ** 2).sum(), rtol=1e-5)
    optimizer = nnx.Optimizer(net, optax.sgd(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer):
        grads = nnx.grad(lambda net: flexpool_jax.flexpool_regularizer(nnx.state(net)))(net)
        optimizer.update(net, grads)

    step(net, optimizer)
    assert flexpool_jax.flexpool_regularizer(nnx.state(net)) < before


def test_linens_module_crosses_the_bridge_to_nnx():
    wrapped = bridge.ToNNX(flexpool_jax.FlexPool(), rngs=nnx.Rngs(0)).lazy_init(X)
    np.testing.assert_array_equal(wrapped(X), FlexPool((5, 4, 6))(X))
    assert float(flexpool_jax.flexpool_regularizer(nnx.state(wrapped))) < 1e-9


def test_nnxs_module_crosses_the_bridge_to_linen():
    linen = bridge.ToLinen(FlexPool, args=((5, 4, 6),))
    y, variables = linen.init_with_output(jax.random.key(0), X)
    np.testing.assert_array_equal(y, FlexPool((5, 4, 6))(X))
    assert jax.tree.leaves(variables["params"])[0].shape == (5, 4, 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlexPool((5, 4, 6), constraint="relu"), "constraint 'relu'"),
        (lambda: FlexPool((4, 6)), r"\(4, 6\)"),
        (lambda: FlexPool((7, 7, 6))(X), "resize_flexpool"),
        (lambda: FlexPool((5, 4, 6))(X[0]), "feature map"),
    ],
)
def test_what_does_not_fit_is_refused_as_by_linens(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_weight_decay_acts_on_the_kernels_of_an_nnx_state():
    state = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    pool = nnx.state(FlexPool((5, 4, 6)), nnx.Param)
    params = nnx.State({"dense": state, "pool": pool})
    tx = optax.adamw(0.1, weight_decay=0.1, mask=is_decayed)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(
        updates["dense"]["kernel"][...], -0.01 * params["dense"]["kernel"][...], rtol=1e-6
    )
    assert not updates["dense"]["bias"][...].any()
    assert not updates["pool"]["w_fp"][...].any()
