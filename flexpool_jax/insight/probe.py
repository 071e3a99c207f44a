"""Measures a trained network with changed weights in its pool and on changed images.

`probe_workdir` writes a workdir's probe.json; docs/probe.md defines every number in it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import linen as nn

from flexpool_jax import configuration, files, layout
from flexpool_jax.data import Split
from flexpool_jax.evaluation import restore_workdir
from flexpool_jax.insight.perturbations import perturbations
from flexpool_jax.insight.probe_report import by_title
from flexpool_jax.insight.weights import NUM_DRAWS, interventions, weight_statistics
from flexpool_jax.models.classifier import Head
from flexpool_jax.pools import effective_weights
from flexpool_jax.training import checkpoints, steps
from flexpool_jax.training.eval_loop import evaluate_split, run_over
from flexpool_jax.training.feed import Feed
from flexpool_jax.training.setup import Setup, replicate

Array = jax.Array
Variables = Mapping[str, Any]


def probe_workdir(
    workdir: str | os.PathLike[str],
    step: str = "latest",
    config: ml_collections.ConfigDict | None = None,
) -> dict[str, Any]:
    """Probes a checkpoint on the evaluation split and writes the workdir's probe.json.

    Arguments and errors are those of `flexpool_jax.evaluation.restore_workdir`.

    Returns:
        The content of probe.json; see docs/probe.md.
    """
    started = time.monotonic()
    restored = restore_workdir(workdir, step, config)
    report = {
        **checkpoints.model_reference(restored.step, restored.variables),
        "split": restored.setup.split_name,
        "examples": len(restored.setup.dataset.test),
        "pool": restored.setup.config.pool,
        "config_digest": configuration.digest(configuration.read_config(restored.workdir)),
        **probe(restored.setup, restored.variables),
        "seconds": time.monotonic() - started,
    }
    files.write_json(restored.workdir / layout.PROBE_FILE, report)
    return report


def probe(setup: Setup, variables: Variables) -> dict[str, Any]:
    """Measures a network as it is, with changed weights in its pool, and on changed images.

    The devices share each batch, as in evaluation. All weights of the pool are evaluated on the
    same feature map of a batch. So the network runs 26 times over the split, and 27 times if its
    pool has learned weights.

    Args:
        setup: setup from `set_up`; the ``test`` split of its data set is used.
        variables: ``params`` and ``batch_stats`` of the network, on the host.

    Returns:
        ``baseline``, ``interventions``, ``perturbations`` and ``weights`` as in docs/probe.md.
    """
    dataset = setup.dataset
    # Even if training streams, the whole split is on the device: it is perturbed all at once.
    feed = Feed(dataset.test)
    assert feed.data is not None
    replicated = replicate(variables)
    baseline = evaluate_split(setup, replicated, feed)

    def scores(loss: float, predictions: np.ndarray) -> dict[str, Any]:
        return {
            "accuracy": np.count_nonzero(predictions == dataset.test.labels) / len(predictions),
            "loss": float(loss),
            "changed": np.count_nonzero(predictions != baseline.predictions),
        }

    perturbed = []
    for named, perturb in perturbations():
        changed = Feed(Split(np.asarray(perturb(feed.data.images)), dataset.test.labels))
        found = evaluate_split(setup, replicated, changed)
        perturbed.append(named | scores(found.metrics["loss"], found.predictions))

    intervened: list[dict[str, Any]] = []
    statistics_of_weights = None
    w = _pool_weights(setup, variables)
    if w is not None:
        named_weights = interventions(w)
        stacked = np.concatenate([drawn for _, drawn in named_weights])
        losses, predictions, mean_map = _evaluate_pools(setup, variables, stacked, feed)
        each = map(scores, losses, predictions)
        for named, drawn in named_weights:
            draws = [next(each) for _ in drawn]
            means = {key: math.fsum(draw[key] for draw in draws) / len(draws) for key in draws[0]}
            intervened.append(named | (means | {"draws": draws} if len(draws) > 1 else draws[0]))
        statistics_of_weights = weight_statistics(w, mean_map)
    return {
        "baseline": {name: baseline.metrics[name] for name in ("loss", "accuracy")},
        "interventions": intervened,
        "perturbations": perturbed,
        "weights": statistics_of_weights,
    }


def summary(report: Mapping[str, Any]) -> str:
    """Writes a report of `probe_workdir` as a short table.

    Example:
        >>> baseline = {"accuracy": 0.9, "loss": 0.3}
        >>> cut = {"name": "rank", "rank": 1, "accuracy": 0.85, "loss": 0.4, "changed": 7}
        >>> report = {"split": "test", "examples": 20, "step": 10, "baseline": baseline}
        >>> print(summary(report | {"interventions": [cut], "perturbations": []}))
        20 test images, step 10; shift: mean of 4 directions; permute: mean of 5 draws
                                accuracy  changed images
        as it is                 90.00 %
        rank 1                   85.00 %             7.0
    """
    lines = [
        f"{report['examples']:,} {report['split']} images, step {report['step']:,}; "
        f"shift: mean of 4 directions; permute: mean of {NUM_DRAWS} draws",
        f"{'':22}{'accuracy':>10}{'changed images':>16}",
    ]
    for title, entries in {"as it is": [report["baseline"]], **by_title(report)}.items():
        accuracy = math.fsum(entry["accuracy"] for entry in entries) / len(entries)
        line = f"{title:22}{accuracy:>10.2%}"
        if "changed" in entries[0]:
            changed = math.fsum(entry["changed"] for entry in entries) / len(entries)
            line += f"{changed:>16,.1f}"
        lines.append(line.replace("%", " %"))
    return "\n".join(lines)


def _pool_weights(setup: Setup, variables: Variables) -> np.ndarray | None:
    """The last pool's effective weights [H, W, C]; None if it has no learned weights."""
    model = setup.model
    images = jnp.zeros((1, *setup.dataset.image_shape), model.dtype)
    shape = jax.eval_shape(lambda v: _feature_map(model, v, images), variables).shape[1:]
    params = variables["params"]["head"].get("pool", {})
    w = effective_weights(model.pool, params, shape)
    return None if w is None else np.asarray(w)


