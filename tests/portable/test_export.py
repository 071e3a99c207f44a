"""An exported folder computes what the network computes, anywhere, or is refused."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import flexpool_jax
import launch
from flexpool_jax import files, load_exported, load_weights
from flexpool_jax.configuration import read_config, write_config
from flexpool_jax.data import load_dataset
from flexpool_jax.errors import UserError
from flexpool_jax.models.weights import read_header
from flexpool_jax.portable import card
from flexpool_jax.portable.export import export_workdir, hub_config
from flexpool_jax.portable.exported import digest_of
from flexpool_jax.trained import load_trained
from flexpool_jax.training import identity

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/run_exported.py"
FILES = ["README.md", "check.json", "config.json", "model.jax", "model.safetensors"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset("digits", str(tmp_path_factory.mktemp("data")), image_size=8)


@pytest.fixture(scope="module")
def workdir(dataset, tmp_path_factory):
    """A trained run with a data.json, as later releases than 0.1 write it."""
    source = ROOT / "tests/fixtures/workdir_0_1"
    folder = shutil.copytree(source, tmp_path_factory.mktemp("run") / "run")
    identity.begin(folder, read_config(folder), dataset)
    return folder


@pytest.fixture(scope="module")
def folder(workdir):
    assert launch.main(["--mode=export", f"--workdir={workdir}"]) == 0
    return workdir / "export"


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def expected(workdir, dataset):
    """Probabilities of the first seven test images, normalised here and computed by the model."""
    trained = load_trained(workdir)
    x = (dataset.test.images[:7] / np.float32(255) - trained.mean) / trained.std
    logits = trained.model.apply(trained.variables, jnp.asarray(x, jnp.float32))
    return np.asarray(jax.nn.softmax(logits))


def test_holds_the_files_of_the_contract_for_all_to_read(folder):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_the_program_holds_no_folders_of_this_machine(folder):
    program = (folder / "model.jax").read_bytes()
    assert b"pooling.py" in program
    assert re.findall(rb"[\w./-]*/[\w.-]+\.py\b", program) == []


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_probabilities_are_those_of_the_model_for_any_batch(folder, dataset, expected, batch):
    probabilities = load_exported(folder)(dataset.test.images[:batch])
    np.testing.assert_allclose(probabilities, expected[:batch], rtol=1e-5, atol=1e-6)


def test_runs_with_jax_and_flatbuffers_alone(folder, dataset, expected, tmp_path):
    np.save(tmp_path / "images.npy", dataset.test.images[:7])
    # None in the place of a module makes importing it an error.
    script = (
        "import runpy, sys\n"
        "for name in ('flexpool_jax', 'flax', 'optax', 'orbax', 'safetensors', 'PIL'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = ['', {str(folder)!r}, 'images.npy']\n"
        f"runpy.run_path({str(EXAMPLE)!r})\n"
    )
    output = subprocess.check_output(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, text=True
    ).splitlines()
    here = np.asarray(load_exported(folder)(dataset.test.images[:7]))
    there = np.array([line.split()[1:] for line in output], np.float32)
    np.testing.assert_array_equal(there, here)
    assert [line.split()[0] for line in output] == [str(c) for c in expected.argmax(axis=1)]


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 20


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.05, 0.5, 0.95])
def test_a_flipped_byte_is_refused(copy, name, place):
    content = bytearray((copy / name).read_bytes())
    content[int(place * len(content))] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(name)):
        load_exported(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError, match=re.escape(name)):
        load_exported(copy)


def test_an_export_that_fails_leaves_the_last_one_as_it_is(copy, workdir, tmp_path, monkeypatch):
    run = shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    copy.rename(run / "export")

    def stopped(trained):
        raise KeyboardInterrupt

    monkeypatch.setattr("flexpool_jax.portable.export._export_program", stopped)
    with pytest.raises(KeyboardInterrupt):
        export_workdir(run)
    load_exported(run / "export")


@pytest.mark.parametrize(("change", "is_refused"), [(0.001, False), (0.004, True)])
def test_probabilities_may_differ_by_rounding_alone(copy, change, is_refused):
    check = json.loads((copy / "check.json").read_text())
    del check["check"]
    check["probe"]["output"][0][0] += change
    files.write_json(copy / "check.json", check | {"check": digest_of(check)})
    with (
        pytest.raises(UserError, match="computes something else here")
        if is_refused
        else contextlib.nullcontext()
    ):
        load_exported(copy)


def test_the_program_is_for_cpus_and_cuda_gpus(folder):
    assert set(load_exported(folder).program.platforms) == {"cpu", "cuda"}


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 8, 8, 1), np.float32),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((0, 8, 8, 1), "u1"),
    ],
    ids=["floating", "no batch", "empty"],
)
def test_other_images_than_the_models_are_refused(folder, images):
    with pytest.raises(UserError, match=r"allowed: uint8 \[B, 8, 8, 1\]"):
        load_exported(folder)(images)


def test_its_weights_are_those_of_the_checkpoint(folder, workdir):
    trained = load_trained(workdir)
    zeros = jax.tree.map(np.zeros_like, trained.variables)
    file, pool = folder / "model.safetensors", trained.config.pool
    assert read_header(file).pool == pool
    loaded = load_weights(file, zeros, pool=pool)
    jax.tree.map(np.testing.assert_array_equal, loaded, trained.variables)


def test_only_commands_use_the_compilation_cache(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "run")
    cache = f"--config.compilation_cache={tmp_path / 'cache'}"
    script = (
        "import jax, launch, flexpool_jax\n"
        "before = dict(jax.config.values)\n"
        f"flexpool_jax.load_trained({str(copy)!r})\n"
        "assert jax.config.values == before\n"
        f"launch.main(['--mode=export', '--workdir={copy}', {cache!r}])\n"
        "print(jax.config.jax_compilation_cache_dir)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    output = subprocess.check_output(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, text=True
    )
    assert output.splitlines()[-1] == str(tmp_path / "cache")


def test_config_has_the_layout_of_timms_hub_folders(folder, workdir):
    config = json.loads((folder / "config.json").read_text())
    data = json.loads((workdir / "data.json").read_text())
    assert config["architecture"] == read_config(workdir).model
    assert config["num_classes"] == 10
    assert config["label_names"] == data["class_names"]
    assert config["global_pool"] == read_config(workdir).pool
    assert config["pretrained_cfg"]["input_size"] == [1, 8, 8]
    np.testing.assert_allclose(config["pretrained_cfg"]["mean"], data["mean"])
    np.testing.assert_allclose(config["pretrained_cfg"]["std"], data["std"])
    trained = load_trained(workdir)
    assert hub_config(trained)["pretrained_cfg"]["crop_pct"] == 1
    trained.config.dataset.update(resize="crop", image_size=256, center_crop=224)
    cropped = hub_config(trained)["pretrained_cfg"]
    assert (cropped["crop_pct"], cropped["crop_mode"]) == (0.875, "center")
    assert cropped["interpolation"] == "bilinear"


def test_card_tells_what_was_measured_of_this_checkpoint(folder, workdir):
    result = json.loads((workdir / "result.json").read_text())
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["license"], front["datasets"]) == ("apache-2.0", ["digits"])
    row = next(line for line in text.splitlines() if line.startswith("| result.json"))
    count = json.loads((workdir / "data.json").read_text())["test_images"]
    assert f"| test | {count} | {result['final_test_accuracy'] * 100:.2f} (" in row


def test_card_takes_no_number_of_another_step_size_or_model(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "run")
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(result | {"step": result["step"] + 1}))
    report = {"step": result["step"], "split": "test", "examples": 9, "accuracy": 1.0, "loss": 0}
    trained = load_trained(copy)
    trained.config.num_epochs += 1
    assert f"a run of {trained.config.num_epochs - 1} epochs" in card.model_card(trained)
    once = read_config(copy)
    once.num_epochs = 1
    write_config(once, copy)
    assert "a run of 1 epoch in batches" in card.model_card(trained)
    (copy / "evaluation.json").write_text(json.dumps(report | {"resize": 12}))
    assert "has not been measured" in card.model_card(trained)
    (copy / "evaluation.json").write_text(json.dumps(report))
    assert "| evaluation.json | test | 9 | 100.00 (70.09 to 100.00) |" in card.model_card(trained)
    (copy / "evaluation.json").write_text(json.dumps(report | {"model_digest": "of other weights"}))
    assert "has not been measured" in card.model_card(trained)


@pytest.mark.parametrize("step", ["best", "latest"])
def test_card_says_that_the_best_step_was_chosen_by_the_accuracy_it_gives(workdir, tmp_path, step):
    copy = shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    text = (export_workdir(copy, step) / "README.md").read_text()
    assert "| result.json | test |" in text
    assert ("chosen by its accuracy on these images" in text) == (step == "best")


def test_card_names_the_release_that_trained_and_the_one_that_exported(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "run")
    result = json.loads((copy / "result.json").read_text())
    result["versions"]["flexpool_jax"] = "0.0.7"
    (copy / "result.json").write_text(json.dumps(result))
    trained, here = load_trained(copy), flexpool_jax.__version__
    assert (
        f"flexpool_jax 0.0.7 trained them; flexpool_jax {here} exported them."
        in card.model_card(trained)
    )
    (copy / "result.json").unlink()
    text = card.model_card(trained)
    assert f"`. flexpool_jax {here} exported them." in text
    assert "trained them" not in text


def test_citation_is_that_of_citation_cff():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    text = " ".join(card.CITATION.split())
    authors = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    parts = [paper["title"], paper["collection-title"], str(paper["year"]), " and ".join(authors)]
    parts += [f"{paper['start']}--{paper['end']}", paper["doi"], paper["identifiers"][0]["value"]]
    assert [part for part in parts if part not in text] == []
    assert card.CITATION in (ROOT / "README.md").read_text()


def test_a_folder_that_is_not_an_export_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not an export: it has no check\.json"):
        load_exported(tmp_path)
