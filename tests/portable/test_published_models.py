"""The networks in results/models are whole, and are what their pages say."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from flexpool_jax import load_exported, load_trained
from flexpool_jax.errors import UserError
from flexpool_jax.models.weights import read_header
from flexpool_jax.pools import has_weights
from flexpool_jax.portable.export import hub_config

FOLDER = Path(__file__).parents[2] / "results" / "models"


def test_the_page_lists_every_network_with_its_accuracy():
    listed = re.findall(
        r"\[`(.+)`\]\(.+\) \|.*\| (\d+\.\d\d) \|", (FOLDER / "README.md").read_text()
    )
    results = {
        path.parent.name: json.loads(path.read_text()) for path in FOLDER.glob("*/result.json")
    }
    found = {name: f"{100 * result['final_test_accuracy']:.2f}" for name, result in results.items()}
    assert dict(listed) == found


@pytest.mark.parametrize("name", ["avg", "flexpool+reg+dropout"])
def test_the_exported_program_and_the_checkpoint_are_the_same_network(name):
    trained = load_trained(FOLDER / name)
    classify = load_exported(FOLDER / name / "export")
    images = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 1), np.uint8)
    logits = np.asarray(trained.model.apply(trained.variables, trained.preprocess(images)))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classify(images), probabilities, atol=1e-5)
    assert classify.class_names == trained.class_names
    for wrong in (images / np.float32(255), images[0], images.repeat(3, axis=-1)):
        with pytest.raises(UserError, match=r"images are .*; allowed: uint8 \[B, H, W, 1\]"):
            trained.preprocess(wrong)
    with pytest.raises(ValueError, match=r"must be \[B, H, W, C\] and floating.* got uint8"):
        trained.model.apply(trained.variables, images)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in FOLDER.glob("*/config.json")))
def test_the_exported_files_are_those_that_export_writes_today(name):
    trained, export = load_trained(FOLDER / name), FOLDER / name / "export"
    assert json.loads((export / "config.json").read_text()) == hub_config(trained)
    pool = trained.config.pool
    header = read_header(export / "model.safetensors")
    assert (header.pool, header.has_w_fp) == (pool, has_weights(pool))
    assert re.findall(rb"[\w./-]*/[\w.-]+\.py\b", (export / "model.jax").read_bytes()) == []
