"""`train`: the training loop, resumable at any step.

What the loop does follows from the step and the `Progress` that is saved with each checkpoint.
There is no other state, so that a run that was stopped anywhere continues as if it had not been.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp

from flexpool_jax import configuration, files
from flexpool_jax.data import Dataset
from flexpool_jax.errors import Interrupted, TrainingDiverged
from flexpool_jax.pooling import pool_summary
from flexpool_jax.source import source_hash
from flexpool_jax.training import checkpoints, console, metrics, superclass
from flexpool_jax.training.eval_loop import Evaluation, evaluate_split
from flexpool_jax.training.feed import Feed, on_devices
from flexpool_jax.training.identity import Identity, begin
from flexpool_jax.training.interrupts import StopRequest, stop_on_signals
from flexpool_jax.training.lock import hold_workdir
from flexpool_jax.training.result import (
    RESULT_FILE,
    read_result,
    result_of,
    write_pool_weights,
    write_predictions,
)
from flexpool_jax.training.resume import Progress, restore_or_init
from flexpool_jax.training.setup import (
    Setup,
    load_configured_dataset,
    replicate,
    set_up,
    use_compilation_cache,
)
from flexpool_jax.training.steps import NotFinite, TrainState, parameter_count


def train(
    config: ml_collections.ConfigDict, workdir: Path, dataset: Dataset | None = None
) -> dict[str, Any]:
    """Trains as `flexpool_jax.train` does, with a config and a workdir that have been checked."""
    with stop_on_signals() as stop:
        use_compilation_cache(config.compilation_cache)
        dataset = dataset or load_configured_dataset(config)
        phases = [(workdir, set_up(config, dataset))]
        if config.superclass.epochs:
            coarse = superclass.superclass_dataset(dataset, config.superclass.mapping)
            first = set_up(superclass.superclass_config(config), coarse)
            phases.insert(0, (workdir / superclass.FOLDER, first))
        with hold_workdir(workdir):
            result: dict[str, Any] = {}
            trained = None
            for folder, setup in phases:
                folder.mkdir(exist_ok=True)
                trained, result = _train_phase(setup, folder, stop, trained)
            return result


def _train_phase(
    setup: Setup, workdir: Path, stop: StopRequest, pretrained: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Runs one phase to its end; returns its final variables, on the host, and its result."""
    config = setup.config
    changes = configuration.check_resume(config, workdir)
    identity = begin(workdir, config, setup.dataset)
    with checkpoints.open_checkpoints(workdir) as manager:
        state, progress = restore_or_init(setup, manager, identity, pretrained)
        step = int(state.step)
        result = read_result(workdir)
        if result is not None and step == setup.total_steps and progress.evaluated:
            print(f"this run is finished: {workdir / 'result.json'}", file=sys.stderr)
            return state.variables, result
        for change in changes:
            print(f"continuing with another value: {change}", file=sys.stderr)
        # Only if needed: a full disk may have room only after an unfinished save is removed.
        if changes or not configuration.config_path(workdir).is_file():
            configuration.write_config(config, workdir)
        if source_hash() not in progress.source_hashes:
            progress.source_hashes.append(source_hash())
        lines = console.first_lines(setup, step, parameter_count(state.params))
        print(*lines, sep="\n", file=sys.stderr, flush=True)
        with (
            metrics.MetricsWriter(
                workdir,
                tensorboard=config.tensorboard,
                resume_bytes=progress.metrics_position,
                purge_step=step + 1,
            ) as log,
            contextlib.closing(
                console.ProgressBar(setup.total_steps, setup.steps_per_epoch, step)
            ) as bar,
        ):
            started = time.monotonic() - progress.seconds
            run = Run(setup, workdir, identity, manager, log, bar, stop, started)
            state, images_per_second = _run_epochs(run, state, progress)
        result = result_of(setup, identity, progress, state, images_per_second)
        files.write_json(workdir / RESULT_FILE, files.sealed(result))
        return jax.device_get(state.variables), result


@dataclasses.dataclass(frozen=True)
class Run:
    """What a process holds open while it works on a run.

    Attributes:
        started: the present minus the seconds of training so far, by `time.monotonic`.
    """

    setup: Setup
    workdir: Path
    identity: Identity
    manager: ocp.CheckpointManager
    log: metrics.MetricsWriter
    bar: console.ProgressBar
    stop: StopRequest
    started: float


