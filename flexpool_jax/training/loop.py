"""The loop over steps and epochs, resumable at any step.

The loop depends only on the training state and the `Progress`, which each checkpoint holds. So a
run that was stopped at any step continues as if it had not been stopped.

On an accelerator the next epoch's first steps are dispatched between `end_epoch` and
`finish_epoch`, so that the device does not wait for the host. This works only if a call returns
before its steps are done, which the first dispatches show.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax

from flexpool_jax.errors import Interrupted, TrainingDiverged
from flexpool_jax.training import console, eval_loop, metrics, processes
from flexpool_jax.training.feed import Feed
from flexpool_jax.training.interrupts import StopRequest
from flexpool_jax.training.pace import Pace
from flexpool_jax.training.result import write_pool_weights, write_predictions
from flexpool_jax.training.resume import Progress
from flexpool_jax.training.saving import Saver, Snapshot
from flexpool_jax.training.setup import Setup, replicate
from flexpool_jax.training.steps import NotFinite, TrainState, copy_state, steps_in


@dataclasses.dataclass(frozen=True)
class Run:
    """The objects that a process uses while it trains a run.

    Attributes:
        started: start of this process's training minus the seconds of training before it, by
            `time.monotonic`.
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
        """Shows the steps that came back, and writes a line of metrics about them if it is due."""
        meter, every = self.meter, self.setup.config.log_every_steps
        self.bar.show(meter)
        logged = meter.step - len(meter.rows)
        ends_epoch = meter.step % self.setup.steps_per_epoch == 0
        if ends_epoch or logged // every < meter.step // every:
            self.write_steps()

    def write_steps(self) -> None:
        """Writes a line of metrics about the steps that came back since the last line."""
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
        """Waits for a state; returns a copy of it on the host, with the progress of the run."""
        self.progress.metrics_position = self.log.position()
        self.progress.seconds = time.monotonic() - self.started
        state = jax.device_get(state)
        return Snapshot(int(state.step), state, dataclasses.asdict(self.progress), accuracy)


def run_epochs(run: Run, state: TrainState) -> TrainState:
    """Trains to the last epoch; returns the state at its end."""
    setup, meter, progress, stop = run.setup, run.meter, run.progress, run.stop
    steps_per_epoch, num_epochs = setup.steps_per_epoch, setup.config.num_epochs
    pace = Pace(steps_per_epoch, setup.steps_per_dispatch)
    # Dispatches of other lengths are other programs, which on a GPU may round differently.
    keeps_pace = setup.config.steps_per_dispatch > 0 or setup.config.deterministic
    train_feed = Feed(setup.dataset.train, setup.is_streamed)
    test_feed = Feed(setup.dataset.test, setup.is_streamed)
    key, step = jax.random.key(setup.config.seed), int(state.step)
    state = replicate(state)
    # Whether the next epoch's first steps are dispatched before an epoch is evaluated and saved.
    # Not on a CPU, where they would share the cores.
    runs_ahead, is_known = False, jax.default_backend() == "cpu"
    # The epoch whose steps are dispatched, but which is not evaluated and saved yet.
    ended: EpochEnd | None = None
    # The first step compiles. Until it comes back, there is nothing new to save.
    stop.saves = False
    stop.check()
    # An epoch whose steps are done, but which was not evaluated, continues with its evaluation.
    first_epoch = (step - (not progress.evaluated)) // steps_per_epoch
    with _explaining_divergence(run), contextlib.closing(train_feed):
        try:
            for epoch in range(first_epoch, num_epochs):
                spans = pace.spans(step - epoch * steps_per_epoch)
                parts = train_feed.epoch(setup, epoch, spans)
                for part in meter.waiting_for(parts) if setup.is_streamed else parts:
                    if ended is None:
                        stop.check()
                    meter.expect(steps_in(part))
                    state, values = setup.train_steps(state, train_feed.data, part, key)
                    step += steps_in(part)
                    meter.add(step, values)
                    stop.saves = True
                    if ended is not None:
                        finish_epoch(run, ended, test_feed)
                        ended = None
                    progress.evaluated = False
                    run.report_steps()
                    if not is_known and meter.seconds_per_step is not None:
                        # All processes must dispatch the same programs: the slowest decides.
                        found = processes.gather([meter.seconds_per_step, meter.is_blocked])
                        seconds, is_blocked = map(max, zip(*found, strict=True))
                        runs_ahead, is_known = not is_blocked, True
                        if not keeps_pace:
                            pace.slow_down(seconds)

                in_turn = not runs_ahead or epoch + 1 == num_epochs
                if in_turn:
                    meter.wait()
                    run.report_steps()
                ended = end_epoch(run, state, epoch + 1, test_feed, copy=not in_turn)
                if in_turn:
                    finish_epoch(run, ended, test_feed)
                    ended = None
                    meter.pause()
            run.saver.wait()
        except Interrupted:
            if ended is None:
                meter.wait()
            else:
                # The steps after the end of this epoch will be computed again.
                state = ended.state
            _save_and_stop(run, state)
        except (NotFinite, FloatingPointError, OSError):
            raise
        except Exception:
            # An evaluation may fail, for example in a metric of the user's own.
            is_whole = not progress.evaluated and step % steps_per_epoch == 0
            if jax.process_count() == 1 and (ended is not None or is_whole):
                with contextlib.suppress(Exception):
                    _save(run, state if ended is None else ended.state)
                run.bar.close()
            raise
    progress.seconds = time.monotonic() - run.started
    return state


