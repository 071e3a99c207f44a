"""An inspection's numbers are those of the network, and its page works in a browser."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import launch
from configs import digits
from flexpool_jax import create_model, files, layout, register_model, scoring
from flexpool_jax.configuration import write_config
from flexpool_jax.data import Dataset, Split
from flexpool_jax.evaluation import Restored, restore_workdir
from flexpool_jax.insight import figures, inspection, page, probe
from flexpool_jax.insight.probe_report import read_probe
from flexpool_jax.models.classifier import Head
from flexpool_jax.training import train
from flexpool_jax.training.setup import set_up
from tests.browser.browser import needs_browser, used_in_browser

HOSTILE = "</script><img src=x onerror=alert(1)>"
NAMES = (*"012345678", HOSTILE)


class TwoConvs(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        first = nn.relu(nn.Conv(5, (3, 3), strides=2, name="first")(images))
        return {"stage1": first, "stage2": nn.relu(nn.Conv(6, (3, 3), name="second")(first))}


@register_model("inspected_convs", num_stages=2)
def inspected_convs(*, dtype, norm_axis_name):
    return TwoConvs()


class StemThenDeep(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        stages = TwoConvs(name="convs")(images)
        return {"stem": stages["stage1"], "deep": stages["stage2"]}


register_model("inspected_stem_then_deep", num_stages=2)(lambda **fields: StemThenDeep())


@pytest.fixture(scope="module")
def dataset():
    """Scans of digits; the last class has a name that no page should run."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = (scans.images * 15).astype(np.uint8)[..., None]
    labels = scans.target.astype(np.int32)
    halves = (Split(images[:900], labels[:900]), Split(images[900:1200], labels[900:1200]))
    return Dataset("scans", *halves, NAMES, np.float32([0.3]), np.float32([0.4]))


def config_of(**fields):
    config = digits.get_config()
    config.model, config.num_epochs, config.compilation_cache = "inspected_convs", 2, ""
    config.batch_size, config.eval_batch_size, config.tensorboard = 300, 128, False
    config.update(fields)
    return config


def inspected(restored, monkeypatch):
    """Inspects a network whose data set is given, not loaded."""
    monkeypatch.setattr(inspection, "restore_workdir", lambda *arguments: restored)
    return inspection.inspect_workdir(restored.workdir)


@pytest.fixture(scope="module")
def flexpool(dataset, tmp_path_factory):
    """A run with SAC and its inspection, in a folder with an old picture and one of the user's."""
    folder = tmp_path_factory.mktemp("flexpool")
    train(config_of(pool="flexpool", sac={"enabled": True}), folder, dataset)
    restored = restore_workdir(folder, dataset=dataset)
    with pytest.MonkeyPatch.context() as monkeypatch:
        few = probe.perturbations()[:2]  # Each is a program of its own.
        monkeypatch.setattr(probe, "perturbations", lambda: few)
        probed = {"step": restored.step, **probe.probe(restored.setup, restored.variables)}
        files.write_json(folder / layout.PROBE_FILE, probed)
        (folder / "inspect").mkdir()
        for name in ("mine", "weights_stage9"):
            (folder / f"inspect/{name}.png").touch()
        return restored, inspected(restored, monkeypatch)


def logits_and_maps(restored):
    """By hand: normalisation, backbone and head without any compiled step."""
    dataset = restored.setup.dataset
    x = (dataset.test.images / np.float32(255) - dataset.mean) / dataset.std
    params = restored.variables["params"]
    stages = TwoConvs().apply({"params": params["backbone"]}, jnp.asarray(x, jnp.float32))
    pool = restored.setup.config.pool
    logits = Head(10, pool).apply({"params": params["head"]}, stages["stage2"])
    return np.asarray(logits, np.float64), {name: np.asarray(m) for name, m in stages.items()}


def test_metrics_are_those_of_the_network_on_every_image(flexpool):
    restored, report = flexpool
    logits, _ = logits_and_maps(restored)
    labels = restored.setup.dataset.test.labels
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert report["examples"] == 300
    assert report["metrics"]["accuracy"] == np.mean(logits.argmax(axis=1) == labels)
    loss = -np.mean(np.log(probabilities[np.arange(300), labels]))
    assert report["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert report["metrics"]["calibration_error"] == pytest.approx(
        scoring.calibration_error(labels, probabilities), abs=1e-5
    )
    assert report["accuracy_per_class"] == scoring.accuracy_per_class(labels, probabilities)
    assert sum(count for _, _, count in report["confusion"]) == 300
    hits = sum(count for label, prediction, count in report["confusion"] if label == prediction)
    assert hits / 300 == report["metrics"]["accuracy"]
    first = report["errors"][0]
    assert first["prediction"] == logits[first["index"]].argmax() != labels[first["index"]]


