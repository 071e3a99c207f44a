"""What happens between two epochs: evaluation, the files of the last one, saving.

On an accelerator the next epoch's steps are dispatched between `end_epoch` and `finish_epoch`, so
that the device does not wait for the host.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax

from flexpool_jax.training import eval_loop
from flexpool_jax.training.feed import Feed
from flexpool_jax.training.result import write_pool_weights, write_predictions
from flexpool_jax.training.run import Run
from flexpool_jax.training.steps import TrainState, copy_state


@dataclasses.dataclass(frozen=True)
class EpochEnd:
    """An epoch whose steps are dispatched.

    Attributes:
        epoch: epochs completed.
        state: at its end.
        evaluation: from `eval_loop.dispatch`; None where none is due.
        pools: from `pool_summary`, on the devices; empty where no evaluation is due.
        started: when the evaluation was dispatched, by `time.monotonic`.
    """

    epoch: int
    state: TrainState
    evaluation: list[Any] | None
    pools: dict[str, Any]
    started: float


def end_epoch(run: Run, state: TrainState, epoch: int, feed: Feed, copy: bool) -> EpochEnd:
    """Dispatches the evaluation of a state, if it is due, and waits for nothing on an accelerator.

    Args:
        run: that it belongs to.
        state: after the epoch's last step.
        epoch: epochs completed.
        feed: of the split to evaluate.
        copy: whether the state will be donated to another step before `finish_epoch`.

    Raises:
        Interrupted: as `StopRequest.check` does.
    """
    run.stop.check()
    config, evaluation, pools = run.setup.config, None, {}
    is_evaluated = epoch == config.num_epochs or epoch % config.eval_every_epochs == 0
    run.meter.expect(("end_epoch", is_evaluated))
    if copy:
        state = copy_state(state)
    if is_evaluated and feed.data is None:
        # Reading the images takes as long as the evaluation, and would count as training.
        run.meter.wait()
    started = time.monotonic()
    if is_evaluated:
        evaluation = eval_loop.dispatch(run.setup, state.variables, feed, run.stop.check)
        # Here, since whatever is asked of a device later waits for the next epoch's steps.
        pools = run.setup.pool_summary(state.variables["params"])
    return EpochEnd(epoch, state, evaluation, pools, started)


def finish_epoch(run: Run, ended: EpochEnd, feed: Feed) -> None:
    """Waits for an evaluation, writes what it found, and saves the state if that is due.

    Args:
        run: that it belongs to; all of the epoch's steps have come back to its meter.
        ended: from `end_epoch`.
        feed: as for `end_epoch`.

    Raises:
        Interrupted: as `StopRequest.check` does; nothing of the evaluation is written then.
    """
    config, progress = run.setup.config, run.progress
    is_last = ended.epoch == config.num_epochs
    accuracy, is_best, results = None, False, None
    # The device begins to evaluate when it has made the steps.
    started = max(ended.started, run.meter.returned)
    # Several processes agree to stop by their devices, which have other steps to make first.
    check = run.stop.check if jax.process_count() == 1 else lambda: None
    if ended.evaluation is not None:
        results = eval_loop.collect(ended.evaluation, check)
        run.meter.pause()
    seconds = time.monotonic() - started
    run.report_steps()
    if results is not None:
        evaluation = eval_loop.summarise(run.setup, results, feed)
        _report_evaluation(run, ended, evaluation, seconds)
        accuracy = evaluation.metrics["accuracy"]
        per_class = {"accuracy_per_class": evaluation.accuracy_per_class}
        progress.test = evaluation.metrics | per_class
        progress.best_accuracy = max(accuracy, progress.best_accuracy or 0.0)
        is_best = accuracy == progress.best_accuracy
        if is_last:
            write_predictions(run.workdir, run.setup.dataset.test.labels, *evaluation[2:])
            write_pool_weights(run.workdir, jax.device_get(ended.state.variables["params"]))
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
