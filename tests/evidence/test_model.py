"""The linear model agrees with SciPy and statsmodels and with closed forms."""

import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from evidence.model import BlockModel, Contrast, bootstrap_intervals
from evidence.runs import select_rate


def simulated(seed, columns=5, seeds=6, effect=0.0, sd=0.2):
    """Accuracies of columns × seeds; the columns differ by multiples of the effect."""
    rng = np.random.default_rng(seed)
    blocks = rng.normal(92, 0.3, seeds)
    noise = rng.normal(0, sd, (columns, seeds))
    return {
        (f"c{column}", block): blocks[block] + effect * column + noise[column, block]
        for column in range(columns)
        for block in range(seeds)
    }


def difference(a, b):
    return {a: 1.0, b: -1.0}


def test_balanced_model_is_the_two_way_analysis_of_variance():
    # Closed form: differences of means, residuals after both means, sd · √(2 / seeds).
    accuracies = simulated(1)
    table = np.reshape(list(accuracies.values()), (5, 6))
    residuals = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    model = BlockModel.of_columns(accuracies)
    assert model.df == 20
    assert model.sd == pytest.approx(math.sqrt((residuals**2).sum() / 20))
    contrast = model.contrast(difference("c3", "c1"))
    assert contrast.estimate == pytest.approx(table[3].mean() - table[1].mean())
    assert contrast.error == pytest.approx(model.sd * math.sqrt(2 / 6))
    half = stats.t.ppf(0.975, 20) * contrast.error
    assert np.ptp(contrast.interval()) == pytest.approx(2 * half)
    p_value = 2 * stats.t.cdf(-abs(contrast.estimate) / contrast.error, 20)
    assert contrast.p_value == pytest.approx(p_value)


def test_model_with_two_columns_is_the_paired_t_test():
    accuracies = simulated(2, columns=2)
    ours, theirs = ([accuracies[c, seed] for seed in range(6)] for c in ("c1", "c0"))
    contrast = BlockModel.of_columns(accuracies).contrast(difference("c1", "c0"))
    assert contrast.p_value == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    expected, *_ = ttost_paired(np.array(ours), np.array(theirs), -0.5, 0.5)
    assert contrast.equivalence_p_value(0.5) == pytest.approx(expected)


def test_missing_cells_are_left_to_least_squares():
    accuracies = simulated(3)
    del accuracies["c1", 2], accuracies["c4", 0], accuracies["c4", 1]
    model = BlockModel.of_columns(accuracies)
    assert model.df == 17
    # A second parametrisation: a dummy for every column and all seeds but the last.
    design = [
        [*(column == f"c{i}" for i in range(5)), *(block == i for i in range(5))]
        for column, block in accuracies
    ]
    fit = sm.OLS(list(accuracies.values()), np.array(design, float)).fit()
    expected = fit.t_test(np.array([0, -1, 0, 0, 1] + [0] * 5))
    contrast = model.contrast(difference("c4", "c1"))
    assert contrast.estimate == pytest.approx(expected.effect.item())
    assert contrast.error == pytest.approx(expected.sd.item())


def test_contrast_that_the_runs_cannot_tell_is_none():
    accuracies = simulated(4, columns=2, seeds=3)
    alone = {("other", 7 + i): 91.0 + 0.1 * i for i in range(3)}
    model = BlockModel.of_columns(accuracies | alone)
    assert model.contrast(difference("c1", "c0")) is not None
    assert model.contrast(difference("other", "c0")) is None
    assert model.contrast(difference("absent", "c0")) is None


def test_columns_that_share_no_seed_are_compared_through_a_third():
    accuracies = {("a", 0): 1.0, ("b", 0): 3.0, ("b", 1): 4.0, ("c", 1): 9.0, ("b", 2): 1.0}
    model = BlockModel.of_columns(accuracies | {("c", 2): 6.5})
    assert model.contrast(difference("c", "a")).estimate == pytest.approx(2 + 5.25)


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ({("a", 0): 1.0, ("b", 0): 2.0}, "too few"),
        ({(c, s): c_value + s for c, c_value in (("a", 1.0), ("b", 2.0)) for s in (0, 1)}, "alone"),
    ],
)
def test_model_without_residuals_is_refused(accuracies, words):
    with pytest.raises(ValueError, match=words):
        BlockModel.of_columns(accuracies)


