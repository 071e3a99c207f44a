"""Weights from files: own ones come back as they were, PyTorch's compute what PyTorch computes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file

from flexpool_jax import create_model, load_weights, resize_flexpool
from flexpool_jax.errors import UserError
from flexpool_jax.models.classifier import Classifier
from flexpool_jax.models.layers import cpu_kernels
from flexpool_jax.models.resnet import ResNet
from flexpool_jax.models.resnet_cifar import ResNetCifar
from flexpool_jax.models.weights import read_header, save_weights, start_from

RNG = np.random.default_rng(0)


def random_variables(model, side=32):
    """Variables of the model's shapes, drawn by NumPy, so that nothing is compiled."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    return jax.tree.map(lambda leaf: RNG.normal(0, 1, leaf.shape).astype(leaf.dtype), shapes)


@functools.cache
def variables_of(name="resnet20", pool="avg", side=32, **options):
    return random_variables(create_model(name, 10, pool, **options), side)


def convolution(out, inside, size):
    return RNG.normal(0, (2 / (out * size**2)) ** 0.5, (out, inside, size, size))


def norm(name, features):
    yield f"{name}.weight", RNG.uniform(0.5, 1, features)
    yield f"{name}.bias", RNG.normal(0, 0.1, features)
    yield f"{name}.running_mean", RNG.normal(0, 0.1, features)
    yield f"{name}.running_var", RNG.uniform(0.5, 1.5, features)
    yield f"{name}.num_batches_tracked", np.array(7)


def published(widths, blocks, *, projections, dense, kernels=(3, 3), stem=3, classes=10, prefix=""):
    """A state dict with the names and shapes that PyTorch's implementations publish."""
    expansion = 4 if len(kernels) == 3 else 1

    def entries():
        yield "conv1.weight", convolution(widths[0], 3, stem)
        yield from norm("bn1", widths[0])
        inside = widths[0]
        for stage, width in enumerate(widths, start=1):
            for block in range(blocks[stage - 1]):
                name, entering = f"layer{stage}.{block}", inside
                for number, size in enumerate(kernels, start=1):
                    out = width * expansion if number == 3 else width
                    yield f"{name}.conv{number}.weight", convolution(out, inside, size)
                    yield from norm(f"{name}.bn{number}", out)
                    inside = out
                if projections and block == 0 and (stage > 1 or entering != inside):
                    yield f"{name}.downsample.0.weight", convolution(inside, entering, 1)
                    yield from norm(f"{name}.downsample.1", inside)
        yield f"{dense}.weight", RNG.normal(0, inside**-0.5, (classes, inside))
        yield f"{dense}.bias", RNG.normal(0, 1, classes)

    return {
        prefix + key: np.asarray(array, np.float32 if array.ndim else np.int64)
        for key, array in entries()
    }


def akamaster(n=3, **options):
    options = {"projections": False, "dense": "linear", "prefix": "module."} | options
    return published((16, 32, 64), (n, n, n), **options)


def chenyaofo(n=3):
    return akamaster(n, projections=True, dense="fc", prefix="")


def torchvision(blocks, kernels=(3, 3)):
    widths = (64, 128, 256, 512)
    return published(widths, blocks, projections=True, dense="fc", kernels=kernels, stem=7)