def _save(run: Run, state: TrainState) -> int:
    """Saves a state that is not evaluated, with the metrics up to it; returns its step."""
    run.write_steps()
    snapshot = run.snapshot(state)
    run.saver.save(snapshot)
    run.saver.wait()
    return snapshot.step


def _save_and_stop(run: Run, state: TrainState) -> NoReturn:
    """Saves the state from which the run will continue, and raises `Interrupted` with its step."""
    step = _save(run, state)
    processes.gather(step)  # Other processes wait until process 0 has saved.
    run.bar.close()
    raise Interrupted(
        f"told to stop at step {step} of {run.setup.total_steps}; "
        "the same command continues from there"
    ) from None


@contextlib.contextmanager
def _explaining_divergence(run: Run) -> Iterator[None]:
    """Turns `NotFinite` into a `TrainingDiverged` that names the last good checkpoint.

    Saving a state may raise `NotFinite` too: the loss is computed before the update, so weights may
    become infinite after a finite loss.
    """
    try:
        yield
    except (NotFinite, FloatingPointError) as error:
        run.bar.close()
        run.saver.save()
        run.saver.wait()
        if isinstance(error, FloatingPointError):  # From --debug_nans; its message says more.
            raise
        good = run.saver.last_step()
        saved = f"the last good checkpoint is step {good}" if good is not None else "none was saved"
        result = "begins anew" if good is None else "continues from there"
        advice = f"the same command with a lower --config.learning_rate {result}"
        if error.updates == 0:
            advice = "no update was made before it: look at the model and the data"
        text = (
            f"{error} at step {error.step} (epoch "
            f"{math.ceil(error.step / run.setup.steps_per_epoch)}); {saved}; {advice}"
        )
        raise TrainingDiverged(processes.gather(text)[0]) from error


@dataclasses.dataclass(frozen=True)
class EpochEnd:
    """An epoch whose steps are dispatched.

    Attributes:
        epoch: number of completed epochs, including this one.
        state: state at the end of the epoch.
        evaluation: result of `eval_loop.dispatch`; None if no evaluation is due.
        pools: result of `pool_summary`, on the devices; empty if no evaluation is due.
        started: time when the evaluation was dispatched, by `time.monotonic`.
    """

    epoch: int
    state: TrainState
    evaluation: list[Any] | None
    pools: dict[str, Any]
    started: float