def test_slope_over_blocks_is_that_of_the_centred_regression():
    rng = np.random.default_rng(5)
    x = np.log2([2, 5, 10, 20])
    y = 1 - 0.2 * x + rng.normal(0, 0.1, (3, 4)) + rng.normal(0, 1, (3, 1))
    model = BlockModel(
        y.ravel(),
        [{"intercept": 1.0, "slope": value} for value in np.tile(x, 3)],
        np.repeat([0, 1, 2], 4).tolist(),
    )
    centred = x - x.mean()
    assert model.df == 8
    assert model.contrast({"slope": 1}).estimate == pytest.approx(
        (y @ centred).mean() / (centred @ centred)
    )


def test_detectable_difference_has_the_power_that_it_claims():
    # One sample of n has n − 1 degrees of freedom, which statsmodels can do.
    expected = TTestPower().solve_power(None, nobs=21, alpha=0.05, power=0.8)
    one_sample = Contrast(0.0, 1 / math.sqrt(21), 20)
    assert one_sample.detectable() == pytest.approx(expected, rel=1e-4)


def test_equivalence_is_the_ninety_per_cent_interval_within_the_bounds():
    for value in np.linspace(-0.6, 0.6, 49):
        contrast = Contrast(value, 0.12, 20)
        low, high = stats.t.interval(0.9, contrast.df, contrast.estimate, contrast.error)
        assert (contrast.equivalence_p_value(0.5) < 0.05) == (low > -0.5 and high < 0.5)


def test_bootstrap_agrees_with_the_error_of_means_over_images_and_seeds():
    rng = np.random.default_rng(6)
    correct = {(c, s): rng.random(500) < p for c, p in (("a", 0.9), ("b", 0.8)) for s in range(8)}
    one_seed = {("once", 0): correct["b", 0]}
    contrasts = [difference("a", other) for other in ("b", "absent", "once")]
    (low, high), *others = bootstrap_intervals(correct | one_seed, contrasts, draws=2000)
    assert others == [None, None]
    found = np.stack([1.0 * correct["a", s] - correct["b", s] for s in range(8)])
    assert (low + high) / 2 == pytest.approx(100 * found.mean(), abs=0.2)
    # The entries are independent, so each of the three terms estimates the variance of their mean:
    # this bootstrap counts it three times.
    variance = found.mean(0).var() / 500 + found.mean(1).var() / 8 + found.var() / 4000
    assert high - low == pytest.approx(100 * 2 * 1.96 * math.sqrt(variance), rel=0.2)


def test_bootstrap_moves_images_of_all_columns_together():
    hard = np.arange(200) < 100
    correct = {(c, s): hard for c in ("a", "b") for s in range(3)}
    assert bootstrap_intervals(correct, [difference("a", "b")], draws=200) == [(0.0, 0.0)]


@pytest.mark.parametrize(
    ("accuracies", "selected"),
    [
        ({0.003: 0.90, 0.01: 0.91, 0.03: 0.90}, 0.01),
        ({0.003: 0.9100, 0.01: 0.9080, 0.03: 0.9000}, 0.01),  # tied: one error is 0.0026
        ({0.003: 0.9100, 0.01: 0.9070, 0.03: 0.9000}, 0.003),
        ({0.003: 0.9090, 0.01: 0.9000, 0.03: 0.9100}, 0.003),
        ({0.003: 0.9000, 0.01: 0.9000, 0.03: 0.9100}, 0.03),
    ],
)
def test_rate_is_selected_as_the_protocol_says(accuracies, selected):
    assert select_rate(accuracies, 12_000) == selected
