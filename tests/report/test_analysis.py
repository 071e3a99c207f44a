"""The statistics agree with SciPy's own and with closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flexpool_jax.report.analysis import estimate, holm, paired_difference

samples = st.lists(st.floats(0, 100), min_size=3, max_size=8).filter(lambda v: np.std(v) > 1e-3)


@given(samples)
def test_interval_is_scipys(values):
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(estimate(values).interval, [low, high], atol=1e-9)


@given(st.integers(0, 10_000), st.integers(2, 8))
def test_paired_test_is_scipys(seed, n):
    ours, theirs = np.random.default_rng(seed).normal(90, 1, (2, n))
    found = paired_difference(dict(enumerate(ours)), dict(enumerate(theirs)))
    expected = stats.ttest_rel(ours, theirs)
    np.testing.assert_allclose(found.p_value, expected.pvalue, rtol=1e-6)
    np.testing.assert_allclose(found.interval, expected.confidence_interval(0.95), rtol=1e-6)


def test_interval_of_two_values_is_that_of_the_tables():
    # t(0.975, 1) = tan(0.475 π) and s/√2 of a and b is |a − b| / 2.
    found = estimate([90.0, 91.0])
    assert found.mean == 90.5
    assert found.half_width == pytest.approx(math.tan(0.475 * math.pi) / 2)


def test_single_value_has_no_interval():
    assert estimate([91.0]).half_width is None
    single = paired_difference({0: 91.0}, {0: 90.0, 1: 70.0})
    assert (single.mean, single.half_width, single.p_value) == (1.0, None, None)


def test_mean_of_no_values_is_refused():
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_differences_by_rounding_do_not_count_as_spread():
    # Each pair differs by one image of 359, in floating point not quite by the same amount.
    right = np.array([340, 347, 351])
    ours, theirs = 100 * ((right + 1) / 359), 100 * (right / 359)
    assert len(set(ours - theirs)) > 1
    found = estimate(ours - theirs)
    assert found.p_value is None
    assert found.half_width == pytest.approx(0, abs=1e-9)


def test_holm_is_bonferronis_for_the_smallest_and_never_falls():
    assert holm([0.04, 0.001, 0.03, 0.5]) == pytest.approx([0.09, 0.004, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