def end_epoch(run: Run, state: TrainState, epoch: int, feed: Feed, copy: bool) -> EpochEnd:
    """Dispatches the evaluation of a state, if it is due.

    On an accelerator this function does not wait for the devices, unless it has to compile or the
    data are streamed.

    Args:
        run: the run.
        state: state after the epoch's last step.
        epoch: number of completed epochs.
        feed: source of the split to evaluate.
        copy: whether to copy the state, because its buffers will be donated to another step before
            `finish_epoch`.

    Raises:
        Interrupted: a stop was requested, see `StopRequest.check`.
    """
    run.stop.check()
    config, evaluation, pools = run.setup.config, None, {}
    is_evaluated = epoch == config.num_epochs or epoch % config.eval_every_epochs == 0
    run.meter.expect(("end_epoch", is_evaluated))
    if copy:
        state = copy_state(state)
    if is_evaluated and feed.data is None:
        # Reading the images takes as long as the evaluation, and would be timed as training.
        run.meter.wait()
    started = time.monotonic()
    if is_evaluated:
        evaluation = eval_loop.dispatch(run.setup, state.variables, feed, run.stop.check)
        # Dispatched here, since a later program would wait for the next epoch's steps.
        pools = run.setup.pool_summary(state.variables["params"])
    return EpochEnd(epoch, state, evaluation, pools, started)


def finish_epoch(run: Run, ended: EpochEnd, feed: Feed) -> None:
    """Waits for an evaluation, writes its result, and saves the state if that is due.

    Args:
        run: the run; the metrics of all steps of the epoch have come back to its meter.
        ended: result of `end_epoch`.
        feed: source of the split that is evaluated.

    Raises:
        Interrupted: a stop was requested; nothing of the evaluation is written then.
    """
    config, progress = run.setup.config, run.progress
    is_last = ended.epoch == config.num_epochs
    accuracy, is_best, results = None, False, None
    # The device begins to evaluate after the epoch's steps.
    started = max(ended.started, run.meter.returned)
    # To agree to stop, several processes run a program on their devices. It would wait for the next
    # epoch's steps, which are dispatched already.
    check = run.stop.check if jax.process_count() == 1 else lambda: None
    if ended.evaluation is not None:
        results = eval_loop.collect(ended.evaluation, check)
        run.meter.pause()
    seconds = time.monotonic() - started
    run.report_steps()
    if results is not None:
        evaluation = eval_loop.summarise(results, feed.labels)
        _report_evaluation(run, ended, evaluation, seconds)
        accuracy = evaluation.metrics["accuracy"]
        per_class = {"accuracy_per_class": evaluation.accuracy_per_class}
        progress.test = evaluation.metrics | per_class
        progress.best_accuracy = max(accuracy, progress.best_accuracy or 0.0)
        is_best = accuracy == progress.best_accuracy
        if is_last:
            predicted = evaluation.predictions, evaluation.confidences
            write_predictions(run.workdir, run.setup.dataset.test.labels, *predicted)
            write_pool_weights(run.workdir, ended.state.variables["params"])
    progress.evaluated = True
    is_due = is_last or ended.epoch % config.checkpoint_every_epochs == 0
    if is_due or is_best:
        snapshot = run.snapshot(ended.state, accuracy)
        if is_best:
            run.saver.keep(snapshot)
        if is_due:
            run.saver.save(snapshot)


def _report_evaluation(
    run: Run, ended: EpochEnd, evaluation: eval_loop.Evaluation, seconds: float
) -> None:
    run.log.write(
        step=ended.epoch * run.setup.steps_per_epoch,
        epoch=float(ended.epoch),
        split=run.setup.split_name,
        images_per_second=len(evaluation.predictions) / seconds,
        **evaluation.metrics,
        **{name: float(value) for name, value in jax.device_get(ended.pools).items()},
    )
    run.bar.evaluation(ended.epoch, run.setup.split_name, evaluation.metrics, seconds)
