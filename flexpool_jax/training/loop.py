"""The training loop: steps, evaluation, checkpoints and the log, resumable at any step.

Everything the loop decides follows from the step and the progress stored with each checkpoint;
there is no other state, and so a run that was stopped anywhere goes on as if it had not been.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from pathlib import Path
from typing import Any, NoReturn

import jax
import ml_collections
import orbax.checkpoint as ocp

from flexpool_jax.data import Split
from flexpool_jax.errors import Interrupted, TrainingDiverged
from flexpool_jax.training import checkpoints, reporting
from flexpool_jax.training.experiment import Experiment, evaluate
from flexpool_jax.training.identity import Identity
from flexpool_jax.training.interrupts import StopRequest
from flexpool_jax.training.state import TrainState


@dataclasses.dataclass
class Progress:
    """Where a run stands besides its state; saved as JSON with each checkpoint.

    Attributes:
        evaluated: whether the epoch that ends at this step has been evaluated (or need not be).
        best_accuracy: of the evaluations so far, in [0, 1].
        test: the last evaluation: ``loss``, ``accuracy``.
        seconds: spent in training so far, over all processes that worked on it.
        metrics_position: length in bytes of metrics.jsonl; what lies behind it is written again.
        config_changes: fields that were given another value when the run was continued, see
            `Identity.changes`.
        source_hashes: the code that the run was trained with, see `flexpool_jax.source`; more than
            one if it changed midway.
    """

    evaluated: bool = True
    best_accuracy: float | None = None
    test: dict[str, float] | None = None
    seconds: float = 0.0
    metrics_position: int = 0
    config_changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    source_hashes: list[str] = dataclasses.field(default_factory=list)


class TrainingRun:
    """One process's work on a run.

    Args:
        config: the validated config.
        experiment: built from it.
        identity: which run this is.
        state: fresh or restored, on the host or on one device.
        progress: fresh or restored with it.
        train_split: of the data set, on the devices.
        test_split: likewise; what each evaluation is over.
        manager: the workdir's checkpoints.
        log: where the metrics go.
        display: what a person watches.
        stop: whether the process was told to stop.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        experiment: Experiment,
        identity: Identity,
        state: TrainState,
        progress: Progress,
        train_split: Split,
        test_split: Split,
        manager: ocp.CheckpointManager,
        log: reporting.MetricsWriter,
        display: reporting.Progress,
        stop: StopRequest,
    ) -> None:
        self.config = config
        self.experiment = experiment
        self.identity = identity
        self.step = int(state.step)
        self.state: TrainState = experiment.replicate(state)
        self.progress = progress
        self.train_split = train_split
        self.test_split = test_split
        self.test_name = "validation" if config.dataset.holdout else "test"
        self.manager = manager
        self.workdir = Path(manager.directory).parent
        self.log = log
        self.display = display
        self.stop = stop
        self.images_per_second: float | None = None
        self._saved_step = self.step if progress.evaluated and self.step else -1
        self._started = time.monotonic() - progress.seconds
        # Dispatched steps whose metrics have not been looked at, and looked at but not logged.
        self._pending: collections.deque[tuple[int, dict[str, Any]]] = collections.deque()
        self._unlogged: list[dict[str, float]] = []
        # Images and seconds of training proper: without compilation, evaluation and saving.
        self._timed_images = 0
        self._timed_seconds = 0.0
        self._clock: float | None = None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training so far, over all processes that worked on the run."""
        return time.monotonic() - self._started

    @property
    def epoch(self) -> int:
        """The number of completed epochs."""
        return self.step // self.experiment.steps_per_epoch

    def run(self) -> None:
        """Trains to the end.

        Raises:
            Interrupted: told to stop; the state is saved.
            TrainingDiverged: a loss became NaN or infinite.
        """
        # Until the first step is done, which compiles, there is nothing that could be lost.
        self.stop.saves = False
        self.stop.check()
        while True:
            if not self.progress.evaluated and self.step % self.experiment.steps_per_epoch == 0:
                self._finish_epoch()
            if self.step >= self.experiment.total_steps:
                checkpoints.wait(self.manager)
                return
            self._train_to_end_of_epoch()

    def _train_to_end_of_epoch(self) -> None:
        experiment, chunk = self.experiment, self.experiment.steps_per_dispatch
        indices = experiment.epoch_indices(self.epoch)
        split = self.train_split
        for start in range(self.step % len(indices), len(indices), chunk):
            if self.stop.requested:
                self._save_and_leave()
            # From [steps, devices, B / devices] to a device's own steps first, as pmap takes them.
            chosen = indices[start : start + chunk].swapaxes(0, 1)
            self.state, metrics = experiment.run_steps(
                self.state, split.images, split.labels, chosen, experiment.key
            )
            self.step += chosen.shape[1]
            self.progress.evaluated = False
            self._pending.append((self.step, metrics))
            if start + chunk >= len(indices) or self.step % self.config.log_every_steps < chunk:
                self._collect()
                self._write_train_log()
            else:
                # One dispatch ahead keeps the devices busy while the host looks at the one before.
                self._collect(leave=1)

    def _collect(self, leave: int = 0) -> None:
        """Waits for dispatched steps but the last few, and checks and keeps their metrics."""
        while len(self._pending) > leave:
            last_step, metrics = self._pending.popleft()
            metrics = jax.device_get(metrics)
            self._time(len(metrics["loss"]))
            rows = [
                dict(zip(metrics, map(float, row), strict=True))
                for row in zip(*metrics.values(), strict=True)
            ]
            for step, row in enumerate(rows, start=last_step - len(rows) + 1):
                if not math.isfinite(row["loss"]):
                    self._diverged(step, f"the loss is {row['loss']}")
                self._unlogged.append(row)
            self.display.step(last_step, rows[-1])
            self.stop.saves = True

    def _time(self, steps: int) -> None:
        now = time.monotonic()
        # The first dispatch of a process holds compilation and is not counted, nor is an interval
        # that began with an evaluation or a checkpoint.
        if self._clock is not None:
            self._timed_images += steps * self.experiment.batch_size
            self._timed_seconds += now - self._clock
            self.images_per_second = self._timed_images / self._timed_seconds
        self._clock = now

    def _diverged(self, step: int, what: str) -> NoReturn:
        self.display.close()
        checkpoints.wait(self.manager)
        good = self.manager.latest_step()
        saved = f"the last good checkpoint is step {good}" if good is not None else "none was saved"
        raise TrainingDiverged(
            f"{what} at step {step} (epoch {math.ceil(step / self.experiment.steps_per_epoch)}); "
            f"{saved}; "
            f"the same command with a lower --config.learning_rate goes on from there"
        )

    def _write_train_log(self) -> None:
        if not self._unlogged:
            return
        means = {
            name: math.fsum(row[name] for row in self._unlogged) / len(self._unlogged)
            for name in self._unlogged[0]
        }
        means["learning_rate"] = self._unlogged[-1]["learning_rate"]
        self._unlogged.clear()
        epoch = self.step / self.experiment.steps_per_epoch
        rate = self.images_per_second
        self.log.write(step=self.step, epoch=epoch, split="train", images_per_second=rate, **means)

    def _finish_epoch(self) -> None:
        """Evaluates and saves where that is due."""
        last = self.step >= self.experiment.total_steps
        accuracy = None
        if last or self.epoch % self.config.eval_every_epochs == 0:
            accuracy = self._evaluate(last)
        self.progress.evaluated = True
        best = accuracy is not None and accuracy == self.progress.best_accuracy
        if last or best or self.epoch % self.config.checkpoint_every_epochs == 0:
            self._save(accuracy)
        self._clock = None if self._clock is None else time.monotonic()

    def _evaluate(self, last: bool) -> float:
        started = time.monotonic()
        try:
            evaluation = evaluate(
                self.experiment, self.state.variables, self.test_split, self.stop.check
            )
        except Interrupted:
            self._save_and_leave()
        rate = len(self.test_split.labels) / (time.monotonic() - started)
        result = self.progress.test = evaluation.metrics
        if last:
            reporting.write_predictions(
                self.workdir, jax.device_get(self.test_split.labels), evaluation
            )
            params = jax.device_get(self.state.variables["params"])
            reporting.write_pool_weights(self.workdir, params)
        best = self.progress.best_accuracy
        self.progress.best_accuracy = max(result["accuracy"], -math.inf if best is None else best)
        self.log.write(
            step=self.step,
            epoch=float(self.epoch),
            split=self.test_name,
            images_per_second=rate,
            **result,
        )
        self.display.evaluation(self.epoch, self.test_name, result)
        return result["accuracy"]

    def _save(self, accuracy: float | None = None) -> None:
        if self._saved_step == self.step:
            return
        self.progress.metrics_position = self.log.position()
        self.progress.seconds = self.seconds
        try:
            checkpoints.save(
                self.manager,
                self.state,
                dataclasses.asdict(self.progress),
                accuracy,
                self.identity.to_json(),
            )
        except checkpoints.NotFinite as error:
            # The loss is computed before the update, and may have been finite once more.
            self._diverged(self.step, str(error))
        self._saved_step = self.step

    def _save_and_leave(self) -> NoReturn:
        self._collect()
        self._write_train_log()
        self._save()
        checkpoints.wait(self.manager)
        self.display.close()
        raise Interrupted(
            f"told to stop: saved at step {self.step} of {self.experiment.total_steps}; "
            "the same command goes on from there"
        )
