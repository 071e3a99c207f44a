"""Metrics of a classifier besides accuracy, computed from the probabilities that it predicts.

``labels`` are int [N] and ``probabilities`` floating [N, K] throughout. `METRICS` holds the metrics
that return one number. Every evaluation computes them; `register_metric` adds a metric.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.special

from flexpool_jax.errors import UserError
from flexpool_jax.registration import is_same_definition, why_not_callable

Metric = Callable[[np.ndarray, np.ndarray], float]

NUM_BINS = 15
# With fewer classes the true class is among the five most probable ones too easily.
MIN_CLASSES_FOR_TOP5 = 20

#: All metrics by name, including registered ones.
METRICS: dict[str, Metric] = {}
# The other names in metrics.jsonl and evaluation.json, which a metric cannot have.
_TAKEN = (
    *("step", "epoch", "split", "loss", "accuracy", "accuracy_per_class", "images_per_second"),
    *("model_digest", "examples", "resize"),
)


def register_metric(name: str) -> Callable[[Metric], Metric]:
    """Registers a function ``(labels [N], probabilities [N, K]) -> float`` as a metric.

    Every evaluation calls it once, with all N examples: int32 labels in [0, K) and float64
    probabilities, NumPy arrays that it may not write to.

    Args:
        name: name of the metric in files and reports: letters, digits and underscores. If it ends
            in "accuracy", reports show per cent.

    Raises:
        UserError: another metric has this name, the name is not allowed, or the function does not
            take labels and probabilities.

    Example:
        >>> @register_metric("mean_confidence")
        ... def mean_confidence(labels, probabilities):
        ...     return float(probabilities.max(axis=1).mean())
        >>> scores(np.array([0, 1]), np.array([[0.75, 0.25], [0.5, 0.5]]))["mean_confidence"]
        0.625
        >>> del METRICS["mean_confidence"]
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name) or name in _TAKEN:
        raise UserError(
            f"a metric cannot be named {name!r}; allowed: letters, digits and underscores, but "
            f"none of {', '.join(_TAKEN)}"
        )

    def register(metric: Metric) -> Metric:
        if reason := why_not_callable(metric, None, None):
            raise UserError(
                f"metric {name!r}: {reason}; allowed: a function of the labels and the "
                "probabilities alone"
            )
        if name in METRICS and not is_same_definition(METRICS[name], metric):
            raise UserError(f"a metric named {name!r} is registered already")
        METRICS[name] = metric
        return metric

    return register


def scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Computes every registered metric; top-5 accuracy only if there are at least 20 classes.

    Raises:
        UserError: a metric fails or does not return a number.

    Example:
        >>> scores(np.array([0, 1]), np.array([[1.0, 0.0], [0.0, 1.0]]))
        {'calibration_error': 0.0}
    """
    few = probabilities.shape[1] < MIN_CLASSES_FOR_TOP5
    labels, probabilities = labels.view(), probabilities.view()
    # One metric must not change what the next one is given.
    labels.flags.writeable = probabilities.flags.writeable = False
    found = {}
    for name, metric in METRICS.items():
        if few and metric is top5_accuracy:
            continue
        try:
            found[name] = float(metric(labels, probabilities))
        except Exception as error:  # It is the user's own code.
            raise UserError(
                f"metric {name!r} failed: {type(error).__name__}: {error}; it is given labels "
                f"{labels.dtype} {list(labels.shape)} and probabilities {probabilities.dtype} "
                f"{list(probabilities.shape)}, and must return a number"
            ) from error
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    """Converts logits [N, K] to float64 probabilities.

    Equal logits get equal probabilities. Logits that differ by less than about 1e-16 may get equal
    probabilities too.

    Example:
        >>> softmax(np.float32([[0, 0], [800, 0]])).tolist()
        [[0.5, 0.5], [1.0, 0.0]]
    """
    return scipy.special.softmax(logits.astype(np.float64), axis=1)


@register_metric("top5_accuracy")
def top5_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The share of examples whose class is among the five most probable ones.

    Of equally probable classes the one with the lower index comes first, as in argmax.

    Example:
        >>> probabilities = np.array([[0.3, 0.2, 0.2, 0.1, 0.1, 0.1]])
        >>> top5_accuracy(np.array([4]), probabilities), top5_accuracy(np.array([5]), probabilities)
        (1.0, 0.0)
    """
    classes, label = np.arange(probabilities.shape[1]), labels[:, None]
    own = np.take_along_axis(probabilities, label, axis=1)
    # "Not at most" instead of "above", so that a NaN counts as more probable than the true class:
    # an example with NaNs is not counted as correct.
    before = ~(probabilities <= own) | ((probabilities == own) & (classes < label))
    return float(np.mean(before.sum(axis=1) < 5))


