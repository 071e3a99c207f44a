"""Restores a checkpoint from a workdir, and evaluates it as training did."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import ml_collections

from flexpool_jax import configuration
from flexpool_jax.data import Dataset
from flexpool_jax.errors import UserError
from flexpool_jax.training import checkpoints, reporting
from flexpool_jax.training.experiment import (
    Experiment,
    build_experiment,
    evaluate,
    load_configured_dataset,
    on_devices,
)
from flexpool_jax.training.identity import recall
from flexpool_jax.training.train import use_compilation_cache


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint, and what it takes to use it.

    Attributes:
        workdir: absolute.
        step: of the checkpoint.
        config: of the run, or the one given in its place.
        dataset: what the config names.
        experiment: model and compiled steps.
        variables: ``params`` and ``batch_stats``, NumPy arrays on the host.
    """

    workdir: Path
    step: int
    config: ml_collections.ConfigDict
    dataset: Dataset
    experiment: Experiment
    variables: dict[str, Any]

    @property
    def split(self) -> str:
        """The name of what it is evaluated on: "test", or "validation" for held-out images."""
        return "validation" if self.config.dataset.holdout else "test"


def restore_workdir(
    workdir: str | os.PathLike[str],
    step: str = "latest",
    config: ml_collections.ConfigDict | None = None,
) -> Restored:
    """Restores a checkpoint of a run; writes nothing.

    Args:
        workdir: of a run; its config.json says what model and data these are.
        step: ``"best"``, ``"latest"`` or the number of a saved step.
        config: replaces the workdir's, for another folder or batch size; it must describe the same
            model and data.

    Raises:
        UserError: there is no such workdir or step, the checkpoint is damaged or of another run,
            or the config or the data are not those of the run.
    """
    workdir = Path(workdir).expanduser().absolute()
    saved = configuration.read_config(workdir)
    if config is None:
        config = saved
    else:
        configuration.compare_with_workdir(config, saved)
    use_compilation_cache(config.compilation_cache)
    with checkpoints.open_checkpoints(workdir, read_only=True) as manager:
        number = checkpoints.choose_step(manager, step)
        try:
            run = checkpoints.read_run(manager, number)
            dataset = load_configured_dataset(config)
            recall(workdir, config, dataset).check(number, run)
            experiment = build_experiment(config, dataset)
            variables = checkpoints.restore_model(manager, number, experiment.abstract_state())
        except checkpoints.DamagedCheckpoint as error:
            raise UserError(f"cannot evaluate {manager.directory}: {error}") from error
    return Restored(workdir, number, config, dataset, experiment, variables)


def evaluate_workdir(
    workdir: str | os.PathLike[str],
    step: str = "latest",
    config: ml_collections.ConfigDict | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint on the test split; arguments and errors as for `restore_workdir`.

    Returns:
        ``step``, ``split``, ``examples``, ``loss`` (mean cross-entropy in nats) and ``accuracy``
        in [0, 1]; written to the workdir's evaluation.json as well, where that can be done.
    """
    restored = restore_workdir(workdir, step, config)
    experiment, test = restored.experiment, restored.dataset.test
    variables = experiment.replicate(restored.variables)
    report = {
        "step": restored.step,
        "split": restored.split,
        "examples": len(test),
        **evaluate(experiment, variables, on_devices(experiment, test)).metrics,
    }
    try:
        reporting.write_json(restored.workdir / "evaluation.json", report)
    except OSError as error:
        # The folder may be another user's, or its disk full: the figure is worth having anyway.
        print(f"not written: {error.filename}: {error.strerror}", file=sys.stderr)
    return report