def _run_epochs(run: Run, state: TrainState, progress: Progress) -> tuple[TrainState, float | None]:
    """Trains to the last epoch; returns the state and the images per second of the steps alone."""
    setup, config, stop = run.setup, run.setup.config, run.stop
    steps_per_epoch = setup.steps_per_epoch
    train_feed, test_feed = on_devices(setup.dataset.train), on_devices(setup.dataset.test)
    key, step = jax.random.key(config.seed), int(state.step)
    state = replicate(state)
    meter = metrics.Meter(config.batch_size)
    is_saved = True
    # The first step compiles; until it is dispatched, nothing can be lost.
    stop.saves = False
    stop.check()
    # An epoch whose steps are done, but that was not evaluated, is continued at its evaluation.
    first_epoch = (step - (not progress.evaluated)) // steps_per_epoch
    with _explaining_divergence(run):
        try:
            for epoch in range(first_epoch, config.num_epochs):
                for part in train_feed.epoch(setup, epoch, start=step - epoch * steps_per_epoch):
                    stop.check()
                    state, values = setup.train_steps(state, train_feed.data, part, key)
                    step += len(values["loss"])
                    stop.saves, is_saved, progress.evaluated = True, False, False
                    meter.add(step, values)
                    if _is_logged(setup, step):
                        _log_training(run, meter)
                    else:
                        run.bar.show(meter)

                is_last = epoch + 1 == config.num_epochs
                accuracy = None
                if is_last or (epoch + 1) % config.eval_every_epochs == 0:
                    evaluation = _evaluate(run, state, test_feed, epoch + 1)
                    accuracy = evaluation.metrics["accuracy"]
                    per_class = {"accuracy_per_class": evaluation.accuracy_per_class}
                    progress.test = evaluation.metrics | per_class
                    progress.best_accuracy = max(accuracy, progress.best_accuracy or 0.0)
                    if is_last:
                        labels = setup.dataset.test.labels
                        write_predictions(run.workdir, labels, *evaluation[2:])
                        params = jax.device_get(state.variables["params"])
                        write_pool_weights(run.workdir, params)
                progress.evaluated = True

                is_best = accuracy is not None and accuracy == progress.best_accuracy
                if is_last or is_best or (epoch + 1) % config.checkpoint_every_epochs == 0:
                    _save(run, state, progress, accuracy)
                    is_saved = True
                meter.pause()
            checkpoints.wait(run.manager)
        except Interrupted:
            _log_training(run, meter)
            if not is_saved:
                _save(run, state, progress)
            checkpoints.wait(run.manager)
            run.bar.close()
            raise Interrupted(
                f"told to stop at step {step} of {setup.total_steps}; "
                "the same command continues from there"
            ) from None
    progress.seconds = time.monotonic() - run.started
    return state, meter.images_per_second


def _is_logged(setup: Setup, step: int) -> bool:
    """Whether a line is due: at the end of an epoch, and in the interval that the config names."""
    into_interval = step % setup.config.log_every_steps
    return step % setup.steps_per_epoch == 0 or into_interval < setup.steps_per_dispatch


def _log_training(run: Run, meter: metrics.Meter) -> None:
    """Waits for the steps that were dispatched, and writes one line about those since the last."""
    meter.wait()
    if meter.rows:
        run.bar.show(meter)
        run.log.write(
            step=meter.step,
            epoch=meter.step / run.setup.steps_per_epoch,
            split="train",
            images_per_second=meter.images_per_second,
            **meter.means(),
        )
        meter.rows.clear()


def _evaluate(run: Run, state: TrainState, feed: Feed, epoch: int) -> Evaluation:
    started = time.monotonic()
    evaluation = evaluate_split(run.setup, state.variables, feed, run.stop.check)
    seconds = time.monotonic() - started
    run.log.write(
        step=epoch * run.setup.steps_per_epoch,
        epoch=float(epoch),
        split=run.setup.split_name,
        images_per_second=len(feed) / seconds,
        **evaluation.metrics,
        **_summary_of_pools(run, state),
    )
    run.bar.evaluation(epoch, run.setup.split_name, evaluation.metrics, seconds)
    return evaluation


def _summary_of_pools(run: Run, state: TrainState) -> dict[str, float]:
    params = jax.device_get(state.variables["params"])
    summary = pool_summary(params, run.setup.config.pool)
    return {name: float(value) for name, value in summary.items()}


def _save(run: Run, state: TrainState, progress: Progress, accuracy: float | None = None) -> None:
    progress.metrics_position = run.log.position()
    progress.seconds = time.monotonic() - run.started
    checkpoints.save(
        run.manager, state, dataclasses.asdict(progress), accuracy, run.identity.to_json()
    )


@contextlib.contextmanager
def _explaining_divergence(run: Run) -> Iterator[None]:
    """Turns `NotFinite` into a `TrainingDiverged` that names the last good checkpoint.

    The loss is computed before the update: the weights may become infinite after a finite loss.
    """
    try:
        yield
    except NotFinite as error:
        run.bar.close()
        checkpoints.wait(run.manager)
        good = run.manager.latest_step()
        saved = f"the last good checkpoint is step {good}" if good is not None else "none was saved"
        advice = "the same command with a lower --config.learning_rate continues from there"
        if error.step == 1:
            advice = "no update was made before it: look at the model and the data"
        raise TrainingDiverged(
            f"{error} at step {error.step} (epoch "
            f"{math.ceil(error.step / run.setup.steps_per_epoch)}); {saved}; {advice}"
        ) from error
