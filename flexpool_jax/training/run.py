"""Trains a run from its beginning, or from its last checkpoint, to result.json."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from flexpool_jax import configuration, files, layout
from flexpool_jax.data import Dataset
from flexpool_jax.data.arrays import check_dataset
from flexpool_jax.errors import UserError
from flexpool_jax.lock import hold_workdir
from flexpool_jax.source import run_source_hash
from flexpool_jax.training import checkpoints, console, metrics, processes, superclass
from flexpool_jax.training.debugging import profiling
from flexpool_jax.training.determinism import use_deterministic_ops
from flexpool_jax.training.environment import (
    agree_on_compilation_cache,
    check_platform,
    check_random_numbers,
    use_compilation_cache,
)
from flexpool_jax.training.identity import begin, facts
from flexpool_jax.training.interrupts import StopRequest, stop_on_signals
from flexpool_jax.training.loop import Run, run_epochs
from flexpool_jax.training.result import read_result, result_of
from flexpool_jax.training.resume import Progress, check_initial_weights, restore_or_init
from flexpool_jax.training.saving import Saver
from flexpool_jax.training.setup import Setup, check_training, load_configured_dataset, set_up
from flexpool_jax.training.steps import TrainState, parameter_count


def train(
    config: ml_collections.ConfigDict,
    workdir: Path,
    dataset: Dataset | None = None,
    profile: bool = False,
) -> dict[str, Any]:
    """Trains as `flexpool_jax.train` does, with a config and a workdir that have been checked."""
    check_random_numbers()
    with stop_on_signals(may_exit=False) as stop, processes.explaining_loss():
        use_compilation_cache(config.compilation_cache)
        if config.deterministic:
            use_deterministic_ops()
        check_platform()
        if dataset and config.dataset.holdout and not dataset.test_is_drawn:
            raise UserError(
                f"config.dataset.holdout is {config.dataset.holdout}, but dataset= says that no "
                "images were held out; allowed: 0, or a Dataset with test_is_drawn=True"
            )
        dataset = check_dataset(dataset) if dataset else load_configured_dataset(config)
        processes.check_alike(facts(config, dataset))
        agree_on_compilation_cache()
        setup = set_up(config, dataset)
        first_setup = None
        # Only process 0 sees the files of the workdir.
        begun = configuration.phases_begun(config, workdir)
        is_in_first, is_in_last = processes.gather(begun)[0]
        if config.superclass.epochs and not is_in_last:
            coarse = superclass.superclass_dataset(dataset, config.superclass.mapping)
            first_setup = set_up(superclass.superclass_config(config), coarse)
            check_training(first_setup)
        check_training(setup)
        if config.init_from and not (is_in_first or is_in_last):
            check_initial_weights(first_setup or setup)
        stop.agree = processes.shared_flag()
        with processes.writable(workdir) as own_workdir, hold_workdir(own_workdir):
            processes.check_shared(workdir / layout.LOCK_FILE)
            pretrained = None
            if first_setup is not None:
                pretrained = _train_superclasses(first_setup, config, own_workdir, stop)
                print(f"phase: {dataset.num_classes} classes", file=sys.stderr)
            watching = profiling(setup, own_workdir) if profile else contextlib.nullcontext(setup)
            with watching as watched:
                return _train_phase(watched, own_workdir, stop, pretrained)[1]


def _train_superclasses(
    setup: Setup, config: ml_collections.ConfigDict, workdir: Path, stop: StopRequest
) -> Mapping[str, Any]:
    """Runs the first phase of the run of this config; returns its final variables, on the host."""
    folder = workdir / layout.SUPERCLASS_FOLDER
    configuration.check_resume(setup.config, folder)
    # Written before the first phase: --workdir alone continues it, and reports know that this is
    # the folder of a run.
    is_new = not configuration.config_path(workdir).is_file()
    if is_new or configuration.check_resume(config, workdir):
        configuration.write_config(config, workdir)
    folder.mkdir(exist_ok=True)
    print(f"phase: {setup.dataset.num_classes} superclasses", file=sys.stderr)
    return _train_phase(setup, folder, stop, None)[0]


def _train_phase(
    setup: Setup, workdir: Path, stop: StopRequest, pretrained: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Runs one phase to its end; returns its final variables, on the host, and its result."""
    config = setup.config
    changes = configuration.check_resume(config, workdir)
    result = read_result(workdir)
    if result is not None and not configuration.has_any_checkpoint(workdir):
        raise UserError(
            f"{workdir} has the result of a finished run and no checkpoint to continue from; to "
            "train again, give another --workdir"
        )
    identity = begin(workdir, config, setup.dataset)
    with checkpoints.open_checkpoints(workdir) as manager:
        state, progress = restore_or_init(setup, manager, identity, pretrained)
        saved_progress, result = processes.gather([dataclasses.asdict(progress), result])[0]
        state, progress = processes.broadcast(state), Progress(**saved_progress)
        step = int(state.step)
        is_done = step == setup.total_steps and progress.evaluated
        # result.json may be of another state: that of the last epoch could not be written, or the
        # file was replaced.
        if is_done and result is not None and _is_result_of(result, state, config.num_epochs):
            print(f"this run is finished: {workdir / layout.RESULT_FILE}", file=sys.stderr)
            for change in changes:
                if configuration.has_effect(change.field, config):
                    print(f"not trained again with another value: {change}", file=sys.stderr)
            return state.variables, result
        verb = "continuing" if step else "starting"
        for change in changes:
            print(f"{verb} with another value: {change}", file=sys.stderr)
        # Written only if needed: a full disk may have room only after an unfinished checkpoint is
        # removed.
        if changes or not configuration.config_path(workdir).is_file():
            configuration.write_config(config, workdir)
        code = run_source_hash(config)
        if code not in progress.source_hashes:
            progress.source_hashes.append(code)
        lines = console.first_lines(setup, step, parameter_count(state.params))
        print(*lines, sep="\n", file=sys.stderr, flush=True)
        saver = Saver(manager, identity, step, progress.evaluated)
        state, meter = _train_to_end(setup, workdir, stop, saver, state, progress)
        result = files.with_digest(result_of(setup, progress, state, meter))
        files.write_json(workdir / layout.RESULT_FILE, result)
        return state.variables, processes.gather(result)[0]


def _train_to_end(
    setup: Setup,
    workdir: Path,
    stop: StopRequest,
    saver: Saver,
    state: TrainState,
    progress: Progress,
) -> tuple[TrainState, metrics.Meter]:
    """Trains to the last epoch, and updates the progress; returns the state on the host."""
    step = int(state.step)
    meter = metrics.Meter(setup.config.batch_size)
    with (
        metrics.MetricsWriter(
            workdir,
            tensorboard=setup.config.tensorboard,
            resume_bytes=progress.metrics_position,
            purge_step=step + 1,
        ) as log,
        contextlib.closing(
            console.ProgressBar(setup.total_steps, setup.steps_per_epoch, step)
        ) as bar,
    ):
        run = Run(
            setup=setup,
            workdir=workdir,
            progress=progress,
            meter=meter,
            saver=saver,
            log=log,
            bar=bar,
            stop=stop,
            started=time.monotonic() - progress.seconds,
        )
        return jax.device_get(run_epochs(run, state)), meter


def _is_result_of(result: Mapping[str, Any], state: TrainState, num_epochs: int) -> bool:
    model = checkpoints.model_reference(int(state.step), state.variables)
    return result.get("epochs") == num_epochs and files.measures_same_model(result, model)
