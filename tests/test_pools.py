"""The pools by name, FlexPool's controls among them, against NumPy and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flexpool_jax import FlexPool, register_pool
from flexpool_jax.errors import UserError
from flexpool_jax.pools import (
    POOLS,
    AttentionPool,
    avg_pool,
    create_pool,
    effective_weights,
    gem_pool,
    has_weights,
    lse_pool,
    max_pool,
    pool_summary,
    regularizer_applies,
    soft_pool,
)

FEATURE_MAP = np.random.default_rng(0).normal(size=(3, 5, 4, 6)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(5, 4, 6)).astype(np.float32)


def numpy_avgmax(x):
    return (x.mean(axis=(1, 2)) + x.max(axis=(1, 2))) / 2


def numpy_gem(x, p=3.0, epsilon=1e-6):
    return np.mean(np.maximum(x, epsilon) ** p, axis=(1, 2)) ** (1 / p)


def numpy_lse(x, r=5.0):
    return np.log(np.mean(np.exp(r * x), axis=(1, 2))) / r


def numpy_softpool(x):
    return (np.exp(x) * x).sum(axis=(1, 2)) / np.exp(x).sum(axis=(1, 2))


def numpy_attention(x, params):
    """One example and one head at a time, as the formula of multi-head attention reads."""
    projections = params["attention"]
    heads, head_width = projections["query"]["bias"].shape
    pooled = np.zeros((x.shape[0], x.shape[3]))
    for example, feature_map in enumerate(x):
        mean = feature_map.mean(axis=(0, 1)) + params["mean_position"]
        tokens = (feature_map + params["positions"]).reshape(-1, x.shape[3])
        tokens = np.vstack([mean, tokens])
        for head in range(heads):
            query, key, value = (
                tokens @ projections[name]["kernel"][:, head] + projections[name]["bias"][head]
                for name in ("query", "key", "value")
            )
            scores = np.exp(key @ query[0] / np.sqrt(head_width))
            attended = (scores / scores.sum()) @ value
            pooled[example] += attended @ projections["out"]["kernel"][head]
    return pooled + projections["out"]["bias"]


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("shape", [(4, 4, 6), (3, 5, 4, 6, 1), (3, 0, 4, 6)])
def test_refuses_what_is_not_a_feature_map(shape, name):
    with pytest.raises(ValueError, match=r"\(3, |\(4, 4, 6\)"):
        create_pool(name).init(jax.random.key(0), jnp.ones(shape))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("avg", lambda x: x.mean(axis=(1, 2))),
        ("max", lambda x: x.max(axis=(1, 2))),
        ("avgmax", numpy_avgmax),
        ("gem", numpy_gem),
        ("lse", numpy_lse),
        ("softpool", numpy_softpool),
    ],
)
def test_peers_equal_numpy(name, expected):
    pooled, _ = create_pool(name).init_with_output(jax.random.key(0), jnp.asarray(FEATURE_MAP))
    np.testing.assert_allclose(
        pooled, expected(FEATURE_MAP.astype(np.float64)), rtol=1e-5, atol=1e-6
    )


# C/64 where that divides C, fewer where it does not, and at least one.
@pytest.mark.parametrize(("channels", "heads"), [(192, 3), (200, 2), (6, 1)])
def test_attention_equals_numpy_with_the_heads_that_divide_the_channels(channels, heads):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, channels)).astype(np.float32)
    variables = jax.jit(create_pool("attention").init)(jax.random.key(0), x)
    # The biases start at zero, where a wrong one would not be noticed.
    params = jax.tree.map(lambda p: p + rng.normal(size=p.shape, scale=0.1), variables["params"])
    assert params["attention"]["query"]["kernel"].shape == (channels, heads, channels // heads)
    pooled = jax.jit(create_pool("attention").apply)({"params": params}, x)
    expected = numpy_attention(x.astype(np.float64), jax.tree.map(np.asarray, params))
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-4)


def test_attention_at_another_resolution_names_both_shapes():
    variables = jax.eval_shape(AttentionPool().init, jax.random.key(0), FEATURE_MAP)
    with pytest.raises(ValueError, match=r"\(5, 4, 6\).*\(4, 5, 6\).*resize") as error:
        AttentionPool().apply(variables, jnp.ones((1, 4, 5, 6)))
    assert "resize_flexpool" not in str(error.value)


def test_soft_maxima_lie_between_their_limits():
    positive = np.abs(FEATURE_MAP)
    average, maximum = avg_pool(positive), max_pool(positive)
    np.testing.assert_allclose(gem_pool(positive, 1.0), average, rtol=1e-5)
    np.testing.assert_allclose(gem_pool(positive, 200.0), maximum, rtol=0.02)
    np.testing.assert_allclose(lse_pool(positive, 1e-3), average, rtol=0.01)
    np.testing.assert_allclose(lse_pool(positive, 1e4), maximum, rtol=1e-3)
    for pooled in (gem_pool(positive, 3.0), lse_pool(positive), soft_pool(positive)):
        assert np.all(pooled > average)
        assert np.all(pooled < maximum)


def test_gem_of_small_values_is_not_cut_off():
    positive = np.abs(FEATURE_MAP)
    pooled = gem_pool(1e-4 * positive, 3.0)
    np.testing.assert_allclose(pooled, 1e-4 * numpy_gem(positive), rtol=1e-4)


def test_attention_starts_with_the_deviation_that_clip_gives_its_pool():
    x = jnp.ones((1, 4, 4, 256))
    params = jax.jit(AttentionPool().init)(jax.random.key(0), x)["params"]
    kernels = [params["attention"][name]["kernel"] for name in ("query", "key", "value", "out")]
    for drawn in (params["positions"], *kernels):
        np.testing.assert_allclose(jnp.std(drawn), 256**-0.5, rtol=0.05)


@pytest.mark.parametrize("name", POOLS)
def test_gradients_are_finite_for_constant_maps(name):
    # ReLU leaves whole channels at zero, and a diverging run values whose exp is infinite.
    values = jnp.asarray([0.0, -2.0, 1e-8, 1.0, 300.0])
    x = jnp.broadcast_to(values[:, None, None, None], (5, 3, 3, 4))
    variables = jax.jit(create_pool(name).init)(jax.random.key(0), x)

    @jax.jit
    def loss(variables, x):
        return jnp.sum(create_pool(name).apply(variables, x) ** 2)

    for leaf in jax.tree.leaves(jax.grad(loss, argnums=(0, 1))(variables, x)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("p", [1e-3, 6.5, 100.0])
def test_gem_is_finite_for_every_exponent_that_training_may_reach(p):
    x = jnp.asarray([0.0, 0.0, 1e-3, 40.0]).reshape(1, 2, 2, 1)
    value, gradients = jax.value_and_grad(lambda x, p: jnp.sum(gem_pool(x, p)), argnums=(0, 1))(
        x, jnp.float32(p)
    )
    assert 0 < value <= 40.001
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize("name", ["gem", "avgmax", "lse", "softpool"])
def test_peer_gradient_equals_finite_differences(name):
    with jax.enable_x64(True):
        x = jnp.asarray(np.abs(FEATURE_MAP[:1]), jnp.float64)
        variables = create_pool(name).init(jax.random.key(0), x)

        @jax.jit
        def loss(x):
            return jnp.sum(jnp.tanh(create_pool(name).apply(variables, x)))

        gradient = jax.grad(loss)(x)
        for index in [(0, 0, 0, 0), (0, 4, 3, 5), (0, 2, 1, 3)]:
            bump = jnp.zeros_like(x).at[index].set(1e-6)
            difference = (loss(x + bump) - loss(x - bump)) / 2e-6
            np.testing.assert_allclose(gradient[index], difference, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", POOLS)
def test_bfloat16_maps_are_pooled_in_float32(name):
    """Rounded once, at the end: half a unit in bfloat16's last place from float32's result."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.uniform(0.5, 2, (2, 16, 16, 4)), jnp.bfloat16)
    variables = jax.jit(create_pool(name).init)(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} <= {jnp.dtype(jnp.float32)}
    params = variables.get("params", {})
    if "w_fp" in params:
        # Of both signs, so that the sum is smaller than its terms and shows their rounding.
        w_fp = rng.normal(size=params["w_fp"].shape).astype(np.float32)
        variables = {"params": {**params, "w_fp": w_fp}}
    apply = jax.jit(create_pool(name).apply)
    pooled, wide = apply(variables, x), apply(variables, x.astype(jnp.float32))
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_allclose(pooled.astype(jnp.float32), wide, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("name", POOLS)
def test_every_pool_maps_a_feature_map_to_a_vector(name):
    pooled, _ = jax.eval_shape(
        create_pool(name).init_with_output, jax.random.key(0), jnp.asarray(FEATURE_MAP)
    )
    assert pooled.shape == ((3, 120) if name == "flatten" else (3, 6))
    assert pooled.dtype == jnp.float32


@pytest.mark.parametrize("name", ["channel_scale", "flexpool_shared"])
def test_controls_with_shared_weights_start_as_global_average_pooling(name):
    pooled, _ = create_pool(name).init_with_output(jax.random.key(0), FEATURE_MAP)
    np.testing.assert_allclose(pooled, FEATURE_MAP.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "w_fp", "expected"),
    [
        (
            "channel_scale",
            WEIGHTS[:1, :1],
            FEATURE_MAP.astype(np.float64).mean(axis=(1, 2)) * WEIGHTS[0, 0],
        ),
        (
            "flexpool_shared",
            WEIGHTS[:, :, :1],
            sum(
                WEIGHTS[i, j, 0] * FEATURE_MAP[:, i, j].astype(np.float64)
                for i in range(5)
                for j in range(4)
            ),
        ),
        ("gdconv", WEIGHTS, np.einsum("bhwc,hwc->bc", FEATURE_MAP.astype(np.float64), WEIGHTS)),
    ],
)
def test_controls_equal_numpy(name, w_fp, expected):
    pool = create_pool(name)
    start = pool.init(jax.random.key(0), FEATURE_MAP)["params"]["w_fp"]
    assert (start.shape, start.dtype) == (w_fp.shape, jnp.float32)
    pooled = pool.apply({"params": {"w_fp": w_fp}}, FEATURE_MAP)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-5)


