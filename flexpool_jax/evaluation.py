"""A workdir in, accuracy out: restores a checkpoint and evaluates it as training did."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import ml_collections

from flexpool_jax import configuration
from flexpool_jax.errors import UserError
from flexpool_jax.training import checkpoints, reporting
from flexpool_jax.training.experiment import (
    build_experiment,
    evaluate,
    load_configured_dataset,
    on_devices,
)
from flexpool_jax.training.train import use_compilation_cache


def evaluate_workdir(
    workdir: str | os.PathLike[str],
    step: str = "latest",
    config: ml_collections.ConfigDict | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint on the test split.

    Args:
        workdir: of a run; its config.json says what model and data these are.
        step: ``"best"``, ``"latest"`` or the number of a saved step.
        config: replaces the workdir's, for another folder or batch size; it must describe the same
            model and data.

    Returns:
        ``step``, ``split``, ``examples``, ``loss`` (mean cross-entropy in nats) and ``accuracy``
        in [0, 1]; written to the workdir's evaluation.json as well, where that can be done.

    Raises:
        UserError: there is no such workdir or step, the checkpoint is damaged, or the config
            describes another model.
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
        dataset = load_configured_dataset(config)
        experiment = build_experiment(config, dataset)
        try:
            model = checkpoints.restore_model(manager, number, experiment.abstract_state())
        except checkpoints.DamagedCheckpoint as error:
            raise UserError(f"cannot evaluate {manager.directory}: {error}") from error
    split = on_devices(experiment, dataset.test)
    result = evaluate(experiment, experiment.replicate(model), split)
    report = {
        "step": number,
        "split": "validation" if config.dataset.holdout else "test",
        "examples": len(dataset.test.labels),
        **result,
    }
    try:
        reporting.write_json(workdir / "evaluation.json", report)
    except OSError as error:
        # The folder may be another user's, or its disk full: the figure is worth having anyway.
        print(f"not written: {error.filename}: {error.strerror}", file=sys.stderr)
    return report
