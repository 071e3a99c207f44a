"""A linear model with blocks, its contrasts with equivalence and power, and their bootstrap.

All intervals and tests are Student's and two-sided unless said otherwise. Accuracies and their
differences are in per cent. docs/evidence.md says which of these functions a claim rests on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

from flexpool_jax.report.analysis import CONFIDENCE, ROUNDING


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A weighted sum of a linear model's coefficients, such as the difference of two columns.

    Attributes:
        estimate: The estimated sum, in the unit of the model's values.
        error: The standard error of the estimate.
        df: The residual degrees of freedom.
    """

    estimate: float
    error: float
    df: int

    def interval(self) -> tuple[float, float]:
        """Returns both ends of the 95 % interval, ``estimate ± t(0.975, df) · error``."""
        half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.df)) * self.error
        return self.estimate - half_width, self.estimate + half_width

    @property
    def p_value(self) -> float:
        """The two-sided p-value of the contrast being zero."""
        return 2 * float(stats.t.sf(abs(self.estimate) / self.error, self.df))

    def equivalence_p_value(self, bound: float) -> float:
        """The p-value of two one-sided tests (TOST) of the contrast lying within ± bound.

        It is the larger of the p-values of "≤ −bound" and "≥ bound", and below 0.05 exactly if the
        90 % interval lies within the bounds (Schuirmann 1987, J. Pharmacokin. Biopharm. 15).

        Example:
            >>> Contrast(0.1, 0.1, 20).equivalence_p_value(0.5) < 0.05
            True
        """
        room = bound - abs(self.estimate)
        return float(stats.t.sf(room / self.error, self.df))

    def detectable(self) -> float:
        """The true difference that the two-sided test at level 0.05 finds with a power of 0.8.

        The difference d solves ``P(T > t(0.975, df)) = 0.8``, where T has the noncentral t
        distribution with df degrees of freedom and noncentrality ``d / error``. The other tail of
        the test is left out, since its probability is below 1e-4 (Cohen 1988, "Statistical power
        analysis"; the program in docs/evidence.md).

        Example:
            >>> round(Contrast(0.0, 0.2 * (2 / 6) ** 0.5, 20).detectable(), 2)
            0.34
        """
        t = stats.t.ppf(0.975, self.df)
        return self.error * float(
            optimize.brentq(lambda d: stats.nct.sf(t, self.df, d) - 0.8, 0.01, 100)
        )


class BlockModel:
    """A linear model by least squares, ``value = terms · β + block``, with one residual variance.

    With a term for each column and the seeds as blocks, it is the primary analysis of
    docs/evidence.md: a two-way layout without interaction (Fisher's randomised blocks). Cells may
    be missing: least squares uses every value that is there.

    Args:
        values: One value for each run.
        terms: For each run the values of its regressors by name; a name that is absent counts as 0.
        blocks: The block of each run.

    Attributes:
        df: The residual degrees of freedom.
        sd: The residual standard deviation.

    Raises:
        ValueError: No residual degrees of freedom are left, or all residuals are zero.

    Example:
        >>> model = BlockModel.of_columns({
        ...     ("avg", 0): 91.0, ("avg", 1): 92.0, ("avg", 2): 90.0,
        ...     ("flexpool", 0): 91.5, ("flexpool", 1): 92.7, ("flexpool", 2): 90.9})
        >>> contrast = model.contrast({"flexpool": 1, "avg": -1})
        >>> round(contrast.estimate, 3), model.df, round(contrast.p_value, 3)
        (0.7, 2, 0.026)
    """

    def __init__(
        self,
        values: Sequence[float],
        terms: Sequence[Mapping[str, float]],
        blocks: Sequence[object],
    ) -> None:
        import pandas as pd
        import statsmodels.api as sm

        regressors = pd.DataFrame(list(terms)).fillna(0.0)
        dummies = pd.get_dummies(pd.Series(list(blocks), dtype=object), dtype=float).iloc[:, 1:]
        design = np.hstack([regressors.to_numpy(float), dummies.to_numpy(float)])
        self._names = list(regressors.columns)
        self._width = design.shape[1]
        self._fit: Any = sm.OLS(np.asarray(values, float), design).fit()
        # The matrix that projects a contrast onto the contrasts that the runs can estimate.
        self._estimable = np.linalg.pinv(design) @ design
        self.df = int(self._fit.df_resid)
        if self.df < 1:
            raise ValueError("too few runs: no residual degrees of freedom")
        self.sd = math.sqrt(self._fit.mse_resid)
        if self.sd < ROUNDING:
            raise ValueError("the runs of each column differ by their seeds alone: no residuals")

    @classmethod
    def of_columns(cls, accuracies: Mapping[tuple[str, int], float]) -> BlockModel:
        """Fits the model accuracy = column + seed.

        Args:
            accuracies: Accuracies by column and seed.
        """
        return cls(
            list(accuracies.values()),
            [{column: 1.0} for column, _ in accuracies],
            [seed for _, seed in accuracies],
        )

    def contrast(self, weights: Mapping[str, float]) -> Contrast | None:
        """Estimates a weighted sum of coefficients.

        Args:
            weights: Weights by term, e.g. ``{"flexpool": 1, "avg": -1}``.

        Returns:
            The contrast; None if the runs cannot estimate it. This is so if no run has one of the
            terms, or if the runs of two terms share no seed, directly or through other columns.
        """
        if not weights.keys() <= set(self._names):
            return None
        row = np.zeros(self._width)
        for name, weight in weights.items():
            row[self._names.index(name)] = weight
        if not np.allclose(row @ self._estimable, row, atol=1e-8):
            return None
        test = self._fit.t_test(row)
        return Contrast(float(test.effect.item()), float(test.sd.item()), self.df)


