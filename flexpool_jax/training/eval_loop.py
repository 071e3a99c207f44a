"""The loop over an evaluation's batches: every example of a split once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flexpool_jax import scoring
from flexpool_jax.training.feed import Feed
from flexpool_jax.training.setup import Setup


class Evaluation(NamedTuple):
    """The result of evaluating a model on a split.

    Attributes:
        metrics: ``loss`` (mean cross-entropy in nats), ``accuracy`` in [0, 1], and the metrics of
            `flexpool_jax.scoring`.
        accuracy_per_class: accuracy of each class in [0, 1]; None for a class without examples.
        predictions: int16 [N], the predicted class of each example, in the order of the split.
        confidences: float16 [N], the probability of the predicted class.
    """

    metrics: dict[str, float]
    accuracy_per_class: list[float | None]
    predictions: np.ndarray
    confidences: np.ndarray


def evaluate_split(setup: Setup, variables: Any, feed: Feed) -> Evaluation:
    """Evaluates every example of a split exactly once, whatever the batch size and device count.

    Args:
        setup: result of `set_up`.
        variables: ``params`` and ``batch_stats``, replicated.
        feed: source of the split's batches.
    """
    results = dispatch(setup, variables, feed)
    return summarise(setup, collect(results), feed)


def dispatch(
    setup: Setup, variables: Any, feed: Feed, check: Callable[[], None] = lambda: None
) -> list[Any]:
    """Passes every batch of a split to the devices.

    On accelerators this function does not wait for the devices, unless the data are streamed. A
    program that is dispatched later runs after the evaluation.

    Args:
        setup: see `evaluate_split`.
        variables: see `evaluate_split`.
        feed: see `evaluate_split`.
        check: function that is called between batches; it may raise to abandon the evaluation.

    Returns:
        The result of ``setup.eval_step`` for each batch, to be passed to `collect`.
    """
    results: list[Any] = []
    for part in feed.once(setup.config.eval_batch_size):
        check()
        results.append(setup.eval_step(variables, feed.data, part))
        if len(results) > 1 and (jax.default_backend() == "cpu" or feed.data is None):
            # One batch ahead is enough to keep a CPU busy; more batches would only take memory.
            # Streamed batches take memory of the devices.
            jax.block_until_ready(results[-2])
    return results


def collect(results: Sequence[Any], check: Callable[[], None] = lambda: None) -> list[Any]:
    """Waits for the batches that were dispatched, and copies their results to the host.

    Args:
        results: result of `dispatch`.
        check: see `dispatch`.
    """
    on_host = []
    for result in results:
        check()
        on_host.append(jax.device_get(result))
    return on_host


def summarise(setup: Setup, on_host: Sequence[Any], feed: Feed) -> Evaluation:
    """Computes the `Evaluation` of the feed's split from the result of `collect`."""
    count = len(feed)
    sums, examples = zip(*on_host, strict=True)
    batches = [part["logits"].reshape(-1, setup.dataset.num_classes) for part in examples]
    labels, probabilities = feed.labels, scoring.softmax(np.concatenate(batches)[:count])
    return Evaluation(
        metrics={
            "loss": math.fsum(float(part["loss"]) for part in sums) / count,
            "accuracy": sum(int(part["correct"]) for part in sums) / count,
            **scoring.scores(labels, probabilities),
        },
        accuracy_per_class=scoring.accuracy_per_class(labels, probabilities),
        predictions=probabilities.argmax(axis=1).astype(np.int16),
        confidences=probabilities.max(axis=1).astype(np.float16),
    )
