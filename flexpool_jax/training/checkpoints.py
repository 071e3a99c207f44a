"""Saving and restoring a run with Orbax: asynchronous, the latest two and the best kept.

A checkpoint has three items: ``model`` (parameters and batch statistics, all that evaluation
needs), ``optimizer`` (the optimiser's state and the step) and ``progress`` (JSON: where the run
stands). Arrays are saved from the host without a device axis, so that a checkpoint restores on any
number of devices. ``progress`` carries a digest of each item, and so what a disk has silently
altered is found out. What becomes of damaged folders is next door, in `checkpoint_folders`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from flexpool_jax.errors import UserError
from flexpool_jax.training import checkpoint_folders, orbax_errors
from flexpool_jax.training.checkpoint_folders import DAMAGED_FOLDER, FOLDER
from flexpool_jax.training.state import TrainState


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read, or whose content is not what was saved."""


class NotFinite(Exception):
    """A state that holds a NaN or an infinity."""


def open_checkpoints(workdir: Path, *, read_only: bool = False) -> ocp.CheckpointManager:
    """Opens (unless read_only, creates) the checkpoints of a workdir.

    Saving keeps the latest two, so that one damaged file costs one interval, and the one of the
    best accuracy.

    Raises:
        UserError: read_only, and one of them is damaged so that none can be looked at; or something
            else is in the folder's place.
    """
    checkpoint_folders.check_folder(workdir, read_only=read_only)
    if read_only:
        for step, reason in checkpoint_folders.steps_with_unreadable_metrics(workdir):
            raise UserError(
                f"checkpoint {step} in {workdir / FOLDER} is damaged: {reason}; "
                "training on with the same command sets it aside"
            )
    else:
        checkpoint_folders.recover_superseded(workdir)
        checkpoint_folders.set_aside_unreadable_metrics(workdir)
    orbax_errors.say_once()
    policies = ocp.checkpoint_managers
    options = ocp.CheckpointManagerOptions(
        best_fn=_accuracy,
        preservation_policy=policies.AnyPreservationPolicy(
            [
                policies.LatestN(2),
                policies.BestN(
                    get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        ),
        # What is saved, and when, is the loop's decision.
        save_decision_policy=policies.FixedIntervalPolicy(1),
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
    )
    # Orbax fails in the background, silently, with a relative path.
    return ocp.CheckpointManager(
        (workdir / FOLDER).absolute(),
        item_names=("model", "optimizer", "progress"),
        options=options,
    )


def _accuracy(metrics: Mapping[str, float]) -> float:
    return metrics["accuracy"]


def _digest(item: Any) -> str:
    """SHA-256 over the names, types, shapes and bytes of a tree's leaves, or over JSON's text."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(item):
        leaf = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        sha.update(np.ascontiguousarray(leaf).data)
    return sha.hexdigest()


def _items(state: TrainState) -> dict[str, Any]:
    return {
        "model": state.variables,
        "optimizer": {"step": state.step, "opt_state": state.opt_state},
    }


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    progress: Mapping[str, Any],
    accuracy: float | None = None,
) -> None:
    """Starts to save a state; its arrays are copied to the host, and written in the background.

    Args:
        manager: from `open_checkpoints`.
        state: replicated or on one device.
        progress: what JSON can hold.
        accuracy: in [0, 1], if this state has been evaluated; only such a state can be the best.

    Raises:
        NotFinite: the state holds a NaN or an infinity, and is not worth keeping.
        OSError: the disk is full, say; of this save or of the one before.
    """
    items = jax.device_get(_items(state))
    _check_finite(items)
    step = int(items["optimizer"]["step"])
    digests = {name: _digest(item) for name, item in items.items()}
    digests["progress"] = _digest(json.dumps(progress, sort_keys=True))
    wait(manager)
    with orbax_errors.naming(Path(manager.directory)):
        if step in manager.all_steps():
            checkpoint_folders.supersede(Path(manager.directory).parent, step)
            manager.reload()
        manager.save(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave(item) for name, item in items.items()},
                progress=ocp.args.JsonSave(
                    {"progress": dict(progress), "accuracy": accuracy, "sha256": digests}
                ),
            ),
            metrics=None if accuracy is None else {"accuracy": accuracy},
        )


def wait(manager: ocp.CheckpointManager) -> None:
    """Waits until what was saved is on the disk, whole.

    Raises:
        OSError: it could not be written: the disk is full, say.
    """
    with orbax_errors.naming(Path(manager.directory)):
        manager.wait_until_finished()


def _check_finite(items: Mapping[str, Any]) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(items):
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            raise NotFinite(f"{jax.tree_util.keystr(path)} is not finite")


def restore(
    manager: ocp.CheckpointManager, step: int, like: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """Restores one step, on the host.

    Args:
        manager: from `open_checkpoints`.
        step: one of ``manager.all_steps()``.
        like: a state, or its `jax.eval_shape`, of the same structure, shapes and dtypes.

    Returns:
        The state, as NumPy arrays, and its progress.

    Raises:
        DamagedCheckpoint: it cannot be read or is not what was saved.
    """
    items, progress = _restore_items(manager, step, _items(like))
    state = TrainState(
        step=items["optimizer"]["step"],
        params=items["model"]["params"],
        batch_stats=items["model"]["batch_stats"],
        opt_state=items["optimizer"]["opt_state"],
    )
    return state, progress


def restore_model(manager: ocp.CheckpointManager, step: int, like: TrainState) -> dict[str, Any]:
    """Restores ``params`` and ``batch_stats`` alone, as `restore` does."""
    return _restore_items(manager, step, {"model": like.variables})[0]["model"]


def _restore_items(
    manager: ocp.CheckpointManager, step: int, like: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), dict(like))
    try:
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardRestore(item) for name, item in blank.items()},
                progress=ocp.args.JsonRestore(),
            ),
        )
        items = {name: restored[name] for name in blank}
        progress, sha256 = restored["progress"]["progress"], restored["progress"]["sha256"]
        found = {name: _digest(item) for name, item in items.items()}
        found["progress"] = _digest(json.dumps(progress, sort_keys=True))
        _check_shapes(items, blank)
        altered = [name for name, digest in found.items() if digest != sha256[name]]
    except Exception as error:  # Orbax raises many kinds for a file that is missing or cut short.
        reason = " ".join(str(error).split())[:200]
        raise DamagedCheckpoint(f"step {step} cannot be read: {reason}") from error
    if altered:
        raise DamagedCheckpoint(f"step {step} is not what was saved: {', '.join(altered)} differs")
    return items, progress


def _check_shapes(items: Any, like: Any) -> None:
    """Orbax restores an array of another shape without a word."""
    for (path, found), expected in zip(
        jax.tree_util.tree_leaves_with_path(items), jax.tree.leaves(like), strict=True
    ):
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            name = jax.tree_util.keystr(path)
            raise ValueError(f"{name} is {found.shape}, the model's is {expected.shape}")


def restore_latest(
    manager: ocp.CheckpointManager, like: TrainState
) -> tuple[TrainState, dict[str, Any]] | None:
    """Restores the latest whole checkpoint; None where none was ever saved.

    Damaged ones are reported, passed over and moved to `DAMAGED_FOLDER` beside.

    Raises:
        UserError: there are checkpoints, or were, but none is whole.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    damaged: list[int] = []
    for step in steps:
        try:
            state, progress = restore(manager, step, like)
        except DamagedCheckpoint as error:
            logging.warning("Checkpoint %s; trying the one before.", error)
            damaged.append(step)
            continue
        for bad in damaged:
            checkpoint_folders.set_aside(Path(manager.directory).parent, bad)
        manager.reload()
        return state, progress
    workdir = Path(manager.directory).parent
    kept = [path.name for path in (workdir / DAMAGED_FOLDER).glob("*")]
    if steps or kept:
        listed = ", ".join(sorted([*map(str, steps), *kept]))
        raise UserError(
            f"every checkpoint in {workdir} is damaged (steps {listed}); "
            "restore the folder from a copy, or start anew in another --workdir"
        )
    return None


def choose_step(manager: ocp.CheckpointManager, which: str) -> int:
    """The step that ``--step=best|latest|N`` means.

    Raises:
        UserError: there is no such step.
    """
    steps = sorted(manager.all_steps())
    if not steps:
        raise UserError(f"{manager.directory} holds no checkpoint; train first")
    if which == "latest":
        return steps[-1]
    if which == "best":
        best = manager.best_step()
        return steps[-1] if best is None else best
    if which.isdigit() and int(which) in steps:
        return int(which)
    raise UserError(
        f"--step={which}: allowed are best, latest and the saved steps {', '.join(map(str, steps))}"
    )
