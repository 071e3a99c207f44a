"""`train`: the training loop, resumable at any step; and the loop over an evaluation's batches.

What the loop does follows from the step and the `Progress` that is saved with each checkpoint.
There is no other state, so that a run that was stopped anywhere continues as if it had not been.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from flexpool_jax import configuration, files, scoring
from flexpool_jax.data import Dataset
from flexpool_jax.errors import Interrupted, TrainingDiverged, UserError
from flexpool_jax.pooling import pool_summary
from flexpool_jax.portable.weights import start_from
from flexpool_jax.source import commit, source_hash
from flexpool_jax.training import checkpoints, console, metrics, superclass
from flexpool_jax.training.identity import Identity, begin
from flexpool_jax.training.interrupts import StopRequest, stop_on_signals
from flexpool_jax.training.lock import hold_workdir
from flexpool_jax.training.setup import (
    DeviceSplit,
    Setup,
    load_configured_dataset,
    on_devices,
    replicate,
    set_up,
    use_compilation_cache,
)
from flexpool_jax.training.steps import NotFinite, TrainState, parameter_count


@dataclasses.dataclass
class Progress:
    """Where a run stands besides its state; saved as JSON with each checkpoint.

    Attributes:
        evaluated: whether the epoch that ends at this step has been evaluated (or need not be).
        best_accuracy: of the evaluations so far, in [0, 1].
        test: the last evaluation: ``loss``, ``accuracy`` and further metrics, and
            ``accuracy_per_class``; release 0.1 saved the first two alone.
        seconds: spent in training so far, over all processes that worked on it.
        metrics_position: length in bytes of metrics.jsonl; what is after it will be written again.
        config_changes: fields that were given another value when the run was continued, see
            `Identity.changes`.
        source_hashes: the code that the run was trained with, see `flexpool_jax.source`; more than
            one if it changed midway.
    """

    evaluated: bool = True
    best_accuracy: float | None = None
    test: dict[str, Any] | None = None
    seconds: float = 0.0
    metrics_position: int = 0
    config_changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    source_hashes: list[str] = dataclasses.field(default_factory=list)


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
        state, progress = _restore_or_init(setup, manager, identity, pretrained)
        step = int(state.step)
        result = metrics.read_result(workdir)
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
        result = _result(setup, identity, progress, state, images_per_second)
        files.write_json(workdir / metrics.RESULT_FILE, files.sealed(result))
        return jax.device_get(state.variables), result


def _restore_or_init(
    setup: Setup,
    manager: ocp.CheckpointManager,
    identity: Identity,
    pretrained: Mapping[str, Any] | None,
) -> tuple[TrainState, Progress]:
    """The state and progress of the latest checkpoint, or those at step 0."""
    state = setup.init()
    if pretrained is not None:
        state = superclass.with_new_classifiers(state, pretrained)
    elif setup.config.init_from:
        state = _load_initial_weights(setup, state)
    restored = checkpoints.restore_latest(manager, state, identity.check)
    if restored is None:
        return state, Progress()
    state, progress = restored[0], Progress(**restored[1])
    step = int(state.step)
    if step > setup.total_steps:
        done = math.ceil(step / setup.steps_per_epoch)
        raise UserError(
            f"config.num_epochs is {setup.config.num_epochs}, but this run is in or past epoch "
            f"{done}; allowed: at least {done}, or another --workdir"
        )
    saved = checkpoints.read_run(manager, step)
    began_with = (
        configuration.config_from_json(saved["config"])
        if saved is not None
        else configuration.read_config(Path(manager.directory).parent)
    )
    changes = identity.changes(step, began_with)
    progress.config_changes += changes
    # This epoch was not the last one before: it may not have been evaluated, and its predictions
    # were not written.
    if step == setup.total_steps and any(change["field"] == "num_epochs" for change in changes):
        progress.evaluated = False
    return state, progress


def _load_initial_weights(setup: Setup, state: TrainState) -> TrainState:
    """The state at step 0 with the weights of ``config.init_from``."""
    file = setup.config.init_from
    variables, new = start_from(file, jax.device_get(state.variables))
    if new:
        print(
            f"{file} is for another number of classes: {', '.join(new)} begins anew, for "
            f"{setup.dataset.num_classes}",
            file=sys.stderr,
        )
    params = variables["params"]
    # An optimizer may keep a copy of the parameters.
    return dataclasses.replace(
        state,
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(setup.tx.init)(params),
        ema_params=None if state.ema_params is None else params,
    )


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
    train_split, test_split = on_devices(setup.dataset.train), on_devices(setup.dataset.test)
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
                for indices in setup.batches(epoch, start=step - epoch * steps_per_epoch):
                    stop.check()
                    state, values = setup.train_steps(state, *train_split, indices, key)
                    step += indices.shape[1]
                    stop.saves, is_saved, progress.evaluated = True, False, False
                    meter.add(step, values)
                    if _is_logged(setup, step):
                        _log_training(run, meter)
                    else:
                        run.bar.show(meter)

                is_last = epoch + 1 == config.num_epochs
                accuracy = None
                if is_last or (epoch + 1) % config.eval_every_epochs == 0:
                    evaluation = _evaluate(run, state, test_split, epoch + 1)
                    accuracy = evaluation.metrics["accuracy"]
                    per_class = {"accuracy_per_class": evaluation.accuracy_per_class}
                    progress.test = evaluation.metrics | per_class
                    progress.best_accuracy = max(accuracy, progress.best_accuracy or 0.0)
                    if is_last:
                        metrics.write_predictions(
                            run.workdir,
                            setup.dataset.test.labels,
                            evaluation.predictions,
                            evaluation.confidences,
                        )
                        params = jax.device_get(state.variables["params"])
                        metrics.write_pool_weights(run.workdir, params)
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


def _evaluate(run: Run, state: TrainState, split: DeviceSplit, epoch: int) -> Evaluation:
    started = time.monotonic()
    evaluation = evaluate_split(run.setup, state.variables, split, run.stop.check)
    seconds = time.monotonic() - started
    run.log.write(
        step=epoch * run.setup.steps_per_epoch,
        epoch=float(epoch),
        split=run.setup.split_name,
        images_per_second=len(split.labels) / seconds,
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


def _result(
    setup: Setup,
    identity: Identity,
    progress: Progress,
    state: TrainState,
    images_per_second: float | None,
) -> dict[str, Any]:
    """The content of result.json."""
    assert progress.test is not None
    measured = dict(progress.test)
    hashes = progress.source_hashes
    device = jax.local_devices()[0]
    step = int(state.step)
    return {
        "final_test_accuracy": measured.pop("accuracy"),
        "final_test_loss": measured.pop("loss"),
        "best_test_accuracy": progress.best_accuracy,
        "class_names": list(setup.dataset.class_names),
        "final_test_accuracy_per_class": measured.pop("accuracy_per_class", None),
        "final_test_metrics": measured,
        "step": step,
        "epochs": step // setup.steps_per_epoch,
        "split": setup.split_name,
        "test_images": len(setup.dataset.test),
        "parameters": parameter_count(state.params),
        "config": setup.config.to_dict(),
        "config_digest": configuration.digest(setup.config),
        "config_changes": progress.config_changes,
        # A list if the code changed midway.
        "source_hash": hashes[0] if len(hashes) == 1 else hashes,
        "commit": commit(),
        "data_digest": identity.data,
        "seconds": progress.seconds,
        "images_per_second": images_per_second,
        "device": device.device_kind,
        "devices": jax.local_device_count(),
        "platform": device.platform,
        "convolutions": setup.convolutions,
        "versions": metrics.versions(),
    }


class Evaluation(NamedTuple):
    """What a model makes of a split.

    Attributes:
        metrics: ``loss`` (mean cross-entropy in nats), ``accuracy`` in [0, 1], and those of
            `flexpool_jax.scoring`.
        accuracy_per_class: in [0, 1]; None for a class without examples.
        predictions: int16 [N], the predicted class of each example, in the order of the split.
        confidences: float16 [N], the probability of the predicted class.
    """

    metrics: dict[str, float]
    accuracy_per_class: list[float | None]
    predictions: np.ndarray
    confidences: np.ndarray


def evaluate_split(
    setup: Setup,
    variables: Any,
    split: DeviceSplit,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluates every example of a split exactly once, whatever the batch size and device count.

    Args:
        setup: from `set_up`.
        variables: ``params`` and ``batch_stats``, replicated.
        split: from `on_devices`.
        check: called between batches; may raise to abandon the evaluation.
    """
    count = len(split.labels)
    results = []
    for indices in eval_batches(count, setup.config.eval_batch_size):
        check()
        results.append(setup.eval_step(variables, *split, indices))
        if len(results) > 1 and jax.default_backend() == "cpu":
            # One batch ahead is enough to keep a CPU busy; more would only hold memory.
            jax.block_until_ready(results[-2])
    sums, examples = zip(*jax.device_get(results), strict=True)
    batches = [part["logits"].reshape(-1, setup.dataset.num_classes) for part in examples]
    probabilities = scoring.softmax(np.concatenate(batches)[:count])
    labels = np.asarray(split.labels)
    return Evaluation(
        metrics={
            "loss": math.fsum(float(part["loss"]) for part in sums) / count,
            "accuracy": sum(int(part["correct"]) for part in sums) / count,
            **scoring.scores(labels, probabilities),
        },
        accuracy_per_class=scoring.accuracy_per_class(labels, probabilities),
        predictions=probabilities.argmax(axis=1).astype(np.int16),
        confidences=probabilities.max(axis=1).astype(np.float16),
    )


def eval_batches(count: int, batch_size: int) -> np.ndarray:
    """The indices that evaluate each of ``count`` examples once.

    Args:
        count: examples.
        batch_size: at most; rounded up to a multiple of the number of local devices.

    Returns:
        int32 [batches, devices, examples of a device], in order; -1 fills the last batch up.

    Example:
        >>> eval_batches(3, 1).shape == (-(-3 // jax.local_device_count()),
        ...                              jax.local_device_count(), 1)
        True
    """
    devices = jax.local_device_count()
    per_device = math.ceil(min(batch_size, count) / devices)
    batches = math.ceil(count / (devices * per_device))
    indices = np.full(batches * devices * per_device, -1, np.int32)
    indices[:count] = np.arange(count)
    return indices.reshape(batches, devices, per_device)
