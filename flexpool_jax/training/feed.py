"""Hands the examples of a split to the compiled steps, part by part.

A part is what one call of a compiled step takes of a split besides `Feed.data`. Which examples it
stands for is a function of the seed, the epoch and the step alone, so that a resumed run sees the
same batches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np

from flexpool_jax.data import Split
from flexpool_jax.training import processes
from flexpool_jax.training.setup import Setup, replicate
from flexpool_jax.training.steps import DeviceSplit, Part


@dataclasses.dataclass(frozen=True)
class Feed:
    """The source of a split's batches.

    Attributes:
        data: the split, whole on every local device; parts are indices into it.
    """

    data: DeviceSplit

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.data.labels)

    @property
    def labels(self) -> np.ndarray:
        """int32 [N], of all examples in order."""
        return np.asarray(self.data.labels)

    def epoch(
        self, setup: Setup, epoch: int, start: int, steps_from: Callable[[int], int]
    ) -> Iterator[Part]:
        """The parts of a training epoch in order, one for each call of ``setup.train_steps``.

        Args:
            setup: says the seed and the sizes.
            epoch: from 0.
            start: steps of the epoch that are done.
            steps_from: how many steps the part has that begins at a step, see `Pace.steps_from`.

        Yields:
            int32 [local devices, steps, batch size / devices], this process's part.
        """
        batch_size, count = setup.config.batch_size, setup.steps_per_epoch
        order = np.random.default_rng((setup.config.seed, epoch)).permutation(len(self))
        shape = (count, jax.device_count(), -1)
        indices = order[: count * batch_size].astype(np.int32).reshape(shape)
        while start < count:
            end = start + steps_from(start)
            yield indices[start:end].swapaxes(0, 1)[processes.local_devices()]
            start = end

    def once(self, batch_size: int) -> Iterator[Part]:
        """The parts of a pass over every example in order, one for each call of an eval step.

        Args:
            batch_size: see `eval_batches`.

        Yields:
            int32 [local devices, examples of a device], this process's part; -1 fills the last
            batch up.
        """
        for part in eval_batches(len(self), batch_size):
            yield part[processes.local_devices()]


def on_devices(split: Split) -> Feed:
    """Puts a split whole on every local device."""
    return Feed(DeviceSplit(*replicate((split.images, split.labels))))


def eval_batches(count: int, batch_size: int) -> np.ndarray:
    """The indices that evaluate each of ``count`` examples once.

    Args:
        count: examples.
        batch_size: at most; rounded up to a multiple of the number of devices.

    Returns:
        int32 [batches, devices, examples of a device], in order; -1 fills the last batch up.

    Example:
        >>> eval_batches(3, 1).shape == (-(-3 // jax.device_count()), jax.device_count(), 1)
        True
    """
    devices = jax.device_count()
    per_device = math.ceil(min(batch_size, count) / devices)
    batches = math.ceil(count / (devices * per_device))
    indices = np.full(batches * devices * per_device, -1, np.int32)
    indices[:count] = np.arange(count)
    return indices.reshape(batches, devices, per_device)