def run_published(arrays, images):
    """PyTorch's forward pass, channels first, written from the state dict alone."""
    arrays = {key.removeprefix("module."): array for key, array in arrays.items()}

    def conv(x, key, stride=1):
        kernel = arrays[f"{key}.weight"]
        pad = [(kernel.shape[2] // 2,) * 2] * 2
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pad)

    def bn(x, key):
        mean, var, scale, bias = (
            arrays[f"{key}.{leaf}"][:, None, None]
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    x = jnp.moveaxis(jnp.asarray(images), -1, 1)
    is_large = arrays["conv1.weight"].shape[2] == 7
    x = jax.nn.relu(bn(conv(x, "conv1", 2 if is_large else 1), "bn1"))
    if is_large:
        window, pad = (1, 1, 3, 3), [(0, 0), (0, 0), (1, 1), (1, 1)]
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, (1, 1, 2, 2), pad)
    for block in dict.fromkeys(re.findall(r"layer\d\.\d+", " ".join(arrays))):
        stage, number = block.removeprefix("layer").split(".")
        stride = 2 if int(stage) > 1 and number == "0" else 1
        convs = sum(key.startswith(f"{block}.conv") for key in arrays)
        y = x
        for i in range(1, convs + 1):
            y = conv(y, f"{block}.conv{i}", stride if i == convs - 1 else 1)
            y = bn(y, f"{block}.bn{i}")
            y = jax.nn.relu(y) if i < convs else y
        if f"{block}.downsample.0.weight" in arrays:
            x = bn(conv(x, f"{block}.downsample.0", stride), f"{block}.downsample.1")
        elif x.shape != y.shape:
            quarter = y.shape[1] // 4
            x = jnp.pad(x[:, :, ::2, ::2], ((0, 0), (quarter, quarter), (0, 0), (0, 0)))
        x = jax.nn.relu(x + y)
    dense = "linear" if "linear.weight" in arrays else "fc"
    return x.mean((2, 3)) @ arrays[f"{dense}.weight"].T + arrays[f"{dense}.bias"]


ONE_EACH = (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("arrays", "backbone"),
    [
        (akamaster(1), ResNetCifar(1)),
        (chenyaofo(1), ResNetCifar(1, projection_shortcuts=True)),
        (torchvision(ONE_EACH), ResNet(ONE_EACH, small_images=False)),
        (torchvision(ONE_EACH, (1, 3, 1)), ResNet(ONE_EACH, bottleneck=True, small_images=False)),
    ],
    ids=["akamaster", "chenyaofo", "torchvision", "torchvision's bottlenecks"],
)
def test_published_weights_compute_what_their_network_computes(tmp_path, arrays, backbone):
    save_file(arrays, tmp_path / "a.safetensors")
    # FlexPool's weights are not in the file: it starts as the average pooling that was trained.
    model = Classifier(backbone, num_classes=10, pool="flexpool")
    variables = random_variables(model)
    weights = variables["params"]["head"]["pool"]["w_fp"]
    weights[:] = 1 / weights[..., 0].size
    variables = load_weights(tmp_path / "a.safetensors", variables)
    images = RNG.normal(0, 1, (2, 32, 32, 3)).astype(np.float32)
    expected = np.asarray(jax.jit(lambda x: run_published(arrays, x))(images))
    with cpu_kernels(False):
        logits = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("draw", "name", "side", "options"),
    [
        (akamaster, "resnet20", 32, {}),
        (lambda: akamaster(9), "resnet56", 32, {}),
        (chenyaofo, "resnet20", 32, {"projection_shortcuts": True}),
        (lambda: torchvision((2, 2, 2, 2)), "resnet18", 224, {}),
        (lambda: torchvision((3, 4, 6, 3)), "resnet34", 224, {}),
        (lambda: torchvision((3, 4, 6, 3), (1, 3, 1)), "resnet50", 224, {}),
    ],
    ids=["akamaster 20", "akamaster 56", "chenyaofo 20", "18", "34", "50"],
)
def test_every_published_array_has_its_place(tmp_path, draw, name, side, options):
    arrays = draw()
    save_file(arrays, tmp_path / "a.safetensors")
    loaded = load_weights(
        tmp_path / "a.safetensors", variables_of(name, "flexpool", side, **options)
    )
    counted = sum(array.size for array in arrays.values() if array.ndim)
    pool = loaded["params"]["head"]["pool"]["w_fp"]
    assert sum(leaf.size for leaf in jax.tree.leaves(loaded)) == counted + pool.size