def _evaluate_pools(
    setup: Setup, variables: Variables, weights: np.ndarray, feed: Feed
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evaluates the network with each of the weights [K, H, W, C] in its last pool, in one pass.

    Returns:
        The losses [K], the predictions [K, N] and the mean feature map [H, W, C].
    """
    model = setup.model
    head = Head(
        model.num_classes, "flexpool", hidden_features=model.hidden_features, dtype=model.dtype
    )

    def step(inputs: Mapping[str, Any], batch: steps.Batch) -> tuple[steps.Metrics, steps.Metrics]:
        variables, valid = inputs["variables"], batch["valid"]
        feature_map = _feature_map(model, variables, setup.normalise(batch["image"]))

        def logits_with(w: Array) -> Any:
            params = {**variables["params"]["head"], "pool": {"w_fp": w}}
            return head.apply({"params": params}, feature_map)

        logits = jax.vmap(logits_with)(inputs["weights"])
        labels = jnp.broadcast_to(batch["label"], logits.shape[:2])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        sums = {
            "loss": jnp.sum(jnp.where(valid, losses, 0.0), axis=1),
            "feature_map": jnp.einsum("b,b...->...", valid, feature_map.astype(jnp.float32)),
        }
        return jax.lax.psum(sums, steps.AXIS), {"predictions": jnp.argmax(logits, axis=-1).T}

    inputs = {"variables": variables, "weights": weights}
    sums, outputs = run_over(feed, step, inputs, setup.config.eval_batch_size)
    return (
        sums["loss"] / len(feed),
        outputs["predictions"].T,
        sums["feature_map"] / len(feed),
    )


def _feature_map(model: nn.Module, variables: Variables, images: Array) -> Array:
    """The feature map of the last stage, [B, H, W, C]."""
    stages: Any = model.apply(variables, images, method="stage_maps")
    return list(stages.values())[-1]
