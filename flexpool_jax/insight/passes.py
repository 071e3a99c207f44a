"""Runs a step over all batches of a split, on all devices."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from flexpool_jax.training import steps
from flexpool_jax.training.feed import Feed
from flexpool_jax.training.setup import replicate


def run_over(
    feed: Feed, step: steps.EvalStep, inputs: Any, batch_size: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs a step over every example of a split once; compiles the step once.

    Args:
        feed: feed of the split.
        step: function like those of `flexpool_jax.training.steps.make_eval_step`.
        inputs: arrays on the host that the step gets in the place of variables.
        batch_size: examples in a batch, on all devices together.

    Returns:
        The step's sums over all batches, float64; and its outputs for the examples, [N, ...].
    """
    program = steps.pmap_eval_step(step)
    replicated = replicate(inputs)
    parts = feed.once(batch_size)
    totals: dict[str, np.ndarray] = {}
    found: dict[str, list[np.ndarray]] = {}
    for part in parts:
        sums, examples = jax.device_get(program(replicated, feed.data, part))
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value.astype(np.float64)
        # [devices, examples of a device, ...] of each batch.
        for name, value in examples.items():
            found.setdefault(name, []).append(np.concatenate(value))
    return totals, {name: np.concatenate(values)[: len(feed)] for name, values in found.items()}
