"""How many steps a dispatch makes: many, for speed, but not more than take a few seconds.

Each number of steps is a program of its own to compile, so there are few of them.
"""

from __future__ import annotations

import dataclasses

# A request to stop, or a loss that is NaN, is seen after two dispatches at most.
LONGEST_SECONDS = 3.0


def longest_dispatch(steps_per_epoch: int, limit: int) -> int:
    """Chooses the number of steps of a dispatch.

    Args:
        steps_per_epoch: at least 1.
        limit: steps of a dispatch at most.

    Returns:
        The largest divisor of an epoch up to the limit, so that one compiled program is enough; or
        the limit, if that divisor is less than half of it. Then the rest of each epoch is a
        dispatch of its own.

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
    """The number of steps of each dispatch.

    Attributes:
        steps_per_epoch: a dispatch ends with its epoch.
        steps: of a dispatch that no epoch cuts short.
        is_final: whether it stays at that; else the first dispatch is timed, for `slow_down`.

    Example:
        >>> pace = Pace(steps_per_epoch=97, steps=50)
        >>> pace.steps_from(0), pace.steps_from(50)
        (50, 47)
        >>> pace.slow_down(seconds_per_step=0.2)
        >>> pace.steps_from(50), pace.steps_from(90)
        (10, 7)
    """

    steps_per_epoch: int
    steps: int
    is_final: bool = False

    def steps_from(self, start: int) -> int:
        """The steps of the dispatch that begins when ``start`` steps of its epoch are done."""
        return min(self.steps - start % self.steps, self.steps_per_epoch - start)

    def slow_down(self, seconds_per_step: float) -> None:
        """Shortens dispatches that would take longer than `LONGEST_SECONDS`.

        To a divisor of what they were, so that they begin where the longer ones would have too.
        """
        self.is_final = True
        if self.steps * seconds_per_step > LONGEST_SECONDS:
            limit = int(LONGEST_SECONDS / seconds_per_step)
            self.steps = _largest_divisor(self.steps, max(1, limit))