def test_flatten_keeps_every_value_in_the_order_of_positions_then_channels():
    pooled = create_pool("flatten").apply({}, FEATURE_MAP)
    assert float(pooled[2, (3 * 4 + 1) * 6 + 5]) == FEATURE_MAP[2, 3, 1, 5]
    np.testing.assert_array_equal(pooled, FEATURE_MAP.reshape(3, 120))


def test_gdconv_is_the_depthwise_convolution_whose_kernel_covers_the_map():
    convolution = nn.Conv(
        6, (5, 4), padding="VALID", feature_group_count=6, use_bias=False, precision="highest"
    )
    convolved = convolution.apply({"params": {"kernel": WEIGHTS[:, :, None]}}, FEATURE_MAP)
    pooled = create_pool("gdconv").apply({"params": {"w_fp": WEIGHTS}}, FEATURE_MAP)
    np.testing.assert_allclose(pooled, convolved[:, 0, 0], rtol=1e-4, atol=1e-5)


def test_gdconv_starts_as_such_a_convolution_does_with_fan_in_of_all_positions():
    x = jnp.ones((1, 8, 4, 512))
    w = create_pool("gdconv").init(jax.random.key(0), x)["params"]["w_fp"]
    convolution = nn.Conv(512, (8, 4), padding="VALID", feature_group_count=512, use_bias=False)
    kernel = convolution.init(jax.random.key(0), x)["params"]["kernel"]
    # 16,384 draws: the standard error of a deviation is half a per cent.
    np.testing.assert_allclose(jnp.std(w), 32**-0.5, rtol=0.02)
    np.testing.assert_allclose(jnp.std(w), jnp.std(kernel), rtol=0.03)
    np.testing.assert_allclose(jnp.mean(w), 0, atol=0.01)


