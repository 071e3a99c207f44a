"""`train`: a config and a workdir in, a trained, evaluated, checkpointed and logged model out."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import jax
import ml_collections

from flexpool_jax import configuration
from flexpool_jax.data import Dataset
from flexpool_jax.errors import UserError
from flexpool_jax.models import onednn
from flexpool_jax.source import commit, source_hash
from flexpool_jax.training import checkpoints, reporting, superclass
from flexpool_jax.training.experiment import (
    Experiment,
    build_experiment,
    load_configured_dataset,
    on_devices,
)
from flexpool_jax.training.identity import begin
from flexpool_jax.training.interrupts import StopRequest, stop_on_signals
from flexpool_jax.training.lock import hold_workdir
from flexpool_jax.training.loop import Progress, TrainingRun
from flexpool_jax.training.state import TrainState, parameter_count


def train(config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Trains a model, going on from the workdir's latest checkpoint if it holds one.

    Args:
        config: from `flexpool_jax.configuration.resolve`.
        workdir: folder for config.json, checkpoints/, metrics.jsonl, result.json and tensorboard/.

    Returns:
        What is written to result.json: final and best accuracy, seconds, versions and more.

    Raises:
        UserError: the config is wrong, or differs from the workdir's where it must not.
        Interrupted: the process was told to stop; the state is saved.
        TrainingDiverged: a loss became NaN or infinite.
    """
    workdir = Path(workdir).expanduser().absolute()
    with stop_on_signals() as stop:
        # Named before the first array exists: later, JAX would not use it.
        use_compilation_cache(config.compilation_cache)
        dataset = load_configured_dataset(config)
        phases = [(config, dataset, workdir)]
        if config.superclass.epochs:
            phases.insert(
                0,
                (
                    superclass.superclass_config(config),
                    superclass.superclass_dataset(dataset, config.superclass.mapping),
                    workdir / superclass.FOLDER,
                ),
            )
        experiments = [build_experiment(config, dataset) for config, dataset, _ in phases]
        with hold_workdir(workdir):
            result: dict[str, Any] = {}
            trained = None
            for (config, dataset, folder), experiment in zip(phases, experiments, strict=True):
                folder.mkdir(exist_ok=True)
                trained, result = _train(config, experiment, dataset, folder, stop, trained)
            return result


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in a folder between runs.

    "" leaves JAX's setting alone, and so does a folder that the user's environment has chosen.
    """
    if folder and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _train(
    config: ml_collections.ConfigDict,
    experiment: Experiment,
    dataset: Dataset,
    workdir: Path,
    stop: StopRequest,
    initial_variables: Mapping[str, Any] | None,
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Runs one phase to its end; returns its final variables, on the host, and its result."""
    changes = configuration.check_resume(config, workdir)
    identity = begin(workdir, config, dataset)
    with checkpoints.open_checkpoints(workdir) as manager:
        state, progress = experiment.init(), Progress()
        if initial_variables is not None:
            state = superclass.with_new_classifiers(state, initial_variables)
        restored = checkpoints.restore_latest(manager, state, identity.check)
        if restored is not None:
            state, progress = restored[0], Progress(**restored[1])
            _check_num_epochs(config, int(state.step), experiment)
            saved = checkpoints.read_run(manager, int(state.step))
            began_with = (
                configuration.config_from_json(saved["config"])
                if saved is not None
                else configuration.read_config(workdir)
            )
            progress.config_changes += identity.changes(int(state.step), began_with)
        result = reporting.read_result(workdir)
        if _is_whole(result) and int(state.step) >= experiment.total_steps and progress.evaluated:
            print(f"this run is finished: {workdir / 'result.json'}", file=sys.stderr)
            return state.variables, result
        for change in changes:
            print(f"continuing with another value: {change}", file=sys.stderr)
        # On a full disk a run may find room by itself, by removing what it could not finish saving.
        if changes or not configuration.config_path(workdir).is_file():
            configuration.write_config(config, workdir)
        if source_hash() not in progress.source_hashes:
            progress.source_hashes.append(source_hash())
        _first_lines(config, experiment, dataset, state)
        with (
            reporting.MetricsWriter(
                workdir,
                tensorboard=config.tensorboard,
                resume_bytes=progress.metrics_position,
                purge_step=int(state.step) + 1,
            ) as log,
            reporting.Progress(
                total_steps=experiment.total_steps,
                steps_per_epoch=experiment.steps_per_epoch,
                batch_size=experiment.batch_size,
                start_step=int(state.step),
            ) as display,
        ):
            run = TrainingRun(
                config,
                experiment,
                identity,
                state,
                progress,
                on_devices(experiment, dataset.train),
                on_devices(experiment, dataset.test),
                manager,
                log,
                display,
                stop,
            )
            run.run()
            result = _result(config, run)
            reporting.write_result(workdir, **result)
            return jax.device_get(run.state.variables), result