def bootstrap_intervals(
    correct: Mapping[tuple[str, int], np.ndarray],
    contrasts: Sequence[Mapping[str, float]],
    *,
    draws: int = 10_000,
) -> list[tuple[float, float] | None]:
    """Bootstraps contrasts over seeds × images: 95 % percentile intervals in per cent.

    Each draw takes seeds and, independently of them, test images with replacement, and averages
    over both. All columns and contrasts use the same draws. The noise of single predictions counts
    three times in the variance, so the interval is too wide where this noise is most of the spread
    (Owen 2007, "The pigeonhole bootstrap", Ann. Appl. Stat. 1).

    Args:
        correct: For each column and seed, whether each test image was classified correctly: bool
            [N], the same images in the same order.
        contrasts: For each contrast, its weights by column.
        draws: The number of draws.

    Returns:
        An interval for each contrast; None if fewer than two seeds have all of its columns.

    Example:
        >>> right, half = np.ones(100, bool), np.arange(100) < 50
        >>> runs = {("a", 0): right, ("a", 1): right, ("b", 0): half, ("b", 1): half}
        >>> ((low, high),) = bootstrap_intervals(runs, [{"a": 1, "b": -1}], draws=1000)
        >>> round(low), round(high)
        (40, 60)
    """
    rng = np.random.default_rng(0)
    seeds = sorted({seed for _, seed in correct})
    weighted: list[np.ndarray] = []
    has_all = np.zeros((len(contrasts), len(seeds)), bool)
    for i, weights in enumerate(contrasts):
        for j, block in enumerate(seeds):
            if all((column, block) in correct for column in weights):
                has_all[i, j] = True
                terms = [weight * correct[column, block] for column, weight in weights.items()]
                weighted.append(np.sum(terms, axis=0))
    if not weighted:
        return [None] * len(contrasts)
    differences = np.stack(weighted)
    images = differences.shape[1]
    means = np.empty((draws, len(contrasts)))
    for start in range(0, draws, 100):
        size = min(100, draws - start)
        drawn = rng.integers(images, size=(size, images))
        counts = np.stack([np.bincount(row, minlength=images) for row in drawn])
        by_seed = np.zeros((size, *has_all.shape))
        by_seed[:, has_all] = counts @ differences.T / images
        times = rng.multinomial(len(seeds), [1 / len(seeds)] * len(seeds), size=size)
        times = times[:, None, :] * has_all
        with np.errstate(invalid="ignore"):
            means[start : start + size] = (by_seed * times).sum(-1) / times.sum(-1)
    # The mean is NaN if no seed of the draw has all columns.
    return [
        tuple(np.nanpercentile(100 * means[:, i], [2.5, 97.5]).tolist()) if enough else None
        for i, enough in enumerate(has_all.sum(1) > 1)
    ]
