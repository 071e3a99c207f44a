"""Saves each state that is due and, together with it, the best state since the last save."""

from __future__ import annotations

from typing import Any, NamedTuple

import orbax.checkpoint as ocp

from flexpool_jax.training import checkpoints
from flexpool_jax.training.identity import Identity
from flexpool_jax.training.steps import TrainState


class Snapshot(NamedTuple):
    """The content of one checkpoint.

    Attributes:
        step: step of the state.
        state: the state, as NumPy arrays on the host.
        progress: `Progress` at this step, as a dict.
        accuracy: accuracy of the state in [0, 1]; None if the state was not evaluated.
    """

    step: int
    state: TrainState
    progress: dict[str, Any]
    accuracy: float | None


class Saver:
    """Saves snapshots in the order of their steps; the best snapshot is kept until the next save.

    Args:
        manager: result of `checkpoints.open_checkpoints`.
        identity: identity of the run.
        step: step at which the process begins, which need not be saved.
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
        """Keeps a snapshot in memory as the best one; the best snapshot before it is discarded.

        Raises:
            NotFinite: the snapshot holds a NaN or an infinity.
        """
        checkpoints.check_finite(best.state, best.step)
        self._best = best

    def save(self, snapshot: Snapshot | None = None) -> None:
        """Starts to save the best snapshot, if one is kept, and the given snapshot.

        Raises:
            NotFinite, OSError, UserError: see `checkpoints.save`.
        """
        # If both are of the same step, the best snapshot is saved, because it has an accuracy.
        unsaved = {one.step: one for one in (snapshot, self._best) if one is not None}
        self._best = None
        for step in sorted(unsaved):
            one = unsaved[step]
            if (step, one.progress["evaluated"]) == self._saved:
                continue
            checkpoints.save(self._manager, one.state, one.progress, one.accuracy, self._run)
            self._saved = (step, one.progress["evaluated"])

    def wait(self) -> None:
        """Waits until all snapshots are on the disk; raises OSError as `checkpoints.wait` does."""
        checkpoints.wait(self._manager)

    def last_step(self) -> int | None:
        """The last step that was saved, also by earlier processes; None if there is none."""
        return self._manager.latest_step()
