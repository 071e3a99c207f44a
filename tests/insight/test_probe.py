"""A probe's numbers are those of evaluation and of NumPy, whatever the batches and the devices."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import launch
from configs import digits
from flexpool_jax import register_model
from flexpool_jax.data import load_dataset
from flexpool_jax.insight.perturbations import perturbations
from flexpool_jax.insight.probe import probe, summary
from flexpool_jax.insight.weights import interventions
from flexpool_jax.training.setup import set_up

ROOT = Path(__file__).parents[2]
WORKDIR = ROOT / "tests/fixtures/workdir_0_1"


class TwoConvs(nn.Module):
    """Small and without batch statistics; its maps are as large as the images."""

    @nn.compact
    def __call__(self, images, train=False):
        first = nn.relu(nn.Conv(8, (3, 3))(images))
        return {"stage1": first, "stage2": nn.relu(nn.Conv(6, (3, 3))(first))}


@register_model("probed_convs", num_stages=2)
def probed_convs(*, dtype, norm_axis_name):
    return TwoConvs()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset("digits", str(tmp_path_factory.mktemp("data")), image_size=8)


def network(dataset, pool, **fields):
    """An untrained network whose pool's weights, if any, are no longer as they start."""
    config = digits.get_config()
    config.model, config.pool = "probed_convs", pool
    config.dataset.image_size = 8
    config.update(fields)
    setup = set_up(config, dataset)
    variables = jax.device_get(setup.init().variables)
    stored = variables["params"]["head"].get("pool", {})
    if "w_fp" in stored:
        noise = np.random.default_rng(0).normal(size=stored["w_fp"].shape)
        stored["w_fp"] = (stored["w_fp"] + noise / 64).astype(np.float32)
    return setup, variables


@pytest.fixture(scope="module")
def gdconv(dataset):
    """A network with random weights in its pool, and its probe."""
    setup, variables = network(dataset, "gdconv")
    return setup, variables, probe(setup, variables)


def logits_of(setup, variables, dataset, images):
    """The network's logits, not by any compiled step."""
    x = (images / np.float32(255) - dataset.mean) / dataset.std
    return np.asarray(setup.model.apply(variables, jnp.asarray(x, jnp.float32)))


def scores(logits, labels):
    wide = np.asarray(logits, np.float64)
    log_sum = np.log(np.exp(wide).sum(axis=1))
    loss = np.mean(log_sum - wide[np.arange(len(labels)), labels])
    predictions = wide.argmax(axis=1)
    return np.mean(predictions == labels), loss, predictions


def assert_scores(found, logits, labels, baseline):
    accuracy, loss, predictions = scores(logits, labels)
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["changed"] == np.count_nonzero(predictions != baseline)


def test_interventions_are_those_of_a_head_in_numpy(gdconv, dataset):
    _, variables, found = gdconv
    labels = dataset.test.labels
    x = (dataset.test.images / np.float32(255) - dataset.mean) / dataset.std
    backbone = {"params": variables["params"]["backbone"]}
    maps = np.asarray(TwoConvs().apply(backbone, jnp.asarray(x, jnp.float32))["stage2"], np.float64)
    dense = variables["params"]["head"]["classifier"]
    w = variables["params"]["head"]["pool"]["w_fp"]

    def logits_with(weights):
        pooled = np.einsum("bijk,ijk->bk", maps, weights)
        return pooled @ dense["kernel"] + dense["bias"]

    _, _, baseline = scores(logits_with(w), labels)
    expected = interventions(w)
    assert len(found["interventions"]) == len(expected)
    for entry, (named, drawn) in zip(found["interventions"], expected, strict=True):
        assert named.items() <= entry.items()
        draws = entry.get("draws", [entry])
        for draw, weights in zip(draws, drawn, strict=True):
            assert_scores(draw, logits_with(weights), labels, baseline)
        for key in ("accuracy", "loss", "changed"):
            assert entry[key] == pytest.approx(np.mean([draw[key] for draw in draws]))
    # Not all of them leave everything as it is.
    assert sum(entry["changed"] > 0 for entry in found["interventions"]) > 5
    v = w - w.mean(axis=(0, 1))
    correlations = [
        np.corrcoef(np.abs(v[..., k]).ravel(), maps.mean(axis=0)[..., k].ravel())[0, 1]
        for k in range(6)
    ]
    assert found["weights"]["activation_correlation"] == pytest.approx(
        np.mean(correlations), abs=1e-5
    )


