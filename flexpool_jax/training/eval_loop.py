"""The loop over an evaluation's batches: every example of a split once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flexpool_jax.training.feed import Feed
from flexpool_jax.training.setup import Setup


class Evaluation(NamedTuple):
    """What a model makes of a split.

    Attributes:
        metrics: ``loss`` (mean cross-entropy in nats) and ``accuracy`` in [0, 1].
        predictions: int16 [N], the predicted class of each example, in the order of the split.
        confidences: float16 [N], the probability of the predicted class.
    """

    metrics: dict[str, float]
    predictions: np.ndarray
    confidences: np.ndarray


def evaluate_split(
    setup: Setup,
    variables: Any,
    feed: Feed,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluates every example of a split exactly once, whatever the batch size and device count.

    Args:
        setup: from `set_up`.
        variables: ``params`` and ``batch_stats``, replicated.
        feed: of the split.
        check: called between batches; may raise to abandon the evaluation.
    """
    return collect(dispatch(setup, variables, feed, check), len(feed), check)


def dispatch(setup: Setup, variables: Any, feed: Feed, check: Callable[[], None]) -> list[Any]:
    """Hands every batch of a split to the devices; arguments as for `evaluate_split`.

    On accelerators it waits for nothing: what is dispatched next runs after the evaluation.

    Returns:
        What ``setup.eval_step`` gave for each batch, for `collect`.
    """
    results: list[Any] = []
    for part in feed.once(setup.config.eval_batch_size):
        check()
        results.append(setup.eval_step(variables, feed.data, part))
        if len(results) > 1 and jax.default_backend() == "cpu":
            # One batch ahead is enough to keep a CPU busy; more would only hold memory.
            jax.block_until_ready(results[-2])
    return results


def collect(results: Sequence[Any], count: int, check: Callable[[], None]) -> Evaluation:
    """Waits for the batches that were dispatched, and sums up.

    Args:
        results: from `dispatch`.
        count: examples of the split.
        check: as for `evaluate_split`.
    """
    on_host = []
    for result in results:
        on_host.append(jax.device_get(result))
        check()
    sums, examples = zip(*on_host, strict=True)

    def of_all(name: str) -> np.ndarray:
        return np.concatenate([part[name].ravel() for part in examples])[:count]

    return Evaluation(
        metrics={
            "loss": math.fsum(float(part["loss"]) for part in sums) / count,
            "accuracy": sum(int(part["correct"]) for part in sums) / count,
        },
        predictions=of_all("prediction").astype(np.int16),
        confidences=of_all("confidence").astype(np.float16),
    )
