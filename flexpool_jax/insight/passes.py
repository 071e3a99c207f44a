"""A pass over a split on all devices, for whatever is to be computed of each batch."""

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
    """Runs a step over every example of a split once; it is compiled once.

    Args:
        feed: of the split.
        step: see `flexpool_jax.training.steps.make_eval_step`.
        inputs: what the step gets in the place of variables, on the host.
        batch_size: of all devices together.

    Returns:
        The step's sums over all batches, float64, and what it gave for the examples, [N, ...].
    """
    program = steps.pmap_eval_step(step)
    replicated = replicate(inputs)
    parts = feed.once(batch_size)
    found = [jax.device_get(program(replicated, feed.data, part)) for part in parts]
    sums = {
        name: np.stack([sums[name] for sums, _ in found]).sum(axis=0, dtype=np.float64)
        for name in found[0][0]
    }
    examples = {
        # [devices, examples of a device, ...] of each batch.
        name: np.concatenate([np.concatenate(part[name]) for _, part in found])[: len(feed)]
        for name in found[0][1]
    }
    return sums, examples
