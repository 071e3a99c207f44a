"""Mapping a function over many items in threads, in order and without running far ahead."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Each may hold a large decoded image, so not as many as a big machine has cores.
_MAX_THREADS = 8


def ordered_map(function: Callable[[T], R], items: Iterable[T], ahead: int = 64) -> Iterator[R]:
    """Yields function(item) for each item, computed in threads; for functions that release the GIL.

    `ThreadPoolExecutor.map` would take all items at once and keep all results that nobody has
    asked for yet; here at most `ahead` of them wait.

    Example:
        >>> list(ordered_map(str.upper, "abc"))
        ['A', 'B', 'C']
    """
    iterator = iter(items)
    workers = min(_MAX_THREADS, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        waiting = collections.deque(
            pool.submit(function, item) for item in itertools.islice(iterator, ahead)
        )
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(
                    pool.submit(function, item) for item in itertools.islice(iterator, 1)
                )
                yield result
        finally:
            # An error or a consumer that stops early: what has not begun never does.
            for future in waiting:
                future.cancel()
