"""Statistics of accuracies: intervals of means, paired differences, Holm's correction.

All intervals and tests are Student's and two-sided. Accuracies and their differences are in per
cent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from scipy import stats

CONFIDENCE = 0.95

# Differences of the same number of images can differ in their last bits by rounding. A spread below
# this bound counts as zero, so that it cannot lead to a p-value of almost zero.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval and the test of the mean against zero.

    Attributes:
        mean: Mean of the values, in their unit.
        half_width: Half of the interval's width; None for a single value.
        n: The number of values.
        p_value: P-value of the t-test of mean zero; None for a single value and for values that
            are all equal. It is meaningful for differences only.
    """

    mean: float
    half_width: float | None
    n: int
    p_value: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval; None for a single value."""
        if self.half_width is None:
            return None
        return self.mean - self.half_width, self.mean + self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """Computes the mean of values, its 95 % interval, and the p-value of mean zero.

    The interval is ``mean ± t(0.975, n − 1) · s / √n``. Given differences of pairs, the p-value is
    that of the paired t-test (Student 1908, "The probable error of a mean").

    Args:
        values: At least one, finite.

    Raises:
        ValueError: There are no values.

    Example:
        >>> estimate([90.0, 91.0, 92.0])
        Estimate(mean=91.0, half_width=2.484..., n=3, p_value=4.02...e-05)
        >>> estimate([91.0])
        Estimate(mean=91.0, half_width=None, n=1, p_value=None)
    """
    n = len(values)
    if not n:
        raise ValueError("the mean of no values is not defined")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, n, None)
    error = float(stats.sem(values))
    if error * math.sqrt(n) <= ROUNDING:
        return Estimate(mean, 0.0, n, None)
    half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return Estimate(mean, half_width, n, 2 * float(stats.t.sf(abs(mean) / error, n - 1)))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate:
    """Computes the mean difference over the seeds that both arguments have, with its t-test.

    Args:
        values: Values by seed.
        baseline: The baseline's values by seed. At least one seed must be in both arguments.

    Example:
        >>> paired_difference({0: 91.0, 1: 92.0, 2: 94.0}, {2: 91.0, 1: 90.0, 0: 90.0, 7: 1.0})
        Estimate(mean=2.0, half_width=2.484..., n=3, p_value=0.074...)
    """
    return estimate([values[seed] - baseline[seed] for seed in values if seed in baseline])


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for multiple testing by Holm's step-down method; keeps their order.

    Rejecting the hypotheses with an adjusted value below 0.05 keeps the probability of one or more
    false rejections below 5 %, however the tests depend on each other (Holm 1979, "A simple
    sequentially rejective multiple test procedure").

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    if not len(p_values):
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]