@pytest.mark.parametrize("pool", ["flexpool", "gem", "attention"])
def test_own_weights_come_back_bit_for_bit(tmp_path, pool):
    variables = variables_of(pool=pool, sac=True)
    # Views whose memory does not lie in order.
    turned = jax.tree.map(lambda x: np.asarray(x.T, order="C").T, variables)
    save_weights(tmp_path / "a.safetensors", turned, mean=[0.1, 0.2, 1 / 3], std=[0.25] * 3)
    zeros = jax.tree.map(np.zeros_like, variables)
    loaded = load_weights(tmp_path / "a.safetensors", zeros)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    header = read_header(tmp_path / "a.safetensors")
    assert (header.foreign, header.mean, header.std) == (False, (0.1, 0.2, 1 / 3), (0.25,) * 3)


def test_names_of_modules_may_contain_dots(tmp_path):
    variables = {"params": {"layer1.0": {"kernel": np.ones((2, 3), np.float32)}}}
    save_weights(tmp_path / "a.safetensors", variables)
    loaded = load_weights(tmp_path / "a.safetensors", variables)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)


def test_own_files_name_arrays_by_their_path(tmp_path):
    variables = variables_of()
    save_weights(tmp_path / "a.safetensors", variables)
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as content:
        assert set(content.keys()) == set(flatten_dict(variables, sep="."))


def test_everything_that_does_not_fit_is_named_at_once(tmp_path):
    arrays = akamaster()
    del arrays["module.bn1.bias"], arrays["module.layer3.2.conv2.weight"]
    arrays["module.layer4.0.conv1.weight"] = np.zeros((8, 8, 3, 3), np.float32)
    arrays["module.layer1.0.downsample.0.weight"] = np.zeros((16, 16, 1, 1), np.float32)
    arrays["module.surprise"] = np.zeros(3, np.float32)
    arrays["module.conv1.weight"] = np.zeros((16, 1, 3, 3), np.float32)
    arrays["module.layer1.0.bn1.weight"] = np.zeros(16, np.int8)
    arrays["module.layer1.0.bn1.bias"][3] = np.nan
    save_file(arrays, tmp_path / "a.safetensors")
    variables = variables_of()
    with pytest.raises(UserError) as error:
        load_weights(tmp_path / "a.safetensors", variables)
    _, *problems = str(error.value).split("; ")
    assert [set(re.split("[:,] ", problem)) for problem in problems] == [
        {
            "unexpected",
            "module.layer4.0.conv1.weight",
            "module.layer1.0.downsample.0.weight",
            "module.surprise",
        },
        {
            "missing",
            "params.backbone.stem_norm.bias",
            "params.backbone.stage3_block3_2_conv.kernel",
        },
        {"misshapen", "module.conv1.weight is 16×1×3×3", "the model's is 16×3×3×3"},
        {
            "not finite floating-point numbers",
            "module.layer1.0.bn1.weight",
            "module.layer1.0.bn1.bias",
        },
    ]


def test_the_pool_or_the_network_is_named_as_the_cause(tmp_path):
    file = tmp_path / "a.safetensors"
    save_weights(file, variables_of(pool="flexpool"), pool="flexpool")
    cause = r"w_fp; the file is of the pool 'flexpool', the model has 'avg'$"
    with pytest.raises(UserError, match=rf"unexpected: params\.head\.pool\.{cause}"):
        start_from(file, variables_of(), pool="avg")
    deeper = variables_of("resnet32", "flexpool")
    five = r"\S+, \S+, \S+, \S+, \S+ and 55 more"
    with pytest.raises(UserError, match=rf"missing: {five}; the file may be of another model$"):
        start_from(file, deeper, pool="flexpool")


def test_shapes_are_not_enough_for_a_file_without_w_fp(tmp_path):
    save_weights(tmp_path / "f.safetensors", {"params": {"kernel": np.ones((2, 2), np.float32)}})
    shapes = {
        "params": {
            "kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32),
            "pool": {"w_fp": jax.ShapeDtypeStruct((3, 3, 2), jnp.float32)},
        }
    }
    with pytest.raises(UserError, match=r"missing: params\.pool\.w_fp \(to keep its initial value"):
        load_weights(tmp_path / "f.safetensors", shapes)


