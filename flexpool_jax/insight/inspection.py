"""Shows what a trained network has learned: its pools' weights, evidence maps, and its errors.

`inspect_workdir` writes a workdir's inspect/: inspect.json, PNGs and one page, index.html;
docs/inspect.md describes them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from flexpool_jax import configuration, files, layout, scoring
from flexpool_jax.data import Dataset
from flexpool_jax.evaluation import Restored, restore_workdir
from flexpool_jax.insight import figures, page
from flexpool_jax.insight.contact_sheet import WRONG, Tile, contact_sheet
from flexpool_jax.insight.evidence_maps import EvidenceMaps, evidence_maps, why_not_exact
from flexpool_jax.insight.weights import weight_statistics
from flexpool_jax.models.classifier import prediction_params
from flexpool_jax.models.layers import cpu_kernels
from flexpool_jax.pages.figures import INK
from flexpool_jax.pools import effective_weights
from flexpool_jax.training import checkpoints, steps
from flexpool_jax.training.eval_loop import measure, run_over
from flexpool_jax.training.feed import Feed
from flexpool_jax.training.setup import Setup

Array = jax.Array
Variables = Mapping[str, Any]

REPORT_FILE, PAGE_FILE, SUMMARY_FILE = "inspect.json", "index.html", "model.txt"
_MAX_ERRORS, _MAX_IMAGES = 48, 24
# The largest number of classes whose confusion matrix is drawn; 21,841 would take 3.8 GB.
_MAX_CONFUSION = 1_000
# The largest number of classes for which an image has evidence maps, and of values in all maps; the
# latter keeps the page at a few megabytes.
_MAX_CLASSES, _MAX_VALUES = 20, 600_000


def inspect_workdir(
    workdir: str | os.PathLike[str],
    step: str = "latest",
    config: ml_collections.ConfigDict | None = None,
) -> dict[str, Any]:
    """Inspects a checkpoint and writes the workdir's folder ``inspect``.

    Arguments and errors are those of `flexpool_jax.evaluation.restore_workdir`.

    Returns:
        The content of inspect.json; see docs/inspect.md.
    """
    started = time.monotonic()
    restored = restore_workdir(workdir, step, config)
    folder = restored.workdir / layout.INSPECT_FOLDER
    folder.mkdir(exist_ok=True)
    setup, variables = restored.setup, restored.variables
    model, test = setup.model, setup.dataset.test
    logits, mean_maps = _run_network(restored)
    probabilities, labels = scoring.softmax(logits), test.labels
    pools = _stage_weights(model, variables, mean_maps)
    last_shape = list(mean_maps.values())[-1].shape
    reason = why_not_exact(model.pool, variables["params"]["head"], last_shape)
    evidence = None if reason else _find_evidence(restored, probabilities)
    errors = scoring.confident_errors(labels, probabilities, _MAX_ERRORS)
    confusions = scoring.confusions(labels, probabilities)
    summary, flops = _summarise_model(model, setup.dataset.image_shape)
    report = {
        **checkpoints.model_reference(restored.step, restored.variables),
        "is_best": step == "best",
        "split": setup.split_name,
        "examples": len(test),
        "dataset": setup.dataset.name,
        "model": setup.config.model,
        "pool": setup.config.pool,
        "sac": bool(setup.config.sac.enabled),
        "config_digest": configuration.digest(configuration.read_config(restored.workdir)),
        "parameters": steps.parameter_count(prediction_params(variables["params"])),
        "flops": flops,
        "class_names": list(setup.dataset.class_names),
        "metrics": measure(labels, logits, probabilities),
        "accuracy_per_class": scoring.accuracy_per_class(labels, probabilities),
        "calibration": [
            found._asdict() for found in scoring.calibration_bins(labels, probabilities)
        ],
        "confusion": confusions.tolist(),
        "errors": [_describe_image(index, labels, probabilities) for index in errors],
        "pools": {
            stage: {"shape": list(w.shape), **weight_statistics(w, mean_maps[stage])}
            for stage, w in pools.items()
        },
        "evidence": _describe_evidence(evidence, reason, labels, probabilities),
        "seconds": time.monotonic() - started,
    }
    with files.naming(folder):
        pictures = _write_pictures(folder, report, setup.dataset, pools, evidence, confusions)
    files.write_whole(folder / SUMMARY_FILE, summary.encode())
    page.write_page(folder / PAGE_FILE, restored.workdir, report, pools, evidence, test, summary)
    files.write_json(folder / REPORT_FILE, report)
    for pattern in ("weights_*.png", "confusion.png", "errors.png", "evidence.png"):
        for old in folder.glob(pattern):  # An earlier inspection may have others.
            if old.name not in pictures:
                old.unlink()
    return report


def summarise(report: Mapping[str, Any]) -> str:
    """Writes a report of `inspect_workdir` as a few lines.

    Example:
        >>> sums = {"mean": 1.0, "sd": 0.25}
        >>> pool = {"shape": [8, 8, 64], "channel_sums": sums, "negative_share": 0.5}
        >>> report = {"split": "test", "examples": 400, "step": 20, "pools": {"stage3": pool}}
        >>> print(summarise(report | {"metrics": {"accuracy": 0.75, "loss": 1.0}}))
        test accuracy 75.00 %, loss 1 (400 images, step 20)
        weights of stage3: channel sums with mean 1.000, sd 0.250 over 64 channels; 50.0 % negative
    """
    metrics = dict(report["metrics"])
    accuracy = 100 * metrics.pop("accuracy")
    listed = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items()]
    lines = [
        f"{report['split']} accuracy {accuracy:.2f} %, {', '.join(listed)} "
        f"({report['examples']:,} images, step {report['step']:,})"
    ]
    for stage, found in report["pools"].items():
        sums, channels = found["channel_sums"], found["shape"][-1]
        lines.append(
            f"weights of {stage}: channel sums with mean {sums['mean']:.3f}, sd {sums['sd']:.3f} "
            f"over {channels} channels; {100 * found['negative_share']:.1f} % negative"
        )
    return "\n".join(lines)


def _run_network(restored: Restored) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The logits [N, num_classes] of the evaluation split, and each stage's mean map [H, W, C]."""
    setup = restored.setup
    names: list[str] = []

    def step(variables: Variables, batch: steps.Batch) -> tuple[steps.Metrics, steps.Metrics]:
        logits, stages = _forward(setup, variables, batch["image"])
        names[:] = stages  # A compiled function returns a dict with its keys sorted.
        sums = {
            name: jnp.einsum("b,b...->...", batch["valid"], stage.astype(jnp.float32))
            for name, stage in stages.items()
        }
        return jax.lax.psum(sums, steps.AXIS), {"logits": logits}

    feed = Feed(setup.dataset.test, setup.is_streamed)
    sums, outputs = run_over(feed, step, restored.variables, setup.config.eval_batch_size)
    return outputs["logits"], {name: sums[name] / len(feed) for name in names}


