"""When states are saved: each checkpoint that is due, and with it the best state since the last."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from flexpool_jax.training import checkpoints
from flexpool_jax.training.identity import Identity
from flexpool_jax.training.resume import Progress
from flexpool_jax.training.steps import TrainState


class Snapshot(NamedTuple):
    """What one checkpoint holds.

    Attributes:
        step: of the state.
        state: NumPy arrays, on the host.
        progress: `Progress` at this step.
        accuracy: in [0, 1]; None where the state was not evaluated.
    """

    step: int
    state: TrainState
    progress: dict[str, Any]
    accuracy: float | None


def take_snapshot(state: TrainState, progress: Progress, accuracy: float | None = None) -> Snapshot:
    """Waits for a state, and copies it to the host."""
    state = jax.device_get(state)
    return Snapshot(int(state.step), state, dataclasses.asdict(progress), accuracy)


class Saver:
    """Saves snapshots in the order of their steps; the best one waits for the next that is saved.

    Args:
        manager: from `checkpoints.open_checkpoints`.
        identity: of the run.
        step: that the process begins at, which needs no saving.
        evaluated: `Progress.evaluated` at this step.
    """

    def __init__(
        self, manager: ocp.CheckpointManager, identity: Identity, step: int, evaluated: bool
    ) -> None:
        self._manager = manager
        self._run = identity.to_json()
        self._saved = (step, evaluated)
        self._best: Snapshot | None = None

    def keep(self, best: Snapshot) -> None:
        """Keeps a snapshot in memory, in the place of the one that was the best before.

        Raises:
            NotFinite: it holds a NaN or an infinity.
        """
        checkpoints.check_finite(best.state, best.step)
        self._best = best

    def save(self, snapshot: Snapshot | None = None) -> None:
        """Starts to save the best snapshot, if one is kept, and the one that is given.

        Raises:
            NotFinite, OSError, UserError: as `checkpoints.save` does.
        """
        # Of two of the same step, the best one says its accuracy.
        unsaved = {one.step: one for one in (snapshot, self._best) if one is not None}
        self._best = None
        for step in sorted(unsaved):
            one = unsaved[step]
            if (step, one.progress["evaluated"]) == self._saved:
                continue
            checkpoints.save(self._manager, one.state, one.progress, one.accuracy, self._run)
            self._saved = (step, one.progress["evaluated"])

    def wait(self) -> None:
        """Waits until all of it is on the disk; raises as `checkpoints.wait` does."""
        checkpoints.wait(self._manager)

    def last_step(self) -> int | None:
        """The last step that was saved, by any process."""
        return self._manager.latest_step()
