"""Claim: between two epochs' steps an accelerator waits at most 1 % of an epoch for the host.

    python -m benchmarks.between_epochs

No accelerator is needed: the device is simulated and only waits. A dispatch takes as long as an
H100 is expected to need for 50 steps of ResNet20 in bfloat16 (see ahead_of_time), or ten times as
long; its results are available after this time. The host does all of its real work on a real
state: it evaluates, logs, hashes and saves every epoch. In the order "in turn", it does so before
the next epoch is dispatched, as on a CPU. In the order "next epoch first", it does so afterwards.
The first two epochs are not counted: the first compiles, and the second is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import report

EVAL_BATCH_SECONDS = 0.002


class Later:
    """A result that is available when the simulated device has finished its work."""

    def __init__(self, value: Any, ready: float) -> None:
        self._value, self._ready = value, ready

    def block_until_ready(self) -> None:
        """Waits for the device."""
        time.sleep(max(0.0, self._ready - time.monotonic()))

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self.block_until_ready()
        return self._value


class Device:
    """A simulated device: does one piece of work after another, and records its idle time.

    Attributes:
        waits: seconds without work before the steps of each dispatch, in order.
    """

    def __init__(self, dispatch_seconds: float) -> None:
        self.waits: list[float] = []
        self._dispatch_seconds, self._free, self._idle = dispatch_seconds, 0.0, 0.0

    def _work(self, seconds: float) -> None:
        now = time.monotonic()
        self._idle += max(0.0, now - self._free)
        self._free = max(now, self._free) + seconds

    def train_steps(self, state: Any, data: Any, part: Any, key: Any) -> Any:
        """Replaces `Setup.train_steps`."""
        import numpy as np

        self._work(self._dispatch_seconds)
        self.waits.append(self._idle)
        self._idle = 0.0
        steps = part.shape[1]
        names = ("loss", "accuracy", "learning_rate")
        values = {name: Later(np.ones(steps, np.float32), self._free) for name in names}
        return dataclasses.replace(state, step=state.step + steps), values

    def eval_step(self, variables: Any, data: Any, part: Any) -> Any:
        """Replaces `Setup.eval_step`."""
        import numpy as np

        self._work(EVAL_BATCH_SECONDS)
        # The accuracy rises with every epoch, so that every epoch is a new best and is saved.
        is_wrong = np.asarray(part) >= len(self.waits)
        logits = np.eye(10, dtype=np.float32)[(np.asarray(data.labels)[part] + is_wrong) % 10]
        return {}, {"logits": Later(logits, self._free)}


def waits(dispatch_seconds: float, in_turn: bool, epochs: int, workdir: Path) -> list[float]:
    """Trains; returns the device's idle seconds before each epoch except the first two."""
    import jax
    import numpy as np

    from configs import cifar10
    from flexpool_jax import train
    from flexpool_jax.data import Dataset, Split
    from flexpool_jax.training import run

    device, set_up = Device(dispatch_seconds), run.set_up

    def set_up_for_device(*arguments: Any) -> Any:
        setup = set_up(*arguments)
        return dataclasses.replace(
            setup, train_steps=device.train_steps, eval_step=device.eval_step
        )

    splits = [
        Split(np.zeros((count, 32, 32, 3), np.uint8), np.zeros(count, np.int32))
        for count in (50_000, 10_000)
    ]
    mean = np.full(3, 0.5, np.float32)
    dataset = Dataset("cifar10", *splits, tuple("0123456789"), mean, mean)
    config = cifar10.get_config("flexpool,reg,dropout,sac,steps_per_dispatch=50")
    config.num_epochs = epochs
    with (
        mock.patch.object(jax, "default_backend", return_value="cpu" if in_turn else "gpu"),
        mock.patch.object(run, "set_up", set_up_for_device),
    ):
        train(config, workdir, dataset)
    return device.waits[2:]


def main() -> None:
    """Trains in both orders and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.25, 2.5])
    arguments = parser.parse_args()
    rows = []
    for seconds in arguments.seconds:
        for order, in_turn in (("in turn", True), ("next epoch first", False)):
            with tempfile.TemporaryDirectory() as folder:
                found = waits(seconds, in_turn, arguments.epochs, Path(folder) / "run")
            median, highest = statistics.median(found), max(found)
            share = f"{100 * median / seconds:.2f} %"
            rows.append(
                [f"{seconds} s, {order}", f"{1e3 * median:.1f}", f"{1e3 * highest:.1f}", share]
            )
    report.print_table(
        "An accelerator between two epochs, each evaluated and saved",
        ["an epoch's steps take", "ms waiting, median", "highest", "median, share of an epoch"],
        rows,
    )


if __name__ == "__main__":
    main()