class Bin(NamedTuple):
    """The examples whose confidence is in one interval.

    Attributes:
        low, high: bounds of the interval: low < confidence <= high.
        images: number of these examples.
        confidence: mean confidence of these examples; None if there are none.
        accuracy: share of these examples that is predicted correctly; None if there are none.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


def calibration_bins(
    labels: np.ndarray, probabilities: np.ndarray, num_bins: int = NUM_BINS
) -> list[Bin]:
    """Sorts examples by confidence, their highest probability, into equally wide intervals.

    Interval b of n is ((b − 1) / n, b / n]. A reliability diagram shows these intervals (Guo,
    Pleiss, Sun & Weinberger 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599).

    Example:
        >>> probabilities = np.array([[0.75, 0.25], [0.75, 0.25]])
        >>> calibration_bins(np.array([0, 1]), probabilities, num_bins=2)[1]
        Bin(low=0.5, high=1.0, images=2, confidence=0.75, accuracy=0.5)
    """
    confidences = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, num_bins + 1)
    place = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, num_bins - 1)
    bins = []
    for index in range(num_bins):
        inside = place == index
        count = int(inside.sum())
        confidence = float(confidences[inside].mean()) if count else None
        accuracy = float(correct[inside].mean()) if count else None
        bins.append(Bin(float(edges[index]), float(edges[index + 1]), count, confidence, accuracy))
    return bins


@register_metric("calibration_error")
def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The expected calibration error, ``Σ_b n_b / N · |accuracy_b − confidence_b|``, in [0, 1].

    The sum is over 15 equally wide bins of confidence, see `calibration_bins`. The formula is Eq. 3
    of Guo et al. 2017 (arXiv 1706.04599).

    Example:
        >>> calibration_error(np.array([0, 1]), np.array([[0.75, 0.25], [0.75, 0.25]]))
        0.25
    """
    bins = calibration_bins(labels, probabilities)
    total = sum(
        found.images * abs(found.accuracy - found.confidence)
        for found in bins
        if found.accuracy is not None and found.confidence is not None
    )
    return total / len(labels)


def accuracy_per_class(labels: np.ndarray, probabilities: np.ndarray) -> list[float | None]:
    """The share of each class's examples that is predicted correctly; None for an empty class.

    Example:
        >>> accuracy_per_class(np.array([0, 0]), np.array([[0.9, 0.1], [0.2, 0.8]]))
        [0.5, None]
    """
    correct = probabilities.argmax(axis=1) == labels
    found = (correct[labels == index] for index in range(probabilities.shape[1]))
    return [float(part.mean()) if len(part) else None for part in found]


def confusions(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Counts the pairs that occur: int64 [P, 3] of true class, predicted class and examples.

    These are the entries of the confusion matrix that are not 0, row by row. With many classes, the
    whole matrix may not fit into memory.

    Example:
        >>> confusions(np.array([1, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])).tolist()
        [[1, 0, 1], [1, 1, 2]]
    """
    pairs = np.stack([labels, probabilities.argmax(axis=1)], axis=1).astype(np.int64)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    return np.column_stack([found, counts])


def confident_errors(labels: np.ndarray, probabilities: np.ndarray, count: int) -> np.ndarray:
    """Positions of the wrong predictions with the highest confidence, most confident first.

    Example:
        >>> probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2]])
        >>> confident_errors(np.array([1, 1, 0]), probabilities, count=5)
        array([1, 0])
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities.max(axis=1)[wrong], kind="stable")
    return wrong[order][:count]
