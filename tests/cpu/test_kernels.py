"""The CPU kernels against lax's convolution and Flax's BatchNorm, in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flexpool_jax import cpu, create_model
from flexpool_jax.cpu import convolution
from flexpool_jax.models.layers import BatchNorm, cpu_kernels, relu
from tests.models.conftest import draw_variables

# Every convolution of ResNet20, and a 1x1 and a 7x7 one of the larger ResNets: side, channels in,
# channels out, kernel, stride.
SHAPES = [
    (32, 3, 16, 3, 1),
    (32, 16, 16, 3, 1),
    (32, 16, 32, 3, 2),
    (16, 32, 32, 3, 1),
    (16, 32, 64, 3, 2),
    (8, 64, 64, 3, 1),
    (9, 8, 16, 1, 2),
    (15, 3, 8, 7, 2),
]


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize(("batch", "shape"), [*((7, shape) for shape in SHAPES), (1, SHAPES[0])])
def test_convolution_and_both_gradients_equal_laxs(batch, shape, monkeypatch):
    side, channels, features, size, stride = shape
    x, kernel = random(batch, side, side, channels), random(size, size, channels, features, seed=1)
    # Seven images are cut into slices of two, two and three.
    monkeypatch.setattr(convolution, "KERNEL_GRADIENT_SLICE_BYTES", 3 * x[0].nbytes)
    padding = ((size // 2, size // 2),) * 2

    def reference(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    expected, transpose = jax.vjp(reference, x, kernel)
    got, fast_transpose = jax.vjp(
        lambda x, k: convolution.xla_conv(x, k, stride, padding), x, kernel
    )
    g = random(*expected.shape, seed=2)
    for a, b in zip((expected, *transpose(g)), (got, *fast_transpose(g)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("columns", [6, 7])
@pytest.mark.parametrize(
    "padding", [((0, 0), (0, 0)), ((1, 0), (0, 1)), ((2, 2), (1, 2)), ((3, 0), (4, 3))]
)
def test_every_padding_gives_laxs_convolution(padding, columns):
    x, kernel = random(2, 5, columns, 3), random(3, 3, 3, 4, seed=1)

    def reference(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    expected, transpose = jax.vjp(reference, x, kernel)
    got, fast_transpose = jax.vjp(lambda x, k: convolution.xla_conv(x, k, 1, padding), x, kernel)
    g = random(*expected.shape, seed=2)
    for a, b in zip((expected, *transpose(g)), (got, *fast_transpose(g)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9)


def test_backward_pass_holds_activations_once():
    def loss(kernels, x):
        for kernel in kernels:
            x = nn.relu(convolution.xla_conv(x, kernel, 1, ((1, 1), (1, 1))))
        return jnp.sum(x)

    x, kernels = jnp.ones((64, 32, 32, 16)), [jnp.ones((3, 3, 16, 16))] * 8
    gradient = jax.jit(jax.grad(loss))
    memory = gradient.lower(kernels, x).compile().memory_analysis()
    # Eight are saved; transposed copies of them, made early, would be seven more.
    assert memory.temp_size_in_bytes < 12 * x.nbytes


@pytest.mark.parametrize("then", [lambda y: y, relu], ids=["norm", "norm_relu"])
@pytest.mark.parametrize("shape", [(6, 5, 4, 8), (120, 8), (30, 4, 8), (2, 3, 5, 4, 8)])
def test_batch_norm_its_gradients_and_statistics_equal_flaxs(then, shape):
    x = 3 + 2 * random(*shape)
    norm = BatchNorm(use_running_average=False)
    variables = norm.init(jax.random.key(0), x)
    params = {"scale": 1 + 0.1 * random(8, seed=2), "bias": random(8, seed=3)}
    weights = random(*shape, seed=4)

    def run(enabled):
        def loss(params, x):
            y, updates = norm.apply(
                {"params": params, "batch_stats": variables["batch_stats"]},
                x,
                mutable=["batch_stats"],
            )
            return jnp.sum(weights * jnp.sin(then(y))), updates["batch_stats"]

        with cpu_kernels(enabled):
            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    # Flax keeps statistics in float32, whatever the input.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-5), run(False), run(True)
    )


@pytest.mark.parametrize("shape", [(), (3,), (2, 4, 4, 3)])
def test_relu_and_its_gradient_equal_flaxs(shape):
    x = random(*shape).at[..., :1].set(0.0) if shape else random()
    g = random(*shape, seed=1)
    expected, transpose = jax.vjp(nn.relu, x)
    got, got_transpose = jax.vjp(relu, x)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(got_transpose(g), transpose(g))


def test_a_residual_block_writes_each_activation_and_gradient_once():
    def loss(x):
        for _ in range(6):
            y, *_ = cpu.batch_norm(x, ones, ones, 1e-5, None)
            y, *_ = cpu.batch_norm(y, ones, ones, 1e-5, None)
            x = cpu.relu(y + x)
        return jnp.sum(x)

    x, ones = jnp.ones((64, 32, 32, 16), jnp.float32), jnp.ones(16, jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower(x).compile().as_text()
    # For each block the results of the first norm and of the ReLU, and the gradients of all three.
    # What is fused into its consumers instead is computed again in each of them.
    assert len(re.findall(r"= f32\[64,32,32,16\]\S* fusion\(", compiled)) == 6 * 5
    # A copy would mean that an array is written over itself while something else still needs it.
    assert not re.findall(r"f32\[64,32,32,16\]\S* copy\(", compiled)


def test_synchronised_over_devices_it_is_the_norm_of_the_whole_batch():
    x, g = random(8, 3, 5, 4), random(8, 3, 5, 4, seed=2)
    scale, bias = 1 + 0.1 * random(4, seed=3), random(4, seed=4)

    def norm(axis_name):
        def results(x, g):
            (y, *statistics), transpose = jax.vjp(
                lambda *a: cpu.batch_norm(*a, 1e-5, axis_name), x, scale, bias
            )
            return y, statistics, transpose((g, *map(jnp.zeros_like, statistics)))

        return results

    def devices(a):
        return a.reshape(4, 2, *a.shape[1:])

    y, statistics, (dx, d_scale, d_bias) = norm(None)(x, g)
    # A mapped axis of vmap stands for four devices of two images each.
    got_y, got_statistics, got = jax.vmap(norm("devices"), axis_name="devices")(
        devices(x), devices(g)
    )
    for expected, result in [
        (devices(y), got_y),
        (devices(dx), got[0]),
        (d_scale, got[1].sum(0)),
        (d_bias, got[2].sum(0)),
        *((jnp.stack([a] * 4), b) for a, b in zip(statistics, got_statistics, strict=True)),
    ]:
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)


def test_a_whole_network_has_the_same_loss_gradient_and_statistics():
    model = create_model("resnet20", sac=True)
    backbone = model.backbone.clone(blocks_per_stage=1, dtype=jnp.dtype(jnp.float64))
    model = model.clone(backbone=backbone, dtype=jnp.dtype(jnp.float64))
    images, labels = random(6, 16, 16, 3), jnp.arange(6)
    variables = jax.tree.map(jnp.float64, draw_variables(model, images))

    def run(enabled):
        def loss(params):
            logits, updates = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats", "aux_logits"],
            )
            logits = [logits, *updates["aux_logits"]["logits"]]
            return sum(nn.log_softmax(x)[labels, labels].mean() for x in logits), updates[
                "batch_stats"
            ]

        with cpu_kernels(enabled):
            return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    plain, fast = run(False), run(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5), plain, fast)
