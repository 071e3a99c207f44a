"""The statistics of a handful of runs: intervals of means, paired differences, many comparisons.

All intervals and tests are Student's, two-sided, at 95 %. They speak of the spread from seed to
seed; that the test images are a sample too is not in them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from scipy import stats

CONFIDENCE = 0.95

# Accuracies that differ by the same number of images differ by rounding in their last bits. A
# spread as small as that is none, and must not become a p-value of zero.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is.

    Attributes:
        mean: Of the values, in their unit.
        half_width: Of the 95 % interval around it; None for a single value, which has none.
        n: The number of values.
    """

    mean: float
    half_width: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class Difference(Estimate):
    """The mean of paired differences.

    Attributes:
        p_value: Of the paired t-test of no difference; None where there is no spread to test by: a
            single pair, or differences that are all the same.
    """

    p_value: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of values and its 95 % interval, mean ± t(0.975, n − 1) · s / √n.

    Args:
        values: At least one, finite.

    Example:
        >>> estimate([90.0, 91.0, 92.0])
        Estimate(mean=91.0, half_width=2.484..., n=3)
        >>> estimate([91.0])
        Estimate(mean=91.0, half_width=None, n=1)
    """
    n = len(values)
    if not n:
        raise ValueError("no values, hence no mean")
    mean = math.fsum(values) / n
    error = _standard_error(values, mean)
    if error is None:
        return Estimate(mean, None, n)
    return Estimate(mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error, n)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """The mean difference of pairs, its 95 % interval and the p-value of the paired t-test.

    Args:
        values: One for each pair.
        baseline: Likewise, in the same order.

    Example:
        >>> paired_difference([91.0, 92.0, 94.0], [90.0, 90.0, 91.0])
        Difference(mean=2.0, half_width=2.484..., n=3, p_value=0.074...)
    """
    differences = [value - other for value, other in zip(values, baseline, strict=True)]
    found = estimate(differences)
    error = _standard_error(differences, found.mean)
    p_value = None
    if error:
        p_value = 2 * float(stats.t.sf(abs(found.mean) / error, found.n - 1))
    return Difference(found.mean, found.half_width, found.n, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for their number by Holm's step-down method (1979), in the order given.

    Rejecting where the adjusted value is below 0.05 keeps the chance of even one false rejection
    among all of them below 5 %, whatever their dependence.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted


def _standard_error(values: Sequence[float], mean: float) -> float | None:
    """The deviation over √n; None for a single value, 0 where only rounding tells values apart."""
    n = len(values)
    if n < 2:
        return None
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return deviation / math.sqrt(n) if deviation > _ROUNDING else 0.0