@pytest.mark.parametrize(
    ("name", "w_shape"),
    [
        ("flexpool", (5, 4, 6)),
        ("flexpool_softmax", (5, 4, 6)),
        ("channel_scale", (1, 1, 6)),
        ("flexpool_shared", (5, 4, 1)),
        ("gdconv", (5, 4, 6)),
    ],
)
def test_pool_with_learned_weights_is_flexpool_with_its_effective_weights(name, w_shape):
    params = {"w_fp": jnp.asarray(np.random.default_rng(4).normal(size=w_shape), jnp.float32)}
    weights = effective_weights(name, params, (5, 4, 6))
    assert weights.shape == (5, 4, 6)
    np.testing.assert_allclose(
        FlexPool().apply({"params": {"w_fp": weights}}, FEATURE_MAP),
        create_pool(name).apply({"params": params}, FEATURE_MAP),
        rtol=1e-5,
        atol=1e-5,
    )
    with pytest.raises(ValueError, match=r"\(2, 3, 7\).*\(5, 4, 8\)"):
        effective_weights(name, {"w_fp": jnp.ones((2, 3, 7))}, (5, 4, 8))


def test_every_pool_with_weights_tells_its_effective_ones_and_no_other_does():
    for name in tuple(POOLS):
        variables = jax.eval_shape(create_pool(name).init, jax.random.key(0), FEATURE_MAP)
        params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables.get("params", {}))
        weights = effective_weights(name, params, (5, 4, 6))
        assert (weights is not None) == ("w_fp" in params), name


def test_a_pool_derived_from_flexpool_does_not_inherit_its_effective_weights(monkeypatch):
    class Doubled(FlexPool):
        @nn.compact
        def __call__(self, x):
            return 2 * super().__call__(x)

    monkeypatch.setitem(POOLS, "doubled", Doubled)
    assert effective_weights("doubled", {"w_fp": WEIGHTS}, (5, 4, 6)) is None


