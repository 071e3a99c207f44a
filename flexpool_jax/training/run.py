"""`Run`: what a process holds open while it works on a run, and what it reports of its steps."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from flexpool_jax.training import console, metrics
from flexpool_jax.training.interrupts import StopRequest
from flexpool_jax.training.resume import Progress
from flexpool_jax.training.saving import Saver, Snapshot, take_snapshot
from flexpool_jax.training.setup import Setup
from flexpool_jax.training.steps import TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """What a process holds open while it works on a run.

    Attributes:
        started: the present minus the seconds of training so far, by `time.monotonic`.
    """

    setup: Setup
    workdir: Path
    progress: Progress
    meter: metrics.Meter
    saver: Saver
    log: metrics.MetricsWriter
    bar: console.ProgressBar
    stop: StopRequest
    started: float

    def report_steps(self) -> None:
        """Shows the steps that came back, and writes a line about them where one is due."""
        meter, every = self.meter, self.setup.config.log_every_steps
        self.bar.show(meter)
        logged = meter.step - len(meter.rows)
        ends_epoch = meter.step % self.setup.steps_per_epoch == 0
        if ends_epoch or logged // every < meter.step // every:
            self.write_steps()

    def write_steps(self) -> None:
        """Writes a line about the steps that came back since the last line."""
        if self.meter.rows:
            self.log.write(
                step=self.meter.step,
                epoch=self.meter.step / self.setup.steps_per_epoch,
                split="train",
                images_per_second=self.meter.images_per_second,
                **self.meter.means(),
            )
            self.meter.rows.clear()

    def snapshot(self, state: TrainState, accuracy: float | None = None) -> Snapshot:
        """Copies a state to the host, with the progress that belongs to it."""
        self.progress.metrics_position = self.log.position()
        self.progress.seconds = time.monotonic() - self.started
        return take_snapshot(state, self.progress, accuracy)