def test_two_arrays_for_one_place_are_refused(tmp_path):
    arrays = akamaster() | {"module.fc.bias": np.zeros(10, np.float32)}
    save_file(arrays, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"unexpected: module\.(fc|linear)\.bias$"):
        load_weights(tmp_path / "a.safetensors", variables_of())


def test_a_classifier_of_other_classes_is_replaced_only_to_start_training(tmp_path):
    save_file(akamaster(classes=100), tmp_path / "a.safetensors")
    variables = variables_of()
    with pytest.raises(UserError, match=r"linear.bias is 100, .*linear.weight is 100×64, "):
        load_weights(tmp_path / "a.safetensors", variables)
    loaded, new, _ = start_from(tmp_path / "a.safetensors", variables)
    assert new == ["head.classifier"]
    kept = variables["params"]["head"]["classifier"]
    jax.tree.map(np.testing.assert_array_equal, loaded["params"]["head"]["classifier"], kept)
    stem = loaded["params"]["backbone"]["stem_conv"]["kernel"]
    assert not np.array_equal(stem, variables["params"]["backbone"]["stem_conv"]["kernel"])


def test_only_to_start_training_may_auxiliary_classifiers_be_in_one_of_file_and_model(tmp_path):
    plain, with_sac = variables_of(pool="flexpool"), variables_of(pool="flexpool", sac=True)
    save_weights(tmp_path / "sac.safetensors", with_sac)
    save_weights(tmp_path / "plain.safetensors", plain)
    with pytest.raises(UserError, match=r"unexpected: params\.aux_head_stage1"):
        load_weights(tmp_path / "sac.safetensors", plain)
    with pytest.raises(UserError, match=r"missing: params\.aux_head_stage1"):
        load_weights(tmp_path / "plain.safetensors", with_sac)

    loaded, new, _ = start_from(tmp_path / "sac.safetensors", plain)
    expected = {name: with_sac["params"][name] for name in ("backbone", "head")}
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], expected)
    assert new == []

    loaded, new, _ = start_from(tmp_path / "plain.safetensors", with_sac)
    jax.tree.map(
        np.testing.assert_array_equal, loaded["params"], with_sac["params"] | plain["params"]
    )
    assert new == ["aux_head_stage1.classifier", "aux_head_stage2.classifier"]


def test_each_missing_array_is_named_once(tmp_path):
    arrays = {k: v for k, v in akamaster().items() if k != "module.linear.bias"}
    save_file(arrays, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"model; missing: params\.head\.classifier\.bias$"):
        load_weights(tmp_path / "a.safetensors", variables_of())


def test_a_classifier_of_other_features_is_not_replaced(tmp_path):
    arrays = akamaster(classes=100)
    arrays["module.linear.weight"] = np.zeros((100, 128), np.float32)
    save_file(arrays, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"misshapen: .*linear.weight is 100×128,.* 10×64"):
        start_from(tmp_path / "a.safetensors", variables_of())


def test_weights_of_another_map_name_the_function_that_resizes_them(tmp_path):
    save_weights(tmp_path / "a.safetensors", variables_of(pool="flexpool", side=24))
    with pytest.raises(UserError, match=r"w_fp is 6×6×64, .* 8×8×64 \(flexpool_jax.resize_"):
        load_weights(tmp_path / "a.safetensors", variables_of(pool="flexpool"))


@pytest.mark.parametrize("pool", ["flexpool", "flexpool_softmax"])
def test_training_starts_from_the_weights_of_another_map(tmp_path, pool):
    small, large = (variables_of(pool=pool, side=side) for side in (24, 32))
    save_weights(tmp_path / "a.safetensors", small, pool=pool)
    loaded, new, resized = start_from(tmp_path / "a.safetensors", large, pool=pool)
    constraint = "softmax" if pool == "flexpool_softmax" else None
    expected = resize_flexpool(small["params"], like=large["params"], constraint=constraint)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], expected)
    assert (new, resized) == ([], ["head.pool.w_fp from 6×6×64 to 8×8×64"])
    with pytest.raises(UserError, match=r"misshapen|another meaning"):
        start_from(tmp_path / "a.safetensors", large, pool="flexpool_shared")


