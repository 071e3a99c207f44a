"""Metrics agree with scikit-learn, with closed forms and with each other."""

import tracemalloc

import numpy as np
import pytest
import sklearn.metrics

from flexpool_jax import scoring
from flexpool_jax.errors import UserError

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 24, 500)
LOGITS = RNG.normal(size=(500, 24)) * 2
LOGITS[np.arange(500), LABELS] += 2
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
CORRECT = PROBABILITIES.argmax(axis=1) == LABELS


def test_probabilities_of_float32_logits_have_the_precision_of_float64():
    logits = LOGITS.astype(np.float32)
    exponentials = np.exp(logits.astype(np.float64))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scoring.softmax(logits), expected, rtol=1e-12)


def test_top5_accuracy_is_scikit_learns():
    expected = sklearn.metrics.top_k_accuracy_score(
        LABELS, PROBABILITIES, k=5, labels=np.arange(24)
    )
    assert scoring.top5_accuracy(LABELS, PROBABILITIES) == pytest.approx(expected)


def test_of_ties_the_class_that_argmax_takes_comes_first():
    even = np.full((3, 6), 1 / 6)
    assert scoring.top5_accuracy(np.array([0, 4, 5]), even) == pytest.approx(2 / 3)


def test_confusions_are_the_entries_of_scikit_learns_matrix():
    matrix = sklearn.metrics.confusion_matrix(
        LABELS, PROBABILITIES.argmax(axis=1), labels=np.arange(24)
    )
    expected = [[row, column, matrix[row, column]] for row, column in np.argwhere(matrix)]
    np.testing.assert_array_equal(scoring.confusions(LABELS, PROBABILITIES), expected)


def test_confusions_of_many_classes_take_little_memory():
    classes = 20_000  # Their matrix would take 3.2 GB.
    labels = np.array([7, 19_999, 7])
    probabilities = np.zeros((3, classes))
    probabilities[[0, 1, 2], [7, 3, 7]] = 1
    tracemalloc.start()
    try:
        found = scoring.confusions(labels, probabilities)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
    assert found.tolist() == [[7, 7, 2], [19_999, 3, 1]]


def test_accuracies_per_class_average_to_the_accuracy():
    accuracies = scoring.accuracy_per_class(LABELS, PROBABILITIES)
    weights = np.bincount(LABELS, minlength=24)
    assert np.average(accuracies, weights=weights) == pytest.approx(CORRECT.mean())
    few = scoring.accuracy_per_class(LABELS[LABELS < 20], PROBABILITIES[LABELS < 20])
    assert few[20:] == [None] * 4


def test_bins_hold_each_example_once_and_their_means_are_those_of_numpy():
    bins = scoring.calibration_bins(LABELS, PROBABILITIES)
    confidences = PROBABILITIES.max(axis=1)
    assert len(bins) == 15
    assert sum(found.images for found in bins) == 500
    for found in bins:
        inside = (confidences > found.low) & (confidences <= found.high)
        assert found.images == inside.sum()
        if found.images:
            assert found.confidence == pytest.approx(confidences[inside].mean())
            assert found.accuracy == pytest.approx(CORRECT[inside].mean())
    assert (bins[0].images, bins[0].accuracy) == (0, None)


def test_confidence_at_an_edge_belongs_to_the_lower_bin_and_0_to_the_first():
    bins = scoring.calibration_bins(np.zeros(3, int), np.array([[0.5, 0.5], [1, 0], [0, 0]]), 2)
    assert [found.images for found in bins] == [2, 1]


def test_calibration_error_is_0_where_confidences_are_true_and_their_excess_elsewhere():
    # Ten examples with confidence 0.7, of which seven and five are right.
    probabilities = np.tile([0.7, 0.3], (10, 1))
    assert scoring.calibration_error(np.arange(10) // 7, probabilities) == pytest.approx(0)
    assert scoring.calibration_error(np.arange(10) // 5, probabilities) == pytest.approx(0.2)


def test_confident_errors_are_the_wrong_ones_in_order():
    found = scoring.confident_errors(LABELS, PROBABILITIES, 10)
    confidences = PROBABILITIES.max(axis=1)
    assert len(found) == 10
    assert not CORRECT[found].any()
    assert (np.diff(confidences[found]) <= 0).all()
    others = np.setdiff1d(np.flatnonzero(~CORRECT), found)
    assert confidences[others].max() <= confidences[found].min()


def test_top5_is_given_from_20_classes_on():
    for classes in (19, 20):
        few = classes > LABELS
        found = scoring.scores(LABELS[few], PROBABILITIES[few, :classes])
        assert ("top5_accuracy" in found) == (classes == 20)


def test_an_example_with_nans_is_not_counted_as_right():
    spoilt = PROBABILITIES.copy()
    spoilt[:250] = np.nan
    assert scoring.top5_accuracy(LABELS, spoilt) <= 0.5
    assert np.isnan(scoring.calibration_error(LABELS, spoilt))


def sorts_in_place(labels, probabilities):
    probabilities.sort(axis=1)
    return 0.0


@pytest.mark.parametrize("metric", [sorts_in_place, lambda *given: "high"])
def test_a_metric_that_fails_is_named(metric):
    scoring.register_metric("spoilt")(metric)
    try:
        with pytest.raises(UserError, match=r"metric 'spoilt' failed: .*float64 \[500, 24\]"):
            scoring.scores(LABELS, PROBABILITIES)
    finally:
        del scoring.METRICS["spoilt"]


@pytest.mark.parametrize("metric", [lambda: 1.0, lambda labels: 1.0, lambda *, labels: 1.0, 1.0])
def test_a_metric_that_does_not_take_labels_and_probabilities_is_refused(metric):
    before = dict(scoring.METRICS)
    with pytest.raises(UserError, match=r"metric 'mine': .*; allowed: a function of the labels"):
        scoring.register_metric("mine")(metric)
    assert before == scoring.METRICS


@pytest.mark.parametrize("name", ["loss", "split", "model_digest", "", "top 5", "a/b", print])
def test_names_that_files_use_or_cannot_hold_are_refused(name):
    with pytest.raises(UserError, match="cannot be named"):
        scoring.register_metric(name)


def test_a_metric_of_ones_own_is_one_registered_function():
    try:

        @scoring.register_metric("errors")
        def errors(labels, probabilities):
            return np.count_nonzero(probabilities.argmax(axis=1) != labels)

        assert scoring.scores(LABELS, PROBABILITIES)["errors"] == np.count_nonzero(~CORRECT)
        with pytest.raises(UserError, match="errors"):
            scoring.register_metric("errors")(scoring.top5_accuracy)
    finally:
        scoring.METRICS.pop("errors", None)
