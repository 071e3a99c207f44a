"""Training that starts from a file of weights, with everything trained or the backbone frozen."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import save_file

import flexpool_jax
from configs import digits
from flexpool_jax import configuration, register_model
from flexpool_jax.data import load_dataset
from flexpool_jax.errors import UserError
from flexpool_jax.models.layers import BatchNorm, Conv, relu
from flexpool_jax.models.weights import save_weights
from flexpool_jax.trained import load_trained


class SmallNet(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        x = relu(BatchNorm(not train)(Conv(4)(images)))
        return {"stage2": x, "stage1": relu(BatchNorm(not train)(Conv(8, strides=2)(x)))}


@register_model("small_net_with_norms", num_stages=2)
def small_net_with_norms(*, dtype, norm_axis_name):
    return SmallNet()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset("digits", str(tmp_path_factory.mktemp("data")), image_size=8)


def config_with(**fields):
    config = digits.get_config("flexpool,sac")
    values = {
        "model": "small_net_with_norms",
        "sac.weights": (0.3, 0.7),
        "dataset.image_size": 8,
        "batch_size": 128,
        "num_epochs": 1,
        "optimizer.name": "sgd",
        "optimizer.weight_decay": 0.01,
        "schedule": "constant",
        "learning_rate": 0.01,
        "tensorboard": False,
    }
    config.update_from_flattened_dict(values | fields)
    return config


@pytest.fixture(scope="module")
def source(dataset, tmp_path_factory):
    """The workdir of a trained run."""
    workdir = tmp_path_factory.mktemp("source")
    flexpool_jax.train(config_with(), workdir, dataset)
    return load_trained(workdir)


@pytest.fixture(scope="module")
def file(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(path, source.variables, mean=source.mean, std=source.std)
    return str(path)


def parts(variables):
    """What is frozen and what is trained."""
    params = dict(variables["params"])
    return (params.pop("backbone"), variables["batch_stats"]), params


def are_equal(one, other):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), one, other)))


def test_frozen_backbone_and_its_statistics_stay_and_the_heads_learn(
    file, source, dataset, tmp_path
):
    config = config_with(init_from=file, freeze="backbone")
    flexpool_jax.train(config, tmp_path, dataset)
    frozen, trained = parts(load_trained(tmp_path).variables)
    assert are_equal(frozen, parts(source.variables)[0])
    unchanged = jax.tree.map(np.array_equal, trained, parts(source.variables)[1])
    assert not any(jax.tree.leaves(unchanged))
    # The state has the same tree: the run may be continued with the backbone trained as well.
    flexpool_jax.train(config_with(init_from=file, num_epochs=2), tmp_path, dataset)
    result = json.loads((tmp_path / "result.json").read_text())
    assert {change["field"] for change in result["config_changes"]} == {"freeze", "num_epochs"}
    thawed = jax.tree.map(np.array_equal, parts(load_trained(tmp_path).variables)[0], frozen)
    assert not any(jax.tree.leaves(thawed))


def test_starts_from_the_files_weights_and_its_normalisation(file, source, dataset, tmp_path):
    # Images of another mean: what counts is how the weights' own images were normalised.
    def darken(split):
        return dataclasses.replace(split, images=split.images // 2)

    dark = dataclasses.replace(
        dataset, train=darken(dataset.train), test=darken(dataset.test), mean=dataset.mean / 2
    )
    config = config_with(init_from=file, freeze="backbone", learning_rate=1e-12)
    flexpool_jax.train(config, tmp_path, dark)
    found = load_trained(tmp_path)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), found.variables, source.variables
    )
    np.testing.assert_array_equal([found.mean, found.std], [source.mean, source.std])
    assert configuration.read_config(tmp_path).dataset.mean == tuple(map(float, source.mean))
    evaluated = flexpool_jax.evaluate(tmp_path, dataset=dark)
    result = json.loads((tmp_path / "result.json").read_text())
    assert evaluated["loss"] == pytest.approx(result["final_test_loss"], rel=1e-6)


def test_a_classifier_of_other_classes_begins_anew_and_this_is_said(
    file, source, dataset, tmp_path, capfd
):
    def parity(split):
        return dataclasses.replace(split, labels=split.labels % 2)

    two = dataclasses.replace(
        dataset,
        train=parity(dataset.train),
        test=parity(dataset.test),
        class_names=("even", "odd"),
    )
    flexpool_jax.train(config_with(init_from=file, freeze="backbone"), tmp_path, two)
    said = capfd.readouterr().err
    assert "no aux_head_stage2.classifier, head.classifier for 2 classes: training begins" in said
    variables = load_trained(tmp_path).variables
    assert are_equal(parts(variables)[0], parts(source.variables)[0])
    assert variables["params"]["head"]["classifier"]["kernel"].shape == (8, 2)


def test_weights_of_pytorch_are_refused_without_their_normalisation(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"conv1.weight": np.zeros((16, 3, 3, 3), np.float32)}, file)
    config = config_with(init_from=str(file))
    with pytest.raises(UserError, match=r"how images were normalised .*--config.dataset.mean=0"):
        flexpool_jax.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config = config_with(init_from=str(file), **{"dataset.mean": (0.5,), "dataset.std": (0.25,)})
    configuration.resolve_training_files(config)
    assert config.dataset.mean == (0.5,)


@pytest.mark.parametrize(("mean", "std"), [("nan", "0.25"), ("0.5", "0"), ("0.5", "64")])
def test_a_file_with_a_wrong_normalisation_is_refused(mean, std, tmp_path):
    file = tmp_path / "a.safetensors"
    arrays = {"params.kernel": np.zeros((3, 3), np.float32)}
    save_file(arrays, file, metadata={"mean": mean, "std": std})
    config = config_with(init_from=str(file))
    with pytest.raises(UserError, match=r"in .*a\.safetensors, config\.dataset\.(mean|std) is"):
        configuration.resolve_training_files(config)


def test_a_missing_file_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"config.init_from: nowhere.safetensors: there is no such"):
        flexpool_jax.train(config_with(init_from="nowhere.safetensors"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_of_another_model_is_refused_before_anything_is_written(file, dataset, tmp_path):
    config = config_with(init_from=file, model="resnet20", **{"sac.weights": (0.1, 0.2, 0.7)})
    with pytest.raises(UserError, match="does not fit the model"):
        flexpool_jax.train(config, tmp_path / "run", dataset)
    assert not (tmp_path / "run").exists()


def test_normalisation_has_a_number_for_each_channel(dataset, tmp_path):
    config = config_with(**{"dataset.mean": (0.5,) * 3, "dataset.std": (0.25,) * 3})
    with pytest.raises(UserError, match="images of digits have 1 channels"):
        flexpool_jax.train(config, tmp_path, dataset)


def test_another_normalisation_than_that_of_the_file_is_refused(file):
    config = config_with(init_from=file, **{"dataset.mean": (0.9,), "dataset.std": (0.25,)})
    with pytest.raises(UserError, match=r"mean is \(0.9,\), but the weights in .* trained with"):
        configuration.resolve_training_files(config)
