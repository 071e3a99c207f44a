"""configs/imagenet.py on a small folder in ImageNet's layout."""

import json

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from configs import imagenet
from flexpool_jax import configuration, evaluate, load_trained, register_model, train
from flexpool_jax.data import load_dataset
from flexpool_jax.insight.predict import predict_files
from flexpool_jax.portable.card import model_card
from flexpool_jax.training.setup import set_up

CLASSES = ("n01440764", "n01443537")


class Patches(nn.Module):
    """One convolution, so that the test trains in no time."""

    @nn.compact
    def __call__(self, images, train=False):
        return {"stage1": nn.relu(nn.Conv(4, (32, 32), strides=32)(images))}


register_model("patches_for_imagenet", num_stages=1)(lambda **fields: Patches())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs of noise, each class round a grey of its own, of different proportions."""
    root = tmp_path_factory.mktemp("ILSVRC")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for label, wnid in enumerate(CLASSES):
            (root / split / wnid).mkdir(parents=True)
            for number in range(count):
                height, width = random.integers(200, 500, 2)
                pixels = random.normal(80 + 90 * label, 20, (height, width, 3)).clip(0, 255)
                name = f"{wnid}_{number}.JPEG" if split == "train" else f"val_{number:08}.JPEG"
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / wnid / name)
    return root


@pytest.fixture
def config(folder, tmp_path):
    config = imagenet.get_config("flexpool,reg")
    config.dataset.raw_dir = str(folder)
    config.dataset.data_dir = str(folder / "prepared")
    config.batch_size = config.eval_batch_size = 8
    return config


def test_flexpool_has_a_weight_for_each_position_of_a_7x7_map(config):
    config = configuration.resolve(config)
    setup = set_up(config, load_dataset(**configuration.dataset_options(config)))
    assert setup.dataset.train.images.shape == (16, 256, 256, 3)
    assert setup.dataset.image_shape == (224, 224, 3)
    shapes = jax.tree.map(np.shape, setup.abstract_state.params)
    assert shapes["head"]["pool"]["w_fp"] == (7, 7, 2048)


def test_it_trains_from_streamed_photographs_and_predicts_others(config, folder, tmp_path):
    config.model = "patches_for_imagenet"
    config.dataset.placement = "stream"
    config.num_epochs = 4
    config.warmup_epochs = 1
    config.learning_rate = 0.003
    config.tensorboard = False
    result = train(config, tmp_path / "run")
    assert result["final_test_accuracy"] > 0.9
    assert evaluate(tmp_path / "run")["accuracy"] == result["final_test_accuracy"]
    described = json.loads((tmp_path / "run" / "data.json").read_text())
    assert described["class_names"] == list(CLASSES)
    assert described["image_shape"] == [224, 224, 3]
    assert "their middle 224×224 pixels cut out" in model_card(load_trained(tmp_path / "run"))
    # --mode=predict cuts out the middle as evaluation does.
    found = predict_files(tmp_path / "run", str(folder / "val"))
    assert found.correct == round(result["final_test_accuracy"] * result["test_images"])
