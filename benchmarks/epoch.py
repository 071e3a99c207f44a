"""Claim: the device waits at most 1 % of the time, and 100 epochs take at most 60 s on an H200.

    python -m benchmarks.epoch                                                  # digits, 3 epochs
    python -m benchmarks.epoch --config=configs/fashion_mnist.py:flexpool,reg --epochs=1 \\
        -- --config.dataset.raw_dir=FOLDER
    python -m benchmarks.epoch --config=configs/cifar10.py --epochs=100 -- --config.dtype=bfloat16

First measures `launch.py` as a user starts it, from start to end: imports, compilation, training,
evaluation, checkpoints, logs; once with an empty cache of compiled programs, and once with that of
the first run. Then repeats the training and observes every dispatch of steps: if a dispatch begins
after the previous one has ended, the device has waited, for data or for other work of the host.
Waiting between two epochs, where the model is evaluated and saved, is counted separately. Arguments
after `--` are passed to launch.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
import queue
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import launches, report, workers


class Watch:
    """Wraps `Setup.train_steps`, and records when each dispatch began and when its steps ended."""

    def __init__(self, train_steps: Any) -> None:
        self._train_steps = train_steps
        self._outputs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.began: list[float] = []
        self.ended: list[float] = []
        threading.Thread(target=self._follow, daemon=True).start()

    def __call__(self, *arguments: Any) -> Any:
        self.began.append(time.perf_counter())
        state, metrics = self._train_steps(*arguments)
        self._outputs.put(metrics)
        return state, metrics

    def _follow(self) -> None:
        import jax

        while True:
            jax.block_until_ready(self._outputs.get())
            self.ended.append(time.perf_counter())

    def shares(self, dispatches_per_epoch: int) -> tuple[float, float]:
        """Returns the share of waiting inside epochs, and the mean seconds between two epochs."""
        while len(self.ended) < len(self.began):
            time.sleep(0.01)
        waits, between, busy = 0.0, [], 0.0
        # The first dispatch includes compilation.
        for index in range(1, len(self.began)):
            wait = max(0.0, self.began[index] - self.ended[index - 1])
            if index % dispatches_per_epoch == 0:
                between.append(wait)
            else:
                waits += wait
            busy += self.ended[index] - max(self.began[index], self.ended[index - 1])
        return waits / (waits + busy), sum(between) / max(1, len(between))


def watch(arguments: Sequence[str]) -> None:
    """Runs as a worker: launch.py's training with `Watch`; answers with `Watch.shares`."""
    launch = importlib.import_module("launch")
    run = importlib.import_module("flexpool_jax.training.run")
    watched: list[tuple[Watch, int]] = []
    set_up = run.set_up

    def set_up_watched(*arguments: Any) -> Any:
        setup = set_up(*arguments)
        watch = Watch(setup.train_steps)
        watched.append((watch, math.ceil(setup.steps_per_epoch / setup.steps_per_dispatch)))
        return dataclasses.replace(setup, train_steps=watch)

    vars(run)["set_up"] = set_up_watched
    if status := launch.main(arguments):
        raise SystemExit(status)
    watch, dispatches_per_epoch = watched[-1]
    workers.reply(watch.shares(dispatches_per_epoch))


def main() -> None:
    """Trains with a cold and with a warm cache, then watched, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/digits.py:flexpool,reg")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("flags", nargs="*", help="for launch.py, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = [
            *arguments.flags,
            launches.cache_flag(folder / "cache"),
            f"--config.num_epochs={arguments.epochs}",
        ]
        launches.launch(arguments.config, folder / "unused", [*flags, "--mode=prepare"])
        cold = launches.launch(arguments.config, folder / "cold", flags)
        warm = launches.launch(arguments.config, folder / "warm", flags)
        result = json.loads((folder / "warm" / "result.json").read_text())
        command = launches.command(arguments.config, folder / "watched", flags)
        contestant = workers.Contestant("watched", {"arguments": command[2:]})
        share, between = workers.only_answer("benchmarks.epoch", contestant)
    report.print_table(
        f"{arguments.epochs} epochs of {arguments.config}, end to end",
        ["", "value"],
        [
            ["seconds from start to end, cold compile cache", f"{cold:.1f}"],
            ["seconds from start to end, warm compile cache", f"{warm:.1f}"],
            ["images/s while training, warm", f"{result['images_per_second']:,.0f}"],
            ["device waiting inside epochs, share of the time", f"{100 * share:.2f} %"],
            ["device waiting between two epochs (evaluation, saving), seconds", f"{between:.2f}"],
        ],
    )


if __name__ == "__main__":
    options = workers.worker_options()
    main() if options is None else watch(**options)