def _check_num_epochs(config: ml_collections.ConfigDict, step: int, experiment: Experiment) -> None:
    if step > experiment.total_steps:
        done = math.ceil(step / experiment.steps_per_epoch)
        raise UserError(
            f"config.num_epochs is {config.num_epochs}, but this run is in or past epoch {done}; "
            f"allowed: at least {done}, or another --workdir"
        )


def _is_whole(result: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    """Whether a result.json holds what is told of a finished run; if not, it is written again."""
    numbers = ("final_test_accuracy", "best_test_accuracy", "epochs", "seconds")
    return (
        result is not None
        and all(isinstance(result.get(name), int | float) for name in numbers)
        and isinstance(result.get("split"), str)
    )


def _first_lines(
    config: ml_collections.ConfigDict, experiment: Experiment, dataset: Dataset, state: TrainState
) -> None:
    sac = " with SAC" if config.sac.enabled else ""
    lines = reporting.first_lines(
        versions=reporting.versions(),
        dtype=config.dtype,
        model=f"{config.model}, {config.pool} pool{sac}",
        parameters=parameter_count(state.params),
        dataset=dataset.name,
        image_shape=dataset.image_shape,
        train_images=len(dataset.train.labels),
        test_images=len(dataset.test.labels),
        batch_size=experiment.batch_size,
        steps_per_epoch=experiment.steps_per_epoch,
        total_steps=experiment.total_steps,
        start_step=int(state.step),
    )
    lines.append(f"convolutions: {_convolutions(config)}")
    options = experiment.compiler_options
    if options:
        flags = ", ".join(f"{name}={value!r}" for name, value in options.items())
        lines.append(f"XLA options for this run's programs: {flags}")
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def _convolutions(config: ml_collections.ConfigDict) -> str:
    """Which library computes the convolutions."""
    if jax.default_backend() == "cpu" and config.dtype == "float32":
        return onednn.describe()
    return "XLA"


def _result(config: ml_collections.ConfigDict, run: TrainingRun) -> dict[str, Any]:
    test = run.progress.test or {}
    hashes = run.progress.source_hashes
    device = jax.local_devices()[0]
    return {
        "final_test_accuracy": test["accuracy"],
        "final_test_loss": test["loss"],
        "best_test_accuracy": run.progress.best_accuracy,
        "step": run.step,
        "epochs": run.epoch,
        "split": run.test_name,
        "test_images": len(run.test_split.labels),
        "parameters": parameter_count(run.state.params),
        "config": config.to_dict(),
        "config_digest": configuration.digest(config),
        "config_changes": run.progress.config_changes,
        # A list of several where the code changed midway, which no single hash names.
        "source_hash": hashes[0] if len(hashes) == 1 else hashes,
        "commit": commit(),
        "data_digest": run.identity.data,
        "seconds": run.seconds,
        "images_per_second": run.images_per_second,
        "device": device.device_kind,
        "devices": run.experiment.num_devices,
        "platform": device.platform,
        "convolutions": _convolutions(config),
        "versions": reporting.versions(),
    }