def test_perturbations_are_evaluations_of_other_images(gdconv, dataset):
    setup, variables, found = gdconv
    labels = dataset.test.labels
    logits = logits_of(setup, variables, dataset, dataset.test.images)
    accuracy, loss, baseline = scores(logits, labels)
    assert found["baseline"] == {
        "accuracy": pytest.approx(accuracy),
        "loss": pytest.approx(loss, rel=1e-5),
    }
    for entry, (named, perturb) in zip(found["perturbations"], perturbations(), strict=True):
        assert named.items() <= entry.items()
        images = np.asarray(perturb(dataset.test.images))
        assert_scores(entry, logits_of(setup, variables, dataset, images), labels, baseline)
    assert sum(entry["changed"] > 0 for entry in found["perturbations"]) > 5


@pytest.mark.parametrize("batch_size", [7, 100])
def test_every_example_counts_once_whatever_the_batch(gdconv, dataset, batch_size):
    _, variables, expected = gdconv
    setup, _ = network(dataset, "gdconv", eval_batch_size=batch_size)
    found = probe(setup, variables)
    assert_same_numbers(found, expected)


def assert_same_numbers(found, expected):
    """Compares two probes: counts exactly, other numbers to rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected.keys() - {"seconds"}:
            assert_same_numbers(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same_numbers(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-4) if type(expected) is float else expected)


@pytest.mark.parametrize("pool", ["flexpool_softmax", "channel_scale", "flexpool_shared"])
def test_flexpool_with_a_pools_effective_weights_predicts_what_the_pool_does(dataset, pool):
    setup, variables = network(dataset, pool)
    found = probe(setup, variables)
    unchanged, means = found["interventions"][:2]
    assert unchanged == {
        "name": "unchanged",
        "accuracy": found["baseline"]["accuracy"],
        "loss": pytest.approx(found["baseline"]["loss"], rel=1e-5),
        "changed": 0,
    }
    constant = pool == "channel_scale"
    assert (found["weights"]["deviation_share"] == 0) == constant
    assert (means | {"name": "unchanged"} == unchanged) == constant


def test_pool_without_weights_has_its_images_changed_alone(dataset):
    setup, variables = network(dataset, "avg")
    found = probe(setup, variables)
    assert found["interventions"] == []
    assert found["weights"] is None
    assert len(found["perturbations"]) == 25
    found |= {"split": "test", "examples": 359, "step": 20}
    assert "rank" not in summary(found)


def test_the_network_is_compiled_once_for_all_images_and_once_for_all_pools(dataset):
    # Shapes that no other test uses, so that nothing is compiled before.
    setup, variables = network(dataset, "gdconv", eval_batch_size=90)
    compiled = []

    def listen(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        probe(setup, variables)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    # The name that JAX gives a pmapped program depends on its version.
    assert sum("_fun" in str(name) or "run" in str(name) for name in compiled) == 2, compiled


def test_probe_of_a_workdir_agrees_with_its_evaluation(dataset, tmp_path, capsys):
    data_dir = f"--config.dataset.data_dir={tmp_path / 'data'}"
    workdir = shutil.copytree(WORKDIR, tmp_path / "run")
    assert launch.main([f"--workdir={workdir}", "--mode=probe", "--step=best", data_dir]) == 0
    output = capsys.readouterr().out
    written = json.loads((workdir / "probe.json").read_text())
    assert launch.main([f"--workdir={workdir}", "--mode=eval", "--step=best", data_dir]) == 0
    evaluated = json.loads((workdir / "evaluation.json").read_text())
    assert {**evaluated, **written["baseline"]} == evaluated
    for key in ("step", "split", "examples"):
        assert written[key] == evaluated[key]
    result = json.loads((workdir / "result.json").read_text())
    assert written["config_digest"] == result["config_digest"]
    assert written["baseline"]["accuracy"] == result["final_test_accuracy"]
    assert written["interventions"][0]["changed"] == 0
    assert summary(written) in output
    assert output.startswith(f"359 test images, step {written['step']}; shift: mean of 4 ")
    assert " accuracy  changed images\n" in output
    (workdir / "probe.json").unlink()
    # Four devices, the last of which has one image less than the others.
    script = "import sys, launch; sys.exit(launch.main(sys.argv[1:]))"
    subprocess.run(
        [sys.executable, "-c", script, f"--workdir={workdir}", "--mode=probe", data_dir],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        check=True,
    )
    assert_same_numbers(json.loads((workdir / "probe.json").read_text()), written)


MISTAKES = [
    (["--mode=probe"], ["--workdir"]),
    (["--mode=probe", "--workdir={new}"], ["no config.json"]),
    (["--mode=probe", "--workdir={run}", "--step=last"], ["--step=last", "latest"]),
    (["--mode=probe", "--workdir={run}", "--config.model=resnet32"], ["resnet32", "resnet20"]),
    (["--mode=probe", "--workdir={run}"], ["no checkpoint"]),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_mistake_costs_one_line(arguments, words, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    shutil.copy(WORKDIR / "config.json", tmp_path / "run")
    names = {"new": tmp_path / "new", "run": tmp_path / "run"}
    assert launch.main([argument.format(**names) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    for word in words:
        assert word in output.err