def weights_only(value):
    return {"params": {"pool": {"w_fp": np.full((2, 2, 3), value, np.float32)}}}


@pytest.mark.parametrize(
    "pools", [("flexpool_softmax", "flexpool"), ("gdconv", "flexpool_softmax")]
)
def test_weights_of_a_pool_with_another_constraint_are_refused(tmp_path, pools):
    file, (saved, pool) = tmp_path / "a.safetensors", pools
    save_weights(file, weights_only(0.5), pool=saved)
    for load in (load_weights, start_from):
        with pytest.raises(UserError, match=rf"a.safetensors holds w_fp of .*'{saved}' .*'{pool}'"):
            load(file, weights_only(0.25), pool=pool)


@pytest.mark.parametrize(
    ("saved", "pool"),
    [
        ("flexpool", "gdconv"),  # The same function of w_fp.
        ("flexpool_softmax", "flexpool_softmax"),
        ("", "flexpool_softmax"),  # A file from before the pool's name was written.
        ("a_pool_of_another_program", "flexpool_softmax"),
    ],
)
def test_weights_of_a_pool_with_the_same_or_an_unknown_constraint_are_taken(tmp_path, saved, pool):
    file = tmp_path / "a.safetensors"
    save_weights(file, weights_only(0.5), pool=saved)
    assert read_header(file).pool == saved
    loaded, *_ = start_from(file, weights_only(0.25), pool=pool)
    assert np.all(loaded["params"]["pool"]["w_fp"] == 0.5)


def test_weights_of_a_pool_without_w_fp_fit_every_constraint(tmp_path):
    file = tmp_path / "a.safetensors"
    kernel = {"kernel": np.ones((3, 2), np.float32)}
    save_weights(file, {"params": {"dense": kernel}}, pool="avg")
    variables = {"params": {"dense": kernel, **weights_only(0.25)["params"]}}
    loaded, *_ = start_from(file, variables, pool="flexpool_softmax")
    assert np.all(loaded["params"]["pool"]["w_fp"] == 0.25)


@pytest.mark.parametrize(
    ("saved", "pool"),
    [("max", "avg"), ("avg", "lse"), ("gem", "flexpool"), ("max", "gdconv"), ("avg", "gdconv")],
)
def test_weights_of_another_pool_without_w_fp_are_only_a_start_for_training(tmp_path, saved, pool):
    file = tmp_path / "a.safetensors"
    variables = {"params": {"kernel": np.ones((3, 2), np.float32)}}
    save_weights(file, variables, pool=saved)
    for known in (saved, "", "a_pool_of_another_program"):
        load_weights(file, variables, pool=known)
    with pytest.raises(UserError, match=rf"pool '{saved}', and the model has '{pool}'"):
        load_weights(file, variables, pool=pool)
    assert start_from(file, variables, pool=pool)[0]["params"].keys() == {"kernel"}


def test_half_precision_and_double_precision_are_read(tmp_path):
    for dtype in (np.float16, np.float64, jnp.bfloat16):
        save_file({k: v.astype(dtype) for k, v in akamaster().items()}, tmp_path / "a.safetensors")
        loaded = load_weights(tmp_path / "a.safetensors", variables_of())
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torch's own format", bytes(64)])
def test_what_is_not_safetensors_names_the_converter(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    for read in (read_header, lambda file: load_weights(file, variables_of())):
        with pytest.raises(UserError, match=r"a.pth is not a safetensors .*convert_torch.py"):
            read(tmp_path / "a.pth")
        with pytest.raises(UserError, match=r"is not a file; .*--mode=export"):
            read(tmp_path)
        with pytest.raises(UserError, match="no such file"):
            read(tmp_path / "b.safetensors")


def test_pytorchs_names_are_read_for_resnets_alone(tmp_path):
    save_file(akamaster(), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="ResNets only"):
        load_weights(tmp_path / "a.safetensors", variables_of("vgg11"))