@pytest.mark.parametrize(
    ("name", "w_shape", "words"),
    [
        ("gdconv", (7, 7, 6), ["GDConv's", "(7, 7, 6)", "(5, 4, 6)", "resize_flexpool"]),
        ("gdconv", (5, 4, 7), ["(5, 4, 7)", "(5, 4, 6)", "channels"]),
        ("flexpool_shared", (7, 7, 1), ["FlexPoolShared's", "(7, 7, 1)", "(5, 4, 1)", "resample"]),
        ("flexpool_shared", (5, 4, 6), ["(5, 4, 6)", "(5, 4, 1)"]),
        ("channel_scale", (1, 1, 7), ["ChannelScale's", "(1, 1, 7)", "(1, 1, 6)", "channels"]),
        ("channel_scale", (5, 4, 6), ["(5, 4, 6)", "(1, 1, 6)"]),
        ("flexpool", (6,), ["FlexPool's", "(6,)", "(5, 4, 6)"]),
    ],
)
def test_weights_of_another_shape_are_refused_in_one_line_with_both_shapes(name, w_shape, words):
    with pytest.raises(ValueError, match="weights have shape") as error:
        create_pool(name).apply({"params": {"w_fp": jnp.ones(w_shape)}}, FEATURE_MAP)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_channel_scale_fits_maps_of_any_size():
    variables = {"params": {"w_fp": jnp.full((1, 1, 6), 2.0)}}
    pooled = create_pool("channel_scale").apply(variables, FEATURE_MAP[:, :2, :3])
    expected = 2 * FEATURE_MAP[:, :2, :3].mean(axis=(1, 2))
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def pools(monkeypatch):
    """A registry that a test may add to."""
    registry = dict(POOLS)
    monkeypatch.setattr("flexpool_jax.pools.POOLS", registry)
    return registry


@pytest.mark.parametrize("name", POOLS)
def test_integer_maps_are_refused(name):
    with pytest.raises(ValueError, match="floating feature map; got uint8"):
        create_pool(name).init(jax.random.key(0), jnp.ones((1, 4, 4, 2), jnp.uint8))


def corner(x):
    return x[:, 0, 0]


class Corner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return corner(x) * self.param("scale", nn.initializers.constant(3.0), ())


@pytest.mark.parametrize(("definition", "scale"), [(corner, 1), (Corner, 3)])
def test_a_registered_pool_is_created_by_name(pools, definition, scale):
    assert register_pool("corner")(definition) is definition
    pooled, _ = create_pool("corner").init_with_output(jax.random.key(0), FEATURE_MAP)
    np.testing.assert_allclose(pooled, scale * FEATURE_MAP[:, 0, 0], rtol=1e-6)
    assert effective_weights("corner", {}, (5, 4, 6)) is None


def test_the_same_definition_may_be_registered_again_and_no_other(pools):
    def define():
        def last(x):
            return x[:, -1, -1]

        return last

    register_pool("last")(define())
    again = register_pool("last")(define())
    assert pools["last"].args == (again,)
    for other in (corner, Corner):
        with pytest.raises(ValueError, match="'last' is registered already"):
            register_pool("last")(other)

    def scaled(factor, by_default=1):
        return lambda x, by_default=by_default: factor * by_default * x.mean((1, 2))

    register_pool("scaled")(scaled(2.0))
    register_pool("scaled")(scaled(2.0))
    for other in (scaled(3.0), scaled(2.0, by_default=3)):
        with pytest.raises(ValueError, match="'scaled' is registered already"):
            register_pool("scaled")(other)
    register_pool("partial")(functools.partial(lse_pool, r=1.0))
    register_pool("partial")(functools.partial(lse_pool, r=1.0))
    with pytest.raises(ValueError, match="'partial' is registered already"):
        register_pool("partial")(functools.partial(lse_pool, r=2.0))
    register_pool("lambda")(lambda x: x.mean((1, 2)))
    with pytest.raises(ValueError, match="'lambda' is registered already"):
        register_pool("lambda")(lambda x: x.max((1, 2)))
    # The same class with other fields is another pool.
    with pytest.raises(ValueError, match="registered already"):
        register_pool("flexpool_softmax")(FlexPool)
    with pytest.raises(ValueError, match="registered already"):
        register_pool("avg")(functools.partial(avg_pool))
    # A partial of a class is registered as a function, which is not what the table has.
    with pytest.raises(ValueError, match="registered already"):
        register_pool("flexpool_softmax")(functools.partial(FlexPool, constraint="softmax"))


