"""The state from which a run starts: its last checkpoint, given weights, or new weights."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from flexpool_jax import configuration
from flexpool_jax.errors import UserError
from flexpool_jax.models.weights import start_from
from flexpool_jax.optimizer import restart
from flexpool_jax.training import checkpoints, processes, superclass
from flexpool_jax.training.identity import Identity
from flexpool_jax.training.setup import Setup
from flexpool_jax.training.steps import TrainState


@dataclasses.dataclass
class Progress:
    """The progress of a run besides its `TrainState`; saved as JSON with each checkpoint.

    Attributes:
        evaluated: True at step 0, and at the end of an epoch if its evaluation is done or was not
            due; else False.
        best_accuracy: best accuracy of the evaluations so far, in [0, 1].
        test: result of the last evaluation: ``loss``, ``accuracy``, further metrics, and
            ``accuracy_per_class``; release 0.1 saved only the first two.
        seconds: seconds of training so far, including those before the run was last continued.
        metrics_position: length of metrics.jsonl in bytes; lines after this position will be
            written again.
        config_changes: fields whose value changed when the run was continued, see
            `Identity.changes`.
        source_hashes: hashes of the code that trained the run, see `flexpool_jax.source`; more than
            one if the code changed during the run.
    """

    evaluated: bool = True
    best_accuracy: float | None = None
    test: dict[str, Any] | None = None
    seconds: float = 0.0
    metrics_position: int = 0
    config_changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    source_hashes: list[str] = dataclasses.field(default_factory=list)


def restore_or_init(
    setup: Setup,
    manager: ocp.CheckpointManager,
    identity: Identity,
    pretrained: Mapping[str, Any] | None,
) -> tuple[TrainState, Progress]:
    """Returns the state and progress of the latest checkpoint, or initial ones at step 0.

    If there is no checkpoint, the initial state takes the weights of ``pretrained``, the variables
    of the superclass phase, if there was such a phase, or else those of ``config.init_from``.

    Only process 0 reads and initialises. The other processes get a state of zeros, in place of
    which they receive that of process 0.
    """
    like = setup.abstract_state
    if not processes.is_first():
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like), Progress()
    restored = checkpoints.restore_latest(manager, like, identity.check)
    if restored is None:
        return _initial_state(setup, pretrained), Progress()
    state, saved_progress, run = restored
    progress, step = Progress(**saved_progress), int(state.step)
    if step > setup.total_steps:
        done = math.ceil(step / setup.steps_per_epoch)
        raise UserError(
            f"config.num_epochs is {setup.config.num_epochs}, but this run is in or past epoch "
            f"{done}; allowed: at least {done}, or another --workdir"
        )
    began_with = (
        configuration.config_from_json(run["config"])
        if run is not None
        else configuration.read_config(Path(manager.directory).parent)
    )
    changes = identity.changes(step, began_with, (run or {}).get("devices"))
    progress.config_changes += changes
    if any(change["field"] == "freeze" and not change["to"] for change in changes):
        state = _thawed(setup, state)
    # With the old num_epochs this epoch was not the last one: it may not have been evaluated, and
    # its predictions were not written.
    if step == setup.total_steps and any(change["field"] == "num_epochs" for change in changes):
        progress.evaluated = False
    return state, progress


def check_initial_weights(setup: Setup) -> None:
    """Checks that the file of ``config.init_from`` fits the model, before anything is written."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), setup.abstract_state.variables)
    start_from(setup.config.init_from, zeros, pool=setup.config.pool)


def _thawed(setup: Setup, state: TrainState) -> TrainState:
    """Restarts the optimizer if possible, because the backbone's moments are 0; says so."""
    opt_state = restart(setup.tx, state.params, state.opt_state)
    if opt_state is None:
        print(
            f"config.freeze is now empty: {setup.config.optimizer.name} keeps its state, with "
            "which the first updates of the backbone may be several times as large as usual",
            file=sys.stderr,
        )
        return state
    print(
        "config.freeze is now empty: the optimizer's state begins anew; the schedule continues",
        file=sys.stderr,
    )
    return dataclasses.replace(state, opt_state=opt_state)


def _initial_state(setup: Setup, pretrained: Mapping[str, Any] | None) -> TrainState:
    """Returns the state at step 0, with weights that were trained before if there are any."""
    state = setup.init()
    if pretrained is not None:
        variables = superclass.with_new_classifiers(state.variables, pretrained)
        return _with_variables(setup, state, variables)
    if not setup.config.init_from:
        return state
    file = setup.config.init_from
    variables, new, resized = start_from(
        file, jax.device_get(state.variables), pool=setup.config.pool
    )
    if new:
        print(
            f"{file} has no {', '.join(new)} for {setup.dataset.num_classes} classes: training "
            "begins with new ones",
            file=sys.stderr,
        )
    if resized:
        print(f"{file}: resampled for the size of the maps: {', '.join(resized)}", file=sys.stderr)
    return _with_variables(setup, state, variables)


def _with_variables(setup: Setup, state: TrainState, variables: Mapping[str, Any]) -> TrainState:
    """Replaces all weights and statistics of a state at step 0."""
    params = variables["params"]
    # The optimizer is initialised again, because its state may hold a copy of the parameters. The
    # average is a copy, because each buffer of the state is donated and can be donated only once.
    return dataclasses.replace(
        state,
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(setup.tx.init)(params),
        ema_params=None if state.ema_params is None else jax.tree.map(np.array, params),
    )
