"""What holds for every backbone but the CIFAR ResNets: their size, their stages, their heads."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flexpool_jax import create_model
from flexpool_jax.models import default_sac_weights, num_stages
from flexpool_jax.models.blocks import ConvNorm, max_pool
from flexpool_jax.models.classifier import Classifier, Head
from flexpool_jax.models.inception import MODULES, InceptionModule
from flexpool_jax.models.layers import BatchNorm
from flexpool_jax.models.resnet import Block, ResNet
from flexpool_jax.models.vgg import STAGE_FEATURES, VGG
from flexpool_jax.pools import POOLS
from tests.models.conftest import draw_variables

CONVS_PER_STAGE = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def init_shapes(model, side):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def parameters(name, num_classes, side):
    return init_shapes(create_model(name, num_classes, pool="avg"), side)["params"]


def stage_shapes(name, side, **options):
    backbone = create_model(name, **options).backbone
    images = jnp.zeros((1, side, side, 3))
    stages, _ = jax.eval_shape(backbone.init_with_output, jax.random.key(0), images)
    assert list(stages) == [f"stage{stage}" for stage in range(1, num_stages(name) + 1)]
    return [x.shape[1:] for x in stages.values()]


def normed_channels(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(leaf.size for path, leaf in leaves if path[-1].key == "scale")


# The table of weights in torchvision's documentation (docs.pytorch.org/vision/stable/models.html).
@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)],
)
def test_resnets_have_torchvisions_number_of_parameters(name, published):
    assert count(parameters(name, num_classes=1000, side=224)) == published


# github.com/kuangliu/pytorch-cifar: He et al.'s network with a 3×3 stem, for ten classes.
@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet18", 11_173_962), ("resnet34", 21_282_122), ("resnet50", 23_520_842)],
)
def test_resnets_for_small_images_have_the_usual_number_of_parameters(name, published):
    assert count(parameters(name, num_classes=10, side=32)) == published


# torchvision's documentation. Its VGGs flatten 7×7 positions where ours pool them, and their
# convolutions have a bias that the BatchNorm behind it takes out again.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("vgg11", 132_868_840),
        ("vgg13", 133_053_736),
        ("vgg16", 138_365_992),
        ("vgg19", 143_678_248),
    ],
)
def test_vggs_have_torchvisions_parameters_less_those_that_pooling_and_norms_save(name, published):
    biases = sum(np.multiply(STAGE_FEATURES, CONVS_PER_STAGE[name]))
    first_dense = (7 * 7 * 512 - 512) * 4096
    assert count(parameters(name, 1000, 224)) == published - biases - first_dense


def test_small_inception_is_the_usual_one_without_the_biases_ahead_of_its_norms():
    # github.com/kuangliu/pytorch-cifar, GoogLeNet: each convolution has a bias and a BatchNorm.
    params = parameters("inception", num_classes=10, side=32)
    assert count(params) == 6_166_250 - normed_channels(params)


def test_large_inception_is_torchvisions_with_two_convolutions_for_its_one_of_five():
    # torchvision's documentation, GoogLeNet without auxiliary heads; its 5×5 are single 3×3.
    widths = [features[4] for stage in MODULES.values() for features in stage.values()]
    second = sum(9 * width**2 + 2 * width for width in widths)
    assert count(parameters("inception", num_classes=1000, side=224)) == 6_624_904 + second


def test_vgg_has_the_releases_head():
    head = parameters("vgg11", 10, 32)["head"]
    assert head["hidden1"]["kernel"].shape == (512, 4096)
    assert head["hidden2"]["kernel"].shape == (4096, 4096)
    assert head["classifier"]["kernel"].shape == (4096, 10)


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("vgg11", 32, [(32, 64), (16, 128), (8, 256), (4, 512), (2, 512)]),
        ("vgg11", 28, [(28, 64), (14, 128), (7, 256), (4, 512), (2, 512)]),
        ("vgg16", 224, [(224, 64), (112, 128), (56, 256), (28, 512), (14, 512)]),
        ("resnet18", 32, [(32, 64), (16, 128), (8, 256), (4, 512)]),
        ("resnet18", 64, [(64, 64), (32, 128), (16, 256), (8, 512)]),
        ("resnet34", 65, [(17, 64), (9, 128), (5, 256), (3, 512)]),
        ("resnet50", 224, [(56, 256), (28, 512), (14, 1024), (7, 2048)]),
        ("inception", 28, [(28, 480), (14, 832), (7, 1024)]),
        ("inception", 224, [(28, 480), (14, 832), (7, 1024)]),
    ],
)
def test_stages_have_the_resolutions_and_widths_of_the_papers(name, side, expected):
    assert stage_shapes(name, side) == [(rows, rows, channels) for rows, channels in expected]


@pytest.mark.parametrize("name", ["resnet18", "inception"])
def test_either_stem_can_be_asked_for(name):
    assert stage_shapes(name, 224, small_images=True)[0][0] == 224
    assert stage_shapes(name, 32, small_images=False)[0][0] in (4, 8)


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "inception"])
def test_every_pool_and_sac_fit_every_stage(name):
    model = create_model(name, num_classes=7, sac=True, dtype=jnp.bfloat16)
    variables = init_shapes(model, 32)
    heads = [head for head in variables["params"] if head.startswith("aux_head")]
    assert len(heads) == num_stages(name) - 1

    def outputs(variables):
        images, mutable = jnp.zeros((2, 32, 32, 3)), ["batch_stats", "aux_logits"]
        logits, updates = model.apply(variables, images, train=True, mutable=mutable)
        stages = model.apply(variables, images, method="stage_maps")
        return [*updates["aux_logits"]["logits"], logits], stages

    logits, stages = jax.eval_shape(outputs, variables)
    assert [x.shape for x in logits] == [(2, 7)] * num_stages(name)
    for pool in POOLS:
        head = Head(7, pool, dtype=jnp.dtype(jnp.bfloat16))
        for stage in stages.values():
            logits, _ = jax.eval_shape(head.init_with_output, jax.random.key(0), stage)
            assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)


def check_gradients(model, side, **options):
    """Each parameter moves the loss: a branch computed and then forgotten would not."""
    images = np.random.default_rng(0).normal(size=(4, side, side, 1)).astype(np.float32)
    variables = draw_variables(model, images)

    def loss(params):
        variables_now = {**variables, "params": params}
        mutable = ["batch_stats", "aux_logits"]
        output, updates = model.apply(variables_now, images, mutable=mutable, **options)
        outputs = [output, *updates.get("aux_logits", {}).get("logits", ())]
        return sum(jnp.mean(jax.nn.log_softmax(x)[..., 1]) for x in outputs)

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.all(np.isfinite(gradient)), path
        assert np.any(gradient != 0), path


@pytest.mark.parametrize(
    "backbone",
    [VGG((1, 1, 1, 1, 1)), ResNet((1, 1, 1, 1), small_images=False)],
    ids=["vgg", "resnet"],
)
def test_every_parameter_has_a_gradient(backbone):
    model = Classifier(backbone, num_classes=3, sac=True, hidden_features=(16,))
    check_gradients(model, side=16, train=True)


def test_every_parameter_of_an_inception_module_has_a_gradient():
    conv_norm = functools.partial(ConvNorm, train=True)
    check_gradients(InceptionModule((2, 3, 4, 5, 6, 7), conv_norm), side=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg19", "resnet50", "inception"])
def test_every_parameter_of_the_whole_network_has_a_gradient(name):
    check_gradients(create_model(name, num_classes=3, sac=True), side=32, train=True)


def test_inception_joins_its_branches_along_the_channels():
    """With 1×1 kernels that copy and 3×3 ones that are zero, two branches show what they see."""
    x = np.random.default_rng(0).uniform(size=(1, 5, 5, 2)).astype(np.float32)
    module = InceptionModule((2, 2, 3, 2, 4, 2))
    variables = draw_variables(module, x)
    kernels = {1: np.eye(2)[None, None], 3: 0.0}
    params = {
        name: {
            **leaves,
            "conv": {
                "kernel": np.broadcast_to(
                    kernels[leaves["conv"]["kernel"].shape[0]], leaves["conv"]["kernel"].shape
                )
            },
        }
        for name, leaves in variables["params"].items()
    }
    y = np.asarray(jax.jit(module.apply)({**variables, "params": params}, x))
    assert y.shape == (1, 5, 5, 2 + 3 + 4 + 2)
    np.testing.assert_allclose(y[..., :2], x, rtol=1e-4)
    assert not y[..., 2:9].any()
    np.testing.assert_allclose(y[..., 9:], max_pool(x, 3, 1), rtol=1e-4)


@pytest.mark.parametrize(
    ("bottleneck", "channels", "stride"),
    [(False, 4, 1), (False, 3, 1), (False, 4, 2), (True, 16, 1), (True, 4, 1), (True, 16, 2)],
)
def test_a_block_whose_convolutions_are_zero_passes_its_shortcut_on(bottleneck, channels, stride):
    x = np.random.default_rng(0).normal(size=(2, 6, 6, channels)).astype(np.float32)
    block = Block(features=4, stride=stride, bottleneck=bottleneck)
    variables = draw_variables(block, x)
    params = dict(variables["params"])
    for name in ("conv1", "conv2", "conv3")[: 3 if bottleneck else 2]:
        params[name] = jax.tree.map(np.zeros_like, params[name])
    shortcut = x
    features = 16 if bottleneck else 4
    assert ("projection" in params) == (stride > 1 or channels != features)
    if "projection" in params:
        kernel = params["projection"]["conv"]["kernel"]
        assert kernel.shape == (1, 1, channels, features)
        shortcut = x[:, ::stride, ::stride] @ np.asarray(kernel[0, 0]) / np.sqrt(1 + 1e-5)
    y = jax.jit(block.apply)({**variables, "params": params}, x)
    np.testing.assert_allclose(y, np.maximum(shortcut, 0), rtol=1e-3, atol=1e-4)


def test_a_bottlenecks_stride_is_on_its_3x3_convolution():
    x = jnp.zeros((1, 8, 8, 16))
    _, state = jax.eval_shape(
        lambda x: Block(4, stride=2, bottleneck=True).init_with_output(
            jax.random.key(0), x, capture_intermediates=True
        ),
        x,
    )
    outputs = state["intermediates"]
    assert outputs["conv1"]["__call__"][0].shape == (1, 8, 8, 4)
    assert outputs["conv2"]["__call__"][0].shape == (1, 4, 4, 4)


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2), (3, 1)])
@pytest.mark.parametrize("side", [8, 7, 1])
def test_max_pool_equals_numpy_and_rounds_up(window, stride, side):
    x = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    before = window // 2 if window == 3 else 0
    size = -(-side // stride)
    expected = np.full((2, size, size, 3), -np.inf)
    for row in range(size):
        for column in range(size):
            top, left = row * stride - before, column * stride - before
            patch = x[:, max(top, 0) : top + window, max(left, 0) : left + window]
            expected[:, row, column] = patch.max(axis=(1, 2))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), window, stride), expected)


def test_default_sac_weights_increase_and_sum_to_one_and_are_the_papers_for_three():
    assert default_sac_weights(3) == (0.1, 0.2, 0.7)
    assert default_sac_weights(1) == (1.0,)
    for stages in range(2, 40):
        weights = default_sac_weights(stages)
        assert len(weights) == stages
        assert weights[0] > 0
        assert np.all(np.diff(weights) > 0)
        assert math.isclose(sum(weights), 1, abs_tol=1e-9)
    with pytest.raises(ValueError, match="num_stages=0"):
        default_sac_weights(0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet20", {}),
        ("resnet20", {"norm_after_relu": True}),
        ("resnet20", {"projection_shortcuts": True}),
        ("resnet18", {}),
        ("resnet50", {}),
        ("vgg11", {}),
        ("inception", {}),
    ],
)
def test_every_norm_is_synchronised_over_the_axis_that_is_given(name, options):
    model, axes = create_model(name, norm_axis_name="devices", **options), []

    def note(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm):
            axes.append(context.module.axis_name)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert set(axes) == {"devices"}