def test_the_constraint_of_a_pool_that_wraps_another_is_its_field(pools):
    class Scaled(nn.Module):
        constraint: str | None = "softmax"

        @nn.compact
        def __call__(self, x):
            return 2 * FlexPool(self.constraint)(x)

    register_pool("scaled")(Scaled)
    assert has_weights("scaled")
    assert not regularizer_applies("scaled")


def test_the_effective_weights_of_a_pool_that_wraps_flexpool_are_found(pools):
    @register_pool("doubled")
    class Doubled(nn.Module):
        inner_pools: int = 1

        @nn.compact
        def __call__(self, x):
            return 2 * sum(FlexPool(name=f"inner{i}")(x) for i in range(self.inner_pools))

        def effective_weights(self, w_fp, shape):
            return 2 * w_fp

    variables = create_pool("doubled").init(jax.random.key(0), FEATURE_MAP)
    weights = effective_weights("doubled", variables["params"], FEATURE_MAP.shape[1:])
    np.testing.assert_allclose(weights, np.full(FEATURE_MAP.shape[1:], 2 / 20), rtol=1e-6)
    two = create_pool("doubled", inner_pools=2).init(jax.random.key(0), FEATURE_MAP)["params"]
    for params, count in [({}, 0), (two, 2)]:
        with pytest.raises(
            UserError, match=f"'doubled' has .* and {count} parameters w_fp; allowed: one"
        ):
            effective_weights("doubled", params, FEATURE_MAP.shape[1:])


@pytest.mark.parametrize("name", ["", "a+b", "a,b", "a/b", "../up", "a b", "größe", "a=1", None, 3])
def test_a_pools_name_is_a_plain_word(pools, name):
    with pytest.raises(ValueError, match="letters, digits"):
        register_pool(name)


@pytest.mark.parametrize("name", ["reg", "dropout", "sac", "softmax"])
def test_a_word_with_another_meaning_is_not_a_pools_name(pools, name):
    with pytest.raises(ValueError, match=f"'{name}'.*reserved: softmax, reg, dropout, sac"):
        register_pool(name)


@pytest.mark.parametrize("definition", [3, None, "avg", int, FlexPool()])
def test_what_is_not_a_function_or_module_class_is_refused(pools, definition):
    with pytest.raises(ValueError, match="allowed: a function"):
        register_pool("mine")(definition)
    assert "mine" not in pools


class NeedsField(nn.Module):
    factor: float

    def __call__(self, x):
        return self.factor * avg_pool(x)


class NeedsTrain(nn.Module):
    def __call__(self, x, train):
        return avg_pool(x)


@pytest.mark.parametrize(
    ("definition", "missing"),
    [(lambda x, y: x, "'y'"), (NeedsField, "'factor'"), (NeedsTrain, "'train'")],
)
def test_a_pool_that_needs_more_than_a_feature_map_is_refused(pools, definition, missing):
    with pytest.raises(ValueError, match=rf"pool 'mine': missing .*{missing}; allowed: a function"):
        register_pool("mine")(definition)
    assert "mine" not in pools


def test_unknown_pool_is_refused_with_the_closest():
    with pytest.raises(UserError, match=r"'flexpol'; did you mean 'flexpool'\?"):
        create_pool("flexpol")


def test_pool_summary_is_that_of_numpy():
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(3, 4, 5)), np.zeros((2, 2, 1))
    params = {"head": {"pool": {"w_fp": w}}, "aux": {"w_fp": v}, "other": {"kernel": w}}
    found = jax.jit(pool_summary)(params)
    sums = w.sum(axis=(0, 1))
    expected = {
        "head/pool/sum_mean": sums.mean(),
        "head/pool/sum_sd": sums.std(),
        "head/pool/negative_share": np.mean(w < 0),
        "head/pool/deviation_share": np.sum((w - sums / 12) ** 2) / np.sum(w**2),
        "aux/sum_mean": 0,
        "aux/sum_sd": 0,
        "aux/negative_share": 0,
        "aux/deviation_share": 0,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-5), name


def test_pool_summary_describes_the_weights_that_the_pool_uses():
    stored = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    found = pool_summary({"w_fp": stored}, "flexpool_softmax")
    assert float(found["sum_mean"]) == pytest.approx(1)
    assert float(found["negative_share"]) == 0
    scale = pool_summary({"w_fp": np.full((1, 1, 5), 2.0)}, "channel_scale")
    assert (float(scale["sum_mean"]), float(scale["deviation_share"])) == (2, 0)
    assert pool_summary({"p": np.float32(3)}, "gem") == {}
