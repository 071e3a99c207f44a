"""The CIFAR ResNets and the heads on their stages."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flexpool_jax import create_model, pools, register_model, register_pool
from flexpool_jax.errors import UserError
from flexpool_jax.models import MODELS, num_stages, registry
from flexpool_jax.models.classifier import Head
from flexpool_jax.models.resnet_cifar import ResNetCifar, option_a_shortcut
from flexpool_jax.training.steps import parameter_count
from tests.models.conftest import draw_variables

IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


def shapes(model, image_shape=(32, 32, 3)):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))


@pytest.fixture(scope="module")
def sac_model():
    """A three-stage ResNet with SAC, as small as they come, and its variables."""
    model = create_model("resnet20", pool="flexpool", sac=True)
    model = model.clone(backbone=ResNetCifar(blocks_per_stage=1))
    return model, draw_variables(model, IMAGES)


# He et al. 2015, table 6, gives 0.27, 0.46, 0.66, 0.85 and 1.7 million.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet20", 0.27),
        ("resnet32", 0.46),
        ("resnet44", 0.66),
        ("resnet56", 0.85),
        ("resnet110", 1.7),
    ],
)
def test_parameter_counts_are_those_of_he_et_al(name, millions):
    count = parameter_count(shapes(create_model(name, pool="avg"))["params"])
    assert count / 1e6 == pytest.approx(millions, abs=0.05 if millions > 1 else 0.006)


def test_resnet20_has_exactly_269722_parameters_and_flexpool_4096_more():
    assert parameter_count(shapes(create_model("resnet20", pool="avg"))["params"]) == 269_722
    flexpool = parameter_count(shapes(create_model("resnet20", pool="flexpool"))["params"])
    assert flexpool == 269_722 + 64 * 8 * 8


@pytest.mark.parametrize("image_shape", [(32, 32, 3), (28, 28, 1), (33, 17, 2), (224, 224, 3)])
def test_stages_halve_the_resolution_rounding_up(image_shape):
    backbone = ResNetCifar(blocks_per_stage=1)
    images = jnp.zeros((1, *image_shape))
    stages, _ = jax.eval_shape(backbone.init_with_output, jax.random.key(0), images)
    h, w, _ = image_shape
    halve = lambda n: -(-n // 2)  # noqa: E731
    assert {name: x.shape for name, x in stages.items()} == {
        "stage1": (1, h, w, 16),
        "stage2": (1, halve(h), halve(w), 32),
        "stage3": (1, halve(halve(h)), halve(halve(w)), 64),
    }
    assert list(stages) == ["stage1", "stage2", "stage3"]


def test_shortcut_takes_every_second_pixel_and_pads_a_quarter_of_the_width_on_each_side():
    x = np.arange(2 * 4 * 4 * 16, dtype=np.float32).reshape(2, 4, 4, 16)
    y = np.asarray(option_a_shortcut(x, 32, 2))
    np.testing.assert_array_equal(y[..., 8:24], x[:, ::2, ::2])
    assert not y[..., :8].any()
    assert not y[..., 24:].any()


def test_auxiliary_logits_are_sown_in_training_only_first_stage_first(sac_model):
    model, variables = sac_model
    assert set(variables) == {"params", "batch_stats"}

    @jax.jit
    def run(variables):
        mutable = ["batch_stats", "aux_logits"]
        logits, updates = model.apply(variables, IMAGES, train=True, mutable=mutable)
        stages, _ = model.apply(
            variables, IMAGES, train=True, mutable=["batch_stats"], method="stage_maps"
        )
        return logits, updates["aux_logits"]["logits"], stages

    logits, aux, stages = run(variables)
    assert [x.shape for x in (*aux, logits)] == [(2, 10)] * 3
    # Recomputed from the stage maps by hand: which head saw which stage.
    for got, name in zip(aux, ["stage1", "stage2"], strict=True):
        head = variables["params"][f"aux_head_{name}"]
        pooled = np.mean(stages[name], axis=(1, 2))
        expected = pooled @ head["classifier"]["kernel"] + head["classifier"]["bias"]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    _, updates = jax.eval_shape(
        lambda v: model.apply(v, IMAGES, train=False, mutable=["aux_logits"]), variables
    )
    assert not jax.tree.leaves(updates)


def test_auxiliary_logits_of_an_earlier_call_are_replaced(sac_model):
    model, variables = sac_model

    def step(variables):
        mutable = ["batch_stats", "aux_logits"]
        _, updates = model.apply(variables, IMAGES, train=True, mutable=mutable)
        return {**variables, **updates}

    twice = jax.eval_shape(lambda variables: step(step(variables)), variables)
    assert len(twice["aux_logits"]["logits"]) == 2


def test_evaluation_needs_no_auxiliary_head(sac_model):
    model, variables = sac_model
    logits = model.apply(variables, IMAGES)
    kept = {k: v for k, v in variables["params"].items() if not k.startswith("aux_head")}
    assert len(kept) == len(variables["params"]) - 2
    alone = model.apply({**variables, "params": kept}, IMAGES)
    np.testing.assert_array_equal(alone, logits)


def test_dropout_acts_on_the_pooled_vector_in_training_only():
    model = create_model("resnet20", pool="avg", dropout_rate=0.25)
    model = model.clone(backbone=ResNetCifar(blocks_per_stage=1))
    variables = draw_variables(model, IMAGES)

    @functools.partial(jax.jit, static_argnums=0)
    def logits(train, key):
        rngs = {"dropout": jax.random.key(key)}
        return model.apply(variables, IMAGES, train, rngs=rngs, mutable=["batch_stats"])[0]

    np.testing.assert_array_equal(logits(False, 0), logits(False, 1))
    assert np.abs(logits(True, 0) - logits(True, 1)).max() > 1e-4


def test_hidden_layers_of_a_head_have_relu_and_in_training_dropout():
    head = Head(3, "avg", dropout_rate=0.5, hidden_features=(64,))
    variables = draw_variables(head, IMAGES)
    hidden, last = (variables["params"][name]["kernel"] for name in ("hidden1", "classifier"))
    expected = np.maximum(IMAGES.mean(axis=(1, 2)) @ hidden, 0) @ last
    np.testing.assert_allclose(head.apply(variables, IMAGES), expected, rtol=1e-4, atol=1e-5)
    # A pooled vector of zeros is the same with and without dropout.
    variables["params"]["hidden1"]["bias"] = np.ones(64, np.float32)
    logits = [
        head.apply(variables, 0 * IMAGES, True, rngs={"dropout": jax.random.key(seed)})
        for seed in (0, 1)
    ]
    assert np.abs(logits[0] - logits[1]).min() > 1e-3


def test_gradients_stop_before_a_frozen_backbone(sac_model):
    model, variables = sac_model
    frozen = model.clone(freeze_backbone=True)

    @jax.jit
    @jax.grad
    def gradient(params):
        logits, updates = frozen.apply(
            {**variables, "params": params}, IMAGES, train=True, mutable=["aux_logits"]
        )
        return sum(jnp.sum(x**2) for x in (logits, *updates["aux_logits"]["logits"]))

    found = gradient(variables["params"])
    # Its updates are 0 in any case, but its gradients would count in the norm for clipping.
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found.pop("backbone")))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_bfloat16_compute_keeps_float32_parameters_statistics_and_logits():
    model = create_model("resnet20", dtype=jnp.bfloat16, sac=True)
    variables = shapes(model, IMAGES.shape[1:])
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    logits, updates = jax.eval_shape(
        lambda v: model.apply(v, IMAGES, train=True, mutable=["batch_stats", "aux_logits"]),
        variables,
    )
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(updates["batch_stats"])} == {jnp.dtype(jnp.float32)}


def test_parameters_have_the_names_that_checkpoints_hold():
    variables = shapes(create_model("resnet20"))
    numbers = itertools.product((1, 2, 3), (1, 2, 3), (1, 2))
    layers = ["stem", *(f"stage{s}_block{b}_{c}" for s, b, c in numbers)]
    backbone = {f"{name}_conv": ["kernel"] for name in layers}
    norms = {f"{name}_norm": ["bias", "scale"] for name in layers}
    head = {"pool": ["w_fp"], "classifier": ["bias", "kernel"]}
    params = {part: {k: sorted(v) for k, v in p.items()} for part, p in variables["params"].items()}
    assert params == {"backbone": backbone | norms, "head": head}
    statistics = {f"{name}_norm": {"mean", "var"} for name in layers}
    assert {k: set(v) for k, v in variables["batch_stats"]["backbone"].items()} == statistics


def test_release_order_has_biased_convolutions_and_norms_after_each_relu():
    model = create_model("resnet20", norm_after_relu=True)
    params = shapes(model)["params"]["backbone"]
    assert set(params["stem_conv"]) == {"kernel", "bias"}
    backbone = ResNetCifar(blocks_per_stage=1, norm_after_relu=True)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.1, 0.9, leaf.shape).astype(np.float32) - (leaf.ndim == 4) / 2,
        jax.eval_shape(backbone.init, jax.random.key(0), IMAGES),
    )

    def conv(x, name, stride=1):
        layer = variables["params"][f"{name}_conv"]
        x = jax.lax.conv_general_dilated(
            x,
            layer["kernel"],
            (stride, stride),
            [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + layer["bias"]

    def norm(x, name):
        layer = variables["params"][f"{name}_norm"]
        stats = variables["batch_stats"][f"{name}_norm"]
        return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * layer["scale"] + layer["bias"]

    @jax.jit
    def expected():
        x = norm(nn.relu(conv(IMAGES, "stem")), "stem")
        for stage, stride in ((1, 1), (2, 2), (3, 2)):
            first, second = f"stage{stage}_block1_1", f"stage{stage}_block1_2"
            y = norm(nn.relu(conv(x, first, stride)), first)
            shortcut = option_a_shortcut(x, 8 * 2**stage, stride)
            x = norm(nn.relu(conv(y, second) + shortcut), second)
        return x

    found = jax.jit(backbone.apply)(variables, IMAGES)["stage3"]
    np.testing.assert_allclose(found, expected(), rtol=1e-3, atol=1e-4 * np.abs(found).max())


def test_unknown_names_are_refused_with_the_closest():
    with pytest.raises(UserError, match=r"'resnet2O'.*'resnet20'"):
        create_model("resnet2O")
    with pytest.raises(UserError, match=r"'flexpol'.*'flexpool'"):
        create_model("resnet20", pool="flexpol")
    with pytest.raises(UserError, match="norm_before_lunch"):
        create_model("resnet20", norm_before_lunch=True)


def test_a_users_own_backbone_is_one_registered_function(monkeypatch):
    monkeypatch.setattr(registry, "MODELS", dict(MODELS))

    class TwoStages(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            first = nn.relu(nn.Conv(4, (3, 3))(images))
            return {"stage1": first, "stage2": nn.relu(nn.Conv(8, (3, 3), strides=2)(first))}

    @register_model("two_stages", num_stages=2, head_features=(5,))
    def two_stages(*, dtype, norm_axis_name):
        return TwoStages()

    assert num_stages("two_stages") == 2
    model = create_model("two_stages", num_classes=7, sac=True)
    variables = shapes(model, IMAGES.shape[1:])
    assert variables["params"]["aux_head_stage1"]["pool"]["w_fp"].shape == (8, 8, 4)
    assert variables["params"]["head"]["hidden1"]["kernel"].shape == (8, 5)
    assert jax.eval_shape(model.apply, variables, IMAGES).shape == (2, 7)
    with pytest.raises(UserError, match="two_stages"):
        register_model("two_stages", num_stages=2)(lambda **fields: TwoStages())
    with pytest.raises(UserError, match="resnet20"):
        register_model("resnet20", num_stages=2)(two_stages)
    # Running a notebook's cell again is no mistake, and its last version counts.
    register_model("two_stages", num_stages=3)(two_stages)
    assert num_stages("two_stages") == 3


def first_map(images):
    return jnp.ones((*images.shape[:3], 4), jnp.float32)


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        (lambda x: (first_map(x), first_map(x)), "a tuple"),
        (lambda x: None, "a NoneType"),
        (first_map, r"an array \[2, 8, 8, 4\] of float32"),
        (lambda x: {}, "2 stage maps; got 0: none"),
        (lambda x: {"a": first_map(x)}, "2 stage maps; got 1: a"),
        (lambda x: dict.fromkeys("abc", first_map(x)), "2 stage maps; got 3: a, b, c"),
        (lambda x: {"a": first_map(x), "b": first_map(x)[0]}, r"B = 2; .*\[8, 8, 4\].* for 'b'"),
        (lambda x: {"a": first_map(x), "b": first_map(x)[:1]}, r"B = 2; .*\[1, 8, 8, 4\]"),
        (lambda x: {"a": first_map(x).astype(int), "b": first_map(x)}, "int32 for 'a'"),
        (lambda x: {"a": first_map(x) + 1j, "b": first_map(x)}, "complex64 for 'a'"),
        (lambda x: {"a": first_map(x), "b": "map"}, "a str for 'b'"),
    ],
)
def test_backbone_that_returns_something_else_is_told_what_it_must_return(
    monkeypatch, returned, named
):
    class Backbone(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            return returned(images)

    monkeypatch.setitem(
        registry.MODELS, "odd", registry.Entry(lambda **fields: Backbone(), num_stages=2)
    )
    with pytest.raises(UserError, match=f"backbone 'odd' must return .*{named}"):
        create_model("odd").init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)))


@pytest.mark.parametrize(
    ("pool", "got"),
    [
        (lambda x: x.max(axis=1), r"an array \[2, 8, 64\] of float32"),
        (lambda x: x.mean(axis=(0, 1, 2)), r"an array \[64\]"),
        (lambda x: x.mean(), r"an array \[\]"),
        (lambda x: (x.mean(axis=(1, 2)), 1), "a tuple"),
    ],
)
def test_pool_that_returns_another_shape_is_named(monkeypatch, pool, got):
    monkeypatch.setattr(pools, "POOLS", dict(pools.POOLS))
    register_pool("odd")(pool)
    with pytest.raises(UserError, match=r"pool 'odd' must map \[2, 8, 8, 64\] .* got " + got):
        jax.eval_shape(
            create_model("resnet20", pool="odd").init,
            jax.random.key(0),
            jnp.zeros((2, 32, 32, 3)),
        )


@pytest.mark.parametrize(
    "register",
    [
        lambda: register_model("a_text", num_stages="3"),
        lambda: register_model("none", num_stages=0),
        lambda: register_model("a_bool", num_stages=True),
        lambda: register_model("", num_stages=3),
        lambda: register_model("not_callable", num_stages=3)("resnet20"),
        lambda: register_model("no_dtype", num_stages=3)(lambda: ResNetCifar()),
        lambda: register_model("no_axis", num_stages=3)(lambda *, dtype, width=8: ResNetCifar()),
    ],
)
def test_what_cannot_be_registered_is_refused(register):
    before = dict(registry.MODELS)
    with pytest.raises(UserError, match="allowed"):
        register()
    assert before == registry.MODELS


@pytest.mark.parametrize("fields", [{"dropout_rate": 1.5}, {"dropout_rate": 1}, {"num_classes": 0}])
def test_numbers_out_of_range_are_refused_when_a_model_is_created(fields):
    with pytest.raises(UserError, match=f"{next(iter(fields))} is .*allowed"):
        create_model("resnet20", **fields)


def test_builder_that_returns_no_module_is_named(monkeypatch):
    monkeypatch.setitem(
        registry.MODELS, "odd", registry.Entry(lambda **fields: ResNetCifar, num_stages=3)
    )
    with pytest.raises(UserError, match=r"model 'odd' must return a flax\.linen\.Module; got type"):
        create_model("odd")


def test_logits_have_the_precision_of_float32_under_bfloat16(sac_model):
    model, variables = sac_model
    half = model.clone(dtype=jnp.dtype(jnp.bfloat16))
    logits = jax.jit(half.apply)(variables, IMAGES)
    assert logits.dtype == jnp.float32
    # A number that was bfloat16 once is unchanged by rounding to it.
    assert (logits != logits.astype(jnp.bfloat16).astype(jnp.float32)).any()
