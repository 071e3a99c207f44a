"""Passes the examples of a split to the compiled steps, part by part.

A part is the argument of a compiled step that selects its examples. It holds indices into
`Feed.data`, the split on the devices; if the split is streamed, it holds the images themselves.
Only the seed, the epoch and the step determine which examples a part selects. So a resumed run sees
the same batches, and so does a run with the other placement of the data.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from flexpool_jax.data import Split
from flexpool_jax.data.stored import read_ahead
from flexpool_jax.training import processes
from flexpool_jax.training.setup import Setup, replicate
from flexpool_jax.training.steps import AXIS, DeviceSplit, Part

HostBatch = dict[str, np.ndarray]


class Feed:
    """The source of a split's batches.

    Args:
        split: the examples.
        is_streamed: False copies the whole split to every local device. True leaves the split where
            it is, and threads read its batches ahead of the steps.

    Attributes:
        data: the split on the devices, or None if it is streamed.
    """

    def __init__(self, split: Split, is_streamed: bool = False) -> None:
        self._split = split
        self.data: DeviceSplit | None = None
        if not is_streamed:
            self.data = DeviceSplit(*replicate((np.asarray(split.images), split.labels)))
        # Reads the batches of training ahead, across the ends of epochs; it yields that of
        # `_next_step` next.
        self._ahead: Generator[HostBatch] | None = None
        self._next_step = 0

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._split)

    @property
    def labels(self) -> np.ndarray:
        """The labels of all examples in order, int32 [N]."""
        return self._split.labels

    def epoch(self, setup: Setup, epoch: int, spans: Iterable[slice]) -> Iterator[Part]:
        """Yields the parts of a training epoch in order, one for each call of `Setup.train_steps`.

        Args:
            setup: set-up that holds the seed and the sizes.
            epoch: number of the epoch, from 0.
            spans: the steps of each part, see `Pace.spans`; each is computed only when its part is
                requested.

        Yields:
            The part of this process. For data on the devices, indices int32 [local devices, steps,
            batch size / devices]. For streamed data, ``image`` uint8 and ``label`` int32 with the
            same leading axes.
        """
        if self.data is None:
            yield from _uploaded(self._streamed(setup, epoch, spans))
            return
        indices = _epoch_indices(setup, len(self), epoch)
        for span in spans:
            yield indices[span].swapaxes(0, 1)

    def once(self, batch_size: int) -> Iterator[Part]:
        """Yields the parts of one pass over all examples in order, one for each evaluation step.

        Args:
            batch_size: see `eval_batches`.

        Yields:
            The part of this process. For data on the devices, indices int32 [local devices,
            examples of a device]; -1 fills up the last batch. For streamed data, ``image``,
            ``label`` and ``valid`` with the same leading axes.
        """
        batches = eval_batches(len(self), batch_size)[:, processes.local_devices()]
        if self.data is not None:
            yield from batches
            return
        yield from _uploaded(read_ahead(lambda i: _read(self._split, batches[i]), len(batches)))

    def close(self) -> None:
        """Ends the threads that read ahead."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _streamed(self, setup: Setup, epoch: int, spans: Iterable[slice]) -> Iterator[HostBatch]:
        count = setup.steps_per_epoch

        def read(step: int) -> HostBatch:
            indices = _epoch_indices(setup, len(self), step // count)[step % count]
            batch = _read(self._split, indices)
            return {"image": batch["image"], "label": batch["label"]}

        for span in spans:
            step = epoch * count + span.start
            if self._ahead is None or self._next_step != step:
                self.close()
                self._ahead = read_ahead(read, setup.total_steps, step)
            batches = [next(self._ahead) for _ in range(span.start, span.stop)]
            self._next_step = step + len(batches)
            yield jax.tree.map(_stacked, *batches)


def _read(split: Split, indices: np.ndarray) -> HostBatch:
    """Reads the examples at indices of any shape; index -1, only at the end, is not valid."""
    valid = indices >= 0
    image = split.images[indices[valid]]
    if len(image) < indices.size:
        missing = [(0, indices.size - len(image)), (0, 0), (0, 0), (0, 0)]
        image = np.pad(image, missing)
    label = np.where(valid, split.labels[indices], np.int32(0))
    return {
        "image": image.reshape(*indices.shape, *image.shape[1:]),
        "label": label,
        "valid": valid,
    }


def _stacked(*steps: np.ndarray) -> np.ndarray:
    """Stacks arrays [devices, ...] of steps to [devices, steps, ...]; one step is not copied."""
    return np.stack(steps, axis=1) if len(steps) > 1 else steps[0][:, None]


def _uploaded(parts: Iterator[HostBatch]) -> Iterator[Any]:
    """Copies parts to the devices; the loop asks for a part during the step before it."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
    by_device = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
    for part in parts:
        yield jax.device_put(part, by_device)


# The orders of two epochs are cached, because batches of the next epoch are read ahead.
@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count).astype(np.int32)


def _epoch_indices(setup: Setup, count: int, epoch: int) -> np.ndarray:
    """This process's indices for an epoch: int32 [steps, local devices, size / devices]."""
    steps, size = setup.steps_per_epoch, setup.config.batch_size
    order = _order(setup.config.seed, epoch, count)[: steps * size]
    return order.reshape(steps, jax.device_count(), -1)[:, processes.local_devices()]


def eval_batches(count: int, batch_size: int) -> np.ndarray:
    """Returns batches of indices that hold each of ``count`` examples once.

    Args:
        count: number of examples.
        batch_size: largest number of examples in a batch; rounded up to a multiple of the number of
            devices.

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