def _forward(setup: Setup, variables: Variables, images: Array) -> tuple[Array, dict[str, Array]]:
    """Returns the logits and all stage maps of uint8 images; for use inside a compiled function."""
    images = setup.normalise(images)
    stages: Any = setup.model.apply(variables, images, method="stage_maps")
    # XLA computes the backbone once for both.
    logits: Any = setup.model.apply(variables, images, train=False)
    return logits, dict(stages)


def _stage_weights(
    model: nn.Module, variables: Variables, mean_maps: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The effective weights [H, W, C] of every stage whose pool has learned weights, in order."""
    params = variables["params"]
    last = list(mean_maps)[-1]
    found = {}
    for stage, mean_map in mean_maps.items():
        head = params["head"] if stage == last else params.get(f"aux_head_{stage}", {})
        if "pool" in head:
            w = effective_weights(model.pool, head["pool"], mean_map.shape)
            if w is not None:
                found[stage] = np.asarray(w)
    return found


def _find_evidence(restored: Restored, probabilities: np.ndarray) -> EvidenceMaps:
    """Computes evidence maps of up to 24 images: confident errors and correctly classified ones."""
    labels = restored.setup.dataset.test.labels
    positions = _choose_images(labels, probabilities)

    @jax.jit
    def last_map(variables: Variables, images: Array) -> tuple[Array, Array]:
        logits, stages = _forward(restored.setup, variables, images)
        return logits, list(stages.values())[-1]

    logits, feature_map = jax.device_get(
        last_map(restored.variables, restored.setup.dataset.test.images[positions])
    )
    head = restored.variables["params"]["head"]
    maps = evidence_maps(restored.setup.model.pool, head, feature_map)
    bias = np.asarray(head["classifier"]["bias"])
    difference = np.abs(maps.sum(axis=(1, 2)) + bias - logits).max()
    order = _choose_classes(logits, labels[positions], values=maps[..., 0].size)
    rows = np.arange(len(positions))[:, None]
    return EvidenceMaps(
        positions,
        order,
        np.moveaxis(maps, -1, 1)[rows, order],
        logits[rows, order],
        bias[order],
        float(difference),
    )


def _choose_images(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns the indices of confident errors, then of correctly classified images.

    At most half of the images are errors. The correctly classified images are taken from each class
    in turn, so that all classes have about the same number of them.
    """
    wrong = scoring.confident_errors(labels, probabilities, _MAX_IMAGES // 2)
    right = np.flatnonzero(probabilities.argmax(axis=1) == labels)
    turn = np.zeros(len(right), int)
    for label in np.unique(labels[right]):
        members = labels[right] == label
        turn[members] = np.arange(members.sum())
    chosen = right[np.lexsort((labels[right], turn))][: _MAX_IMAGES - len(wrong)]
    return np.concatenate([wrong, chosen]).astype(int)


def _choose_classes(logits: np.ndarray, labels: np.ndarray, values: int) -> np.ndarray:
    """Returns the classes of each image that get evidence maps, [M, n], most probable first.

    If the true class is not among them, it replaces the last one. `values` is the number of values
    in the maps of one class, over all images.
    """
    count = min(_MAX_CLASSES, max(2, _MAX_VALUES // values))
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    for row, label in zip(order, labels, strict=True):
        if label not in row:
            row[-1] = label
    return order


@contextlib.contextmanager
def _counting_flops() -> Iterator[None]:
    """Uses a CPU without this project's kernels, since XLA cannot count those, or a GPU's FLOPs."""
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names other platforms alone.
        cpu = None
    with cpu_kernels(False), jax.default_device(cpu):
        yield


def count_flops(model: nn.Module, image_shape: tuple[int, int, int]) -> int | None:
    """Counts the FLOPs of a model's logits for one image [H, W, C]; None if XLA cannot.

    A multiplication and an addition count as two FLOPs; those with padding do not count.
    """
    with _counting_flops():
        images = jnp.zeros((1, *image_shape), model.dtype)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        cost = jax.jit(model.apply).lower(variables, images).cost_analysis()
    flops = cost.get("flops") if isinstance(cost, Mapping) else None
    return None if flops is None else int(flops)


def _summarise_model(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[str, int | None]:
    """Returns Flax's table of the layers for one image, and the FLOPs of the whole model."""
    with _counting_flops():
        table = nn.tabulate(
            model,
            jax.random.key(0),
            compute_flops=True,
            depth=2,
            console_kwargs={"force_terminal": False, "width": 200},
        )(jnp.zeros((1, *image_shape), model.dtype))
    lines = (line.rstrip() for line in table.strip("\n").splitlines())
    return "\n".join(lines) + "\n", count_flops(model, image_shape)


def _write_pictures(
    folder: Path,
    report: Mapping[str, Any],
    dataset: Dataset,
    pools: Mapping[str, np.ndarray],
    evidence: EvidenceMaps | None,
    confusions: np.ndarray,
) -> list[str]:
    """Writes the PNGs; returns the names of those that not every inspection has."""
    test, names = dataset.test, dataset.class_names
    written = [f"weights_{stage}.png" for stage in pools]
    for stage, w in pools.items():
        figures.draw_weights(w, folder / f"weights_{stage}.png", f"{report['pool']}, {stage}")
    if len(names) <= _MAX_CONFUSION:
        figures.draw_confusion(confusions, names, folder / "confusion.png")
        written.append("confusion.png")
    figures.draw_reliability(
        [scoring.Bin(**fields) for fields in report["calibration"]],
        report["metrics"]["calibration_error"],
        folder / "reliability.png",
    )
    tiles = [
        Tile(
            test.images[found["index"]],
            [
                (f"{names[found['prediction']]}  {100 * found['confidence']:.1f} %", WRONG),
                (f"is {names[found['label']]}", INK),
            ],
        )
        for found in report["errors"]
    ]
    if tiles:
        contact_sheet(tiles).save(folder / "errors.png")
        written.append("errors.png")
    if evidence is not None:
        figures.draw_evidence(evidence, test, names, folder / "evidence.png")
        written.append("evidence.png")
    return written


def _describe_image(
    index: int, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, int | float]:
    prediction = int(probabilities[index].argmax())
    return {
        "index": int(index),
        "label": int(labels[index]),
        "prediction": prediction,
        "confidence": float(probabilities[index, prediction]),
    }


def _describe_evidence(
    evidence: EvidenceMaps | None, reason: str, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, Any]:
    if evidence is None:
        return {"exact": False, "reason": reason, "images": []}
    images = []
    for row, index in enumerate(evidence.positions):
        image = _describe_image(index, labels, probabilities)
        kept = [
            {
                "class": int(label),
                "logit": float(evidence.logits[row, place]),
                "bias": float(evidence.bias[row, place]),
                "map": evidence.maps[row, place].tolist(),
            }
            for place, label in enumerate(evidence.classes[row])
            if label in (image["label"], image["prediction"])
        ]
        images.append(image | {"evidence": kept})
    return {"exact": True, "largest_difference": evidence.largest_difference, "images": images}
