"""The loop over an evaluation's batches: every example of a split once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flexpool_jax import scoring
from flexpool_jax.training import steps
from flexpool_jax.training.feed import Feed
from flexpool_jax.training.setup import Setup, replicate


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
    return summarise(collect(dispatch(setup, variables, feed)), feed.labels)


def run_over(
    feed: Feed, step: steps.EvalStep, inputs: Any, batch_size: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs another step over every example of a split once; compiles the step once.

    Args:
        feed: source of the split's batches.
        step: function like those of `flexpool_jax.training.steps.make_eval_step`.
        inputs: arrays on the host that the step gets in the place of variables.
        batch_size: examples in a batch, on all devices together.

    Returns:
        See `merge`.
    """
    program, inputs = steps.pmap_eval_step(step), replicate(inputs)
    results = (program(inputs, feed.data, part) for part in feed.once(batch_size))
    return merge(map(jax.device_get, results), len(feed))


def dispatch(
    setup: Setup, variables: Any, feed: Feed, check: Callable[[], None] = lambda: None
) -> list[Any]:
    """Passes every batch of a split to the devices; returns the results for `collect`.

    On accelerators this function does not wait for the devices, unless the data are streamed. A
    program that is dispatched later runs after the evaluation. ``check`` is called between batches;
    it may raise to abandon the evaluation. The other arguments are those of `evaluate_split`.
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
    """Waits for the result of `dispatch`, and copies it to the host; ``check`` as there."""
    on_host = []
    for result in results:
        check()
        on_host.append(jax.device_get(result))
    return on_host


def merge(
    on_host: Iterable[Any], count: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Puts the results of a split's batches together.

    Args:
        on_host: the result of each batch, as `collect` returns them.
        count: number of examples of the split; what follows them only filled up the last batch.

    Returns:
        The step's sums over all batches, float64; and its outputs for the examples, [count, ...].
    """
    totals: dict[str, np.ndarray] = {}
    outputs: dict[str, list[np.ndarray]] = {}
    for sums, examples in on_host:
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value.astype(np.float64)
        for name, value in examples.items():  # [devices, examples of a device, ...]
            outputs.setdefault(name, []).extend(value)
    return totals, {name: np.concatenate(found)[:count] for name, found in outputs.items()}


def summarise(on_host: Sequence[Any], labels: np.ndarray) -> Evaluation:
    """Computes the `Evaluation` of a split with these labels from the result of `collect`."""
    logits = merge(on_host, len(labels))[1]["logits"]
    probabilities = scoring.softmax(logits)
    return Evaluation(
        metrics=measure(labels, logits, probabilities),
        accuracy_per_class=scoring.accuracy_per_class(labels, probabilities),
        predictions=logits.argmax(axis=1).astype(np.int16),
        confidences=probabilities.max(axis=1).astype(np.float16),
    )


def measure(labels: np.ndarray, logits: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Computes the mean cross-entropy (``loss``), ``accuracy`` and the metrics of `scoring`.

    Args:
        labels: int [N].
        logits: float32 [N, K].
        probabilities: float64 [N, K], the softmax of the logits.
    """
    # By the highest probability, which is never 0, and without another array of [N, K].
    behind = logits.max(axis=1).astype(np.float64) - logits[np.arange(len(labels)), labels]
    return {
        "loss": float(np.mean(behind - np.log(probabilities.max(axis=1)))),
        "accuracy": float(np.mean(logits.argmax(axis=1) == labels)),
        **scoring.scores(labels, probabilities),
    }