def test_the_weights_of_every_stage_are_described_on_the_mean_maps(flexpool):
    restored, report = flexpool
    _, stages = logits_and_maps(restored)
    params = restored.variables["params"]
    stored = {
        "stage1": params["aux_head_stage1"]["pool"]["w_fp"],
        "stage2": params["head"]["pool"]["w_fp"],
    }
    assert list(report["pools"]) == ["stage1", "stage2"]
    for stage, w in stored.items():
        found = report["pools"][stage]
        assert found["shape"] == list(w.shape)
        np.testing.assert_allclose(
            found["channel_sums"]["values"], w.sum(axis=(0, 1), dtype=np.float64), rtol=1e-5
        )
        assert found["activation_correlation"] == pytest.approx(
            inspection.weight_statistics(w, stages[stage].mean(axis=0))["activation_correlation"],
            abs=1e-4,
        )


def test_the_evidence_of_an_image_sums_to_its_logits(flexpool):
    restored, report = flexpool
    logits, _ = logits_and_maps(restored)
    evidence = report["evidence"]
    assert evidence["exact"]
    assert evidence["largest_difference"] < 1e-5
    assert len(evidence["images"]) == 24
    wrong = [one for one in evidence["images"] if one["label"] != one["prediction"]]
    assert 0 < len(wrong) <= 12
    right = {one["label"] for one in evidence["images"] if one["label"] == one["prediction"]}
    assert len(right) == np.count_nonzero(report["accuracy_per_class"])  # one of each at least
    for one in evidence["images"]:
        classes = [part["class"] for part in one["evidence"]]
        assert set(classes) == {one["label"], one["prediction"]}
        for part in one["evidence"]:
            total = np.sum(part["map"]) + part["bias"]
            assert total == pytest.approx(part["logit"], abs=1e-5)
            assert total == pytest.approx(logits[one["index"], part["class"]], abs=1e-4)


def test_every_file_is_written_and_the_pictures_can_be_opened(flexpool):
    restored, report = flexpool
    folder = restored.workdir / "inspect"
    assert json.loads((folder / "inspect.json").read_text())["metrics"] == report["metrics"]
    pictures = ["confusion", "errors", "evidence", "reliability"]
    pictures += ["weights_stage1", "weights_stage2"]
    others = ["index.html", "inspect.json", "model.txt", "mine.png"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*others, *(f"{name}.png" for name in pictures)]
    )
    for name in pictures:
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 100


def test_an_inspection_that_fails_leaves_the_last_numbers_and_pictures(flexpool, monkeypatch):
    restored, _ = flexpool
    folder = restored.workdir / "inspect"
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "draw_weights", stopped)
    with pytest.raises(KeyboardInterrupt):
        inspected(restored, monkeypatch)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_names_of_layers_are_not_cut_off():
    summary, _ = inspection._summarise_model(create_model("resnet20", sac=True), (16, 16, 1))
    assert "stage1_block1_1_conv" in summary
    assert "…" not in summary


def test_flops_count_the_convolutions(flexpool):
    restored, report = flexpool
    # Products with padding do not count: at stride 2 it is at the end, at stride 1 on both sides.
    inside = [sum(0 <= 2 * i + d < 8 for d in range(3)) for i in range(4)]
    first = 2 * 5 * sum(a * b for a in inside for b in inside)
    inside = [sum(0 <= i + d - 1 < 4 for d in range(3)) for i in range(4)]
    second = 2 * 5 * 6 * sum(a * b for a in inside for b in inside)
    others = 4 * 4 * (2 * 5 + 2 * 6 + 2 * 6) + 2 * 6 * 10  # biases, ReLU, the pool, the classifier
    assert first + second <= report["flops"] <= first + second + 1.5 * others
    assert "Classifier" in (restored.workdir / "inspect/model.txt").read_text()
    params = restored.variables["params"]
    assert "aux_head_stage1" in params
    leaves = jax.tree.leaves((params["backbone"], params["head"]))
    assert report["parameters"] == sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_a_pool_without_weights_says_what_is_left_out(pool, dataset, tmp_path, monkeypatch):
    config = config_of(pool=pool)
    write_config(config, tmp_path)
    setup = set_up(config, dataset)
    untrained = Restored(tmp_path, 0, setup, jax.device_get(setup.init().variables))
    report = inspected(untrained, monkeypatch)
    assert report["pools"] == {}
    assert report["evidence"]["exact"] == (pool == "avg")
    assert ("reason" in report["evidence"]) == (pool == "max")
    assert (tmp_path / "inspect/evidence.png").exists() == (pool == "avg")
    assert (tmp_path / "inspect/index.html").exists()
    assert report["is_best"] is False
    monkeypatch.setattr(inspection, "restore_workdir", lambda *_: untrained)
    assert inspection.inspect_workdir(tmp_path, "best")["is_best"] is True


def test_the_command_prints_a_summary_and_says_where_the_page_is(flexpool, monkeypatch, capsys):
    restored, report = flexpool
    monkeypatch.setattr(inspection, "inspect_workdir", lambda workdir, step, config: report)
    assert launch.main([f"--workdir={restored.workdir}", "--mode=inspect", "--step=best"]) == 0
    output = capsys.readouterr().out
    assert f"test accuracy {100 * report['metrics']['accuracy']:.2f} %, loss " in output
    assert f" ({report['examples']} images, step {report['step']})\n" in output
    sums = r"channel sums with mean \S+, sd \S+ over \d+ channels"
    assert re.search(f"weights of stage1: {sums}; ", output)
    assert f"see {restored.workdir}/inspect/index.html" in output
    assert "this step was chosen by its accuracy on these images" in output


