"""Chooses the number of steps in a dispatch: many, for speed, but at most a few seconds' worth.

A program is compiled for each number of steps, so only a few different numbers are used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

# A request to stop, or a loss that is NaN, is seen after two dispatches at most.
LONGEST_SECONDS = 3.0


def longest_dispatch(steps_per_epoch: int, limit: int) -> int:
    """Chooses the number of steps in a dispatch.

    Args:
        steps_per_epoch: number of steps in an epoch, at least 1.
        limit: largest number of steps in a dispatch.

    Returns:
        The largest divisor of steps_per_epoch up to the limit, so that one compiled program is
        enough. If this divisor is less than half of the limit, returns the limit; then the last
        dispatch of each epoch has fewer steps.

    Example:
        >>> longest_dispatch(390, 50), longest_dispatch(97, 50), longest_dispatch(11, 50)
        (39, 50, 11)
    """
    limit = min(limit, steps_per_epoch)
    divisor = _largest_divisor(steps_per_epoch, limit)
    return divisor if 2 * divisor >= limit else limit


def _largest_divisor(number: int, limit: int) -> int:
    return next(k for k in range(limit, 0, -1) if number % k == 0)


@dataclasses.dataclass
class Pace:
    """The number of steps in each dispatch.

    Attributes:
        steps_per_epoch: number of steps in an epoch; no dispatch crosses the end of an epoch.
        steps: number of steps in a full dispatch.

    Example:
        >>> pace = Pace(steps_per_epoch=97, steps=50)
        >>> [(span.start, span.stop) for span in pace.spans(0)]
        [(0, 50), (50, 97)]
        >>> pace.slow_down(seconds_per_step=0.2)
        >>> [(span.start, span.stop) for span in pace.spans(75)]
        [(75, 80), (80, 90), (90, 97)]
    """

    steps_per_epoch: int
    steps: int

    def spans(self, start: int) -> Iterator[slice]:
        """Yields the steps of each dispatch of an epoch whose first ``start`` steps are done.

        Each span is computed when it is asked for, so `slow_down` acts within an epoch too.
        """
        while start < self.steps_per_epoch:
            stop = min(start - start % self.steps + self.steps, self.steps_per_epoch)
            yield slice(start, stop)
            start = stop

    def slow_down(self, seconds_per_step: float) -> None:
        """Shortens dispatches that would take longer than `LONGEST_SECONDS`.

        The new number of steps divides the old one, so that each step at which a longer dispatch
        begins is also one at which a shorter one begins.
        """
        if self.steps * seconds_per_step > LONGEST_SECONDS:
            limit = int(LONGEST_SECONDS / seconds_per_step)
            self.steps = _largest_divisor(self.steps, max(1, limit))
