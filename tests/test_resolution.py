"""Evaluation at another resolution: the images are resized, the weights resampled, both said."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import launch
from configs import digits
from flexpool_jax import configuration, create_model, evaluate, register_model, resize_flexpool
from flexpool_jax.data import load_dataset
from flexpool_jax.errors import UserError
from flexpool_jax.evaluation import at_resolution
from flexpool_jax.pooling import softmax_weights
from flexpool_jax.trained import Restored, load_trained
from flexpool_jax.training import identity
from flexpool_jax.training.setup import set_up

SOURCE = Path(__file__).parent / "fixtures/workdir_0_1"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def dataset(data_dir):
    return load_dataset("digits", data_dir, image_size=8)


@pytest.fixture
def workdir(dataset, tmp_path):
    folder = shutil.copytree(SOURCE, tmp_path / "run")
    identity.begin(folder, configuration.read_config(folder), dataset)
    return folder


def test_the_same_size_gives_the_same_numbers(workdir, dataset):
    plain, labelled = (
        evaluate(workdir, dataset=dataset),
        evaluate(workdir, dataset=dataset, resize=8),
    )
    assert labelled == plain | {"resize": 8}


class OneConv(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return {"stage1": nn.Conv(3, (3, 3))(images)}


register_model("one_conv_for_resolution", num_stages=1)(lambda **fields: OneConv())


def test_softmax_weights_are_resampled_as_they_are_used(dataset, tmp_path):
    config = digits.get_config("softmax,model=one_conv_for_resolution,dataset.image_size=8")
    setup = set_up(configuration.resolve(config), dataset)
    variables = jax.device_get(setup.init().variables)
    pool = variables["params"]["head"]["pool"]
    pool["w_fp"] = 5 * np.random.default_rng(0).normal(size=(8, 8, 3)).astype(np.float32)
    found = at_resolution(Restored(tmp_path, 0, setup, variables), 16)
    used = softmax_weights(found.variables["params"]["head"]["pool"]["w_fp"])
    wanted = jax.image.resize(softmax_weights(pool["w_fp"]), (16, 16, 3), "bilinear")
    np.testing.assert_allclose(used, wanted / wanted.sum((0, 1)), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("resize", [0, -3, 2.5, "16", 2000])
def test_a_program_may_ask_for_the_same_sizes_as_the_command_line(workdir, dataset, resize):
    with pytest.raises(UserError, match=rf"resize is {resize!r}; allowed: a whole number"):
        evaluate(workdir, dataset=dataset, resize=resize)


def test_the_config_of_an_evaluation_is_checked(workdir, dataset):
    config = configuration.read_config(workdir)
    config.eval_batch_size = 0
    with pytest.raises(UserError, match=r"config\.eval_batch_size is 0"):
        evaluate(workdir, dataset=dataset, config=config)


def test_images_are_resized_and_weights_resampled(workdir, data_dir, dataset, capsys):
    arguments = [f"--workdir={workdir}", f"--config.dataset.data_dir={data_dir}", "--mode=eval"]
    assert launch.main([*arguments, "--resize=12"]) == 0
    assert "accuracy at 12x12 pixels" in capsys.readouterr().out
    report = json.loads((workdir / "evaluation.json").read_text())
    assert report["resize"] == 12
    # Once more by hand: Pillow, then the model with resampled weights.
    trained = load_trained(workdir)
    pixels = [
        np.asarray(Image.fromarray(image[..., 0]).resize((12, 12), Image.Resampling.BILINEAR))
        for image in dataset.test.images
    ]
    x = (np.stack(pixels)[..., None] / np.float32(255) - trained.mean) / trained.std
    model = create_model("resnet20", pool="flexpool")
    shapes = jax.eval_shape(model.init, jax.random.key(0), x[:1])["params"]
    params = {part: trained.variables["params"][part] for part in ("backbone", "head")}
    resized = {**trained.variables, "params": resize_flexpool(params, like=shapes)}
    logits = model.apply(resized, jnp.asarray(x, jnp.float32))
    correct = np.mean(np.asarray(logits).argmax(axis=1) == dataset.test.labels)
    assert report["accuracy"] == pytest.approx(correct, abs=1.5 / len(x))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--resize=7", "allowed: a whole number from 8 to 1024"),
        ("--resize=large", "allowed: a whole number"),
        ("--mode=probe --resize=12", "--resize=12 is a flag of --mode=eval; the mode is probe"),
    ],
)
def test_what_cannot_be_meant_is_refused(workdir, flag, message, capsys):
    assert launch.main([f"--workdir={workdir}", "--mode=eval", *flag.split()]) == 2
    assert message in capsys.readouterr().err