def test_curves_are_the_numbers_of_the_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": i, "epoch": i / 2, "split": "test", "loss": 1 / (i + 1), "accuracy": None}
        for i in range(1000)
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 7, "epo')
    (curve,) = page.read_curves(tmp_path)
    assert (curve["split"], curve["name"]) == ("test", "loss")
    assert len(curve["points"]) == 400
    assert curve["points"][0] == (0, 1)
    assert curve["points"][-1] == (499.5, 0.001)
    assert page.read_curves(tmp_path / "nothing") == []


@pytest.mark.parametrize("shape", [(3, 7, 5), (8, 8, 300), (1, 1, 6), (4, 4, 1)])
def test_weights_of_any_shape_are_drawn(shape, tmp_path):
    w = np.random.default_rng(0).normal(size=shape)
    for weights in (w, np.zeros(shape), np.repeat(w[..., :1], shape[2], axis=2)):
        figures.draw_weights(weights, tmp_path / "w.png", "a pool")
        with Image.open(tmp_path / "w.png") as picture:
            assert min(picture.size) > 100


def test_names_with_dollar_signs_are_drawn(tmp_path):
    names = ("under_$5_$10", "$10_and_more")
    confusions = np.array([[0, 0, 1], [1, 0, 1]])
    figures.draw_confusion(confusions, names, tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000


@pytest.mark.parametrize("content", ["[]", "{", '{"interventions": [], "perturbations": 1}'])
def test_a_damaged_probe_is_left_out(content, tmp_path):
    (tmp_path / "probe.json").write_text(content)
    assert read_probe(tmp_path) == {}


def test_large_maps_do_not_make_a_large_page():
    encoded = page._encode_weights(np.zeros((112, 112, 64), np.float32))
    assert encoded["channels"] == 64
    assert encoded["shown"] == 11
    assert len(encoded["values"]) < 10**6
    assert len(page.data_uri(np.zeros((500, 400, 3), np.uint8))) < 10**4


def test_large_evidence_maps_are_left_out_but_for_the_predicted_and_the_true_class():
    logits = np.tile(-np.arange(10), (2, 1))
    right, wrong = inspection._choose_classes(logits, np.array([0, 9]), values=2 * 200 * 200)
    assert right.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert wrong.tolist() == [0, 1, 2, 3, 4, 5, 9]
    (few,) = inspection._choose_classes(logits[:1], np.array([9]), values=10**6)
    assert few.tolist() == [0, 9]


@needs_browser
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_works_in_a_browser(width, flexpool, tmp_path):
    restored, report = flexpool
    script = Path(__file__).with_name("use_page.js")
    found = used_in_browser(restored.workdir / "inspect/index.html", script, width, tmp_path)
    assert found["titles"] == [
        "Overview", "Training", "Weights of the pool", "Evidence maps", "Predictions",
        "Calibration", "Probes", "Model",
    ]  # fmt: skip
    assert {"accuracy", "loss"} <= set(found["curves"])
    assert (found["chart"], found["otherChart"]) == (
        "accuracy against the epoch",
        "loss against the epoch",
    )
    params = restored.variables["params"]
    w = params["aux_head_stage1"]["pool"]["w_fp"]
    assert found["weightMap"].startswith("Weights of stage1, channel 3. 4 rows, 4 columns")
    (value,) = re.match(r"row 1, column 2: (\S+) \(", found["weight"]).groups()
    assert float(value.replace("−", "-")) == pytest.approx(w[1, 2, 3], rel=1e-3)
    assert (found["nextChannel"], found["clickedChannel"]) == ("4", "0")
    assert found["weightRows"] == 4
    assert found["images"] == 24
    image = report["evidence"]["images"][5]
    assert f"in image {image['index']}" in found["evidenceMap"]
    pattern = r"evidence (.*) \+ bias (.*) = logit (.*)\."
    numbers = re.search(pattern, found["evidenceFacts"]).groups()
    evidence, bias, logit = (float(text.replace("−", "-")) for text in numbers)
    assert evidence + bias == pytest.approx(logit, abs=2e-3 * max(1, abs(logit)))
    assert found["position"].startswith("row 0, column 1: ")
    assert found["errors"] == min(24, len(report["errors"]))
    assert HOSTILE in found["text"]
    probed = json.loads((restored.workdir / layout.PROBE_FILE).read_text())
    assert found["probes"] == len(probed["interventions"]) + len(probed["perturbations"])


def test_stages_need_not_be_in_alphabetical_order(dataset, tmp_path, monkeypatch):
    fields = {"model": "inspected_stem_then_deep", "num_epochs": 1, "sac": {"enabled": True}}
    train(config_of(pool="flexpool", **fields), tmp_path, dataset)
    report = inspected(restore_workdir(tmp_path, dataset=dataset), monkeypatch)
    assert list(report["pools"]) == ["stem", "deep"]
    assert report["evidence"]["largest_difference"] < 1e-4
