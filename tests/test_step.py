"""Every mode that reads a checkpoint reads the one that --step names, and so does load_trained."""

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import launch
from flexpool_jax import evaluate, load_exported, load_trained, register_dataset, register_model
from flexpool_jax.data import DATASETS
from flexpool_jax.errors import UserError
from flexpool_jax.insight import probe
from flexpool_jax.models import MODELS

LABELS = np.arange(24, dtype=np.int32) % 3
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
FIRST, LAST = 3, 6


class OneConv(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return {"stage1": nn.relu(nn.Conv(4, (3, 3), strides=2)(images))}


@register_model("one_conv_with_two_checkpoints", num_stages=1)
def one_conv(*, dtype, norm_axis_name):
    return OneConv()


@register_dataset("noise_for_two_checkpoints")
def noise():
    return {"train": (IMAGES, LABELS), "test": (IMAGES, LABELS)}, ["a", "b", "c"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with a checkpoint after each of its two epochs."""
    folder = tmp_path_factory.mktemp("run")
    arguments = (
        "--config=configs/digits.py:flexpool,model=one_conv_with_two_checkpoints",
        "--config.dataset.name=noise_for_two_checkpoints",
        "--config.batch_size=8",
        "--config.num_epochs=2",
        "--config.learning_rate=0.1",
        "--config.tensorboard=False",
        "--config.compilation_cache=",
        f"--workdir={folder}",
    )
    assert launch.main(arguments) == 0
    return folder


@pytest.fixture(scope="module")
def first(workdir):
    """Logits of the test images after the first epoch."""
    trained = load_trained(workdir, step=FIRST)
    assert trained.step == FIRST
    x = (IMAGES / np.float32(255) - trained.mean) / trained.std
    return trained.model.apply(trained.variables, jnp.asarray(x, jnp.float32))


def losses(workdir):
    """The test loss by step."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["split"] == "test"}


def run(workdir, mode, *arguments):
    command = [f"--workdir={workdir}", f"--mode={mode}", f"--step={FIRST}", *arguments]
    assert launch.main(command) == 0


def test_load_trained_takes_a_step(workdir, first):
    loss = -np.mean(jax.nn.log_softmax(first)[np.arange(24), LABELS])
    assert loss == pytest.approx(losses(workdir)[FIRST], rel=1e-5)
    assert loss != pytest.approx(losses(workdir)[LAST], rel=1e-2)
    assert load_trained(workdir).step == LAST


@pytest.mark.parametrize(
    ("use", "registry", "name"),
    [
        (load_trained, MODELS, "one_conv_with_two_checkpoints"),
        (evaluate, DATASETS, "noise_for_two_checkpoints"),
    ],
)
def test_a_name_that_is_not_registered_yet_is_answered_with_a_hint(
    use, registry, name, workdir, monkeypatch
):
    monkeypatch.delitem(registry, name)
    with pytest.raises(UserError, match=f"'{name}'.* import that code first, or .* config="):
        use(workdir)


def test_inspect_takes_a_step(workdir):
    run(workdir, "inspect")
    report = json.loads((workdir / "inspect/inspect.json").read_text())
    assert report["step"] == FIRST
    assert report["metrics"]["loss"] == pytest.approx(losses(workdir)[FIRST], rel=1e-5)


def test_probe_takes_a_step(workdir, monkeypatch):
    few = probe.perturbations()[:1]  # Each is a program of its own.
    monkeypatch.setattr(probe, "perturbations", lambda: few)
    run(workdir, "probe")
    report = json.loads((workdir / "probe.json").read_text())
    assert report["step"] == FIRST
    assert report["baseline"]["loss"] == pytest.approx(losses(workdir)[FIRST], rel=1e-5)


def test_predict_takes_a_step(workdir, first, tmp_path):
    for index, image in enumerate(IMAGES[:5]):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{index}.png")
    run(workdir, "predict", f"--images={tmp_path}")
    with (workdir / "predict/predictions.csv").open(newline="") as file:
        found = {
            int(Path(row["file"]).stem): float(row["probability_1"]) for row in csv.DictReader(file)
        }
    expected = jax.nn.softmax(first).max(axis=1)
    assert found == pytest.approx({index: float(expected[index]) for index in range(5)}, abs=1e-5)


def test_export_takes_a_step(workdir, first):
    run(workdir, "export")
    exported = load_exported(workdir / "export")
    np.testing.assert_allclose(exported(IMAGES), jax.nn.softmax(first), atol=1e-5)
