"""The layers beside their numbers: errors as Flax raises them, exports, empty batches."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from flexpool_jax import cpu
from flexpool_jax.models.classifier import Classifier
from flexpool_jax.models.layers import BatchNorm, Conv, cpu_kernels, relu
from flexpool_jax.models.resnet_cifar import ResNetCifar
from tests.models.conftest import draw_variables


def random(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("kernels", [True, False])
def test_training_with_constant_statistics_is_an_error(kernels):
    norm, x = BatchNorm(use_running_average=False), random(4, 3)
    variables = norm.init(jax.random.key(0), x)
    with cpu_kernels(kernels), pytest.raises(flax.errors.ModifyScopeVariableError):
        norm.apply(variables, x)


def test_kernels_start_with_the_deviation_of_he_et_al_for_their_outputs():
    kernel = Conv(256).init(jax.random.key(0), random(1, 4, 4, 64))["params"]["kernel"]
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 256)), rtol=0.01)


@pytest.mark.parametrize("train", [True, False])
def test_an_empty_batch_gives_empty_logits(train):
    model = Classifier(ResNetCifar(blocks_per_stage=1), num_classes=10)
    variables = draw_variables(model, random(1, 8, 8, 3))
    apply = jax.jit(lambda x: model.apply(variables, x, train=train, mutable=["batch_stats"]))
    logits, _ = apply(random(0, 8, 8, 3))
    assert logits.shape == (0, 10)


@pytest.mark.parametrize(
    "layer",
    [
        relu,
        lambda x: Conv(4).apply({"params": {"kernel": jnp.ones((3, 3, 3, 4))}}, x),
        lambda x: BatchNorm(use_running_average=False).apply(
            {
                "params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
                "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)},
            },
            x,
            mutable=["batch_stats"],
        )[0],
    ],
    ids=["relu", "conv", "norm"],
)
def test_forward_mode_needs_flaxs_own_layers_and_the_error_says_so(layer):
    x, jitted = random(2, 6, 6, 3), jax.jit(layer)
    jitted(x)
    with pytest.raises(TypeError, match=r"cpu_kernels\(False\)"):
        jax.jvp(layer, (x,), (x,))
    with cpu_kernels(False):
        y, dy = jax.jvp(jitted, (x,), (x,))
    expected = (layer(x + 1e-3 * x) - layer(x - 1e-3 * x)) / 2e-3
    np.testing.assert_allclose(dy, expected, rtol=0.02, atol=0.02 * jnp.abs(y).max())


@pytest.mark.parametrize("given", [jnp.bfloat16, jnp.float16])
def test_a_norm_of_narrow_inputs_computes_in_its_own_dtype(given):
    norm, x = BatchNorm(use_running_average=False, dtype=jnp.float32), random(64, 3)
    x = (300 + x).astype(given)
    variables = norm.init(jax.random.key(0), x)
    results = []
    for kernels in (True, False):
        with cpu_kernels(kernels):
            y, updates = norm.apply(variables, x, mutable=["batch_stats"])
            gradient = jax.grad(
                lambda x: jnp.sum(norm.apply(variables, x, mutable=["batch_stats"])[0] ** 3)
            )(x)
        results.append((y, updates["batch_stats"], gradient))
    assert results[0][0].dtype == jnp.float32
    assert results[0][2].dtype == given
    jax.tree.map(
        lambda ours, flaxs: np.testing.assert_allclose(
            np.float32(ours), np.float32(flaxs), rtol=0.02, atol=0.02
        ),
        *results,
    )


@pytest.mark.parametrize("kernels", [True, False])
def test_training_creates_the_statistics_that_are_missing(kernels):
    norm, x = BatchNorm(use_running_average=False), random(4, 3)
    params = norm.init(jax.random.key(0), x)["params"]
    with cpu_kernels(kernels):
        _, updates = norm.apply({"params": params}, x, mutable=["batch_stats"])
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * x.mean(0), rtol=1e-5)


def test_with_flaxs_own_layers_a_network_can_be_exported():
    conv, x = Conv(features=4), random(2, 6, 6, 3)
    variables = conv.init(jax.random.key(0), x)
    if cpu.describe().startswith("oneDNN"):
        with pytest.raises(ValueError, match=r"cpu_kernels\(False\)"):
            export.export(jax.jit(lambda x: conv.apply(variables, x)))(x)
    with cpu_kernels(False):
        exported = export.export(jax.jit(lambda x: conv.apply(variables, x)))(x)
    np.testing.assert_allclose(exported.call(x), conv.apply(variables, x), rtol=1e-4, atol=1e-5)


def test_a_network_can_be_exported_for_any_batch_size():
    model = Classifier(ResNetCifar(blocks_per_stage=1), num_classes=10)
    images = random(3, 8, 8, 3)
    variables = draw_variables(model, images)
    (batch,) = export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32)
    exported = export.export(jax.jit(lambda x: model.apply(variables, x)))(shape)
    expected = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(exported.call(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernels", [True, False])
def test_a_norm_is_synchronised_over_the_axis_that_it_names(kernels):
    norm, x = BatchNorm(use_running_average=False, axis_name="devices"), random(2, 6, 3)
    variables = norm.init(jax.random.key(0), x[0])
    apply = jax.vmap(
        lambda x: norm.apply(variables, x, mutable=["batch_stats"])[1]["batch_stats"]["mean"],
        axis_name="devices",
    )
    with cpu_kernels(kernels):
        means = apply(x)
    np.testing.assert_allclose(means, np.stack([0.1 * x.mean((0, 1))] * 2), rtol=1e-5)
