"""Saves and restores a run with Orbax, in the background; keeps the latest two and the best.

If a run has several processes, each process has its own manager, and only process 0 saves, since
the state is the same in all processes. So no barrier of Orbax waits for a process that has ended.

A checkpoint has three items. ``model`` holds the parameters and batch statistics that evaluation
needs. ``optimizer`` holds the optimizer's state, the step and, if ``model`` holds the moving
average of the parameters, the parameters themselves. ``progress`` is JSON: the run's `Progress` and
identity, and the step. Arrays are saved from the host without a device axis, so that a checkpoint
can be restored on any number of devices. ``progress`` also holds a digest of each item, so that
silent damage on a disk is detected. `orbax_faults` handles damaged folders.
"""

from __future__ import annotations

import hashlib
import json
import operator
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from flexpool_jax import layout
from flexpool_jax.errors import UserError, one_line
from flexpool_jax.training import orbax_faults, processes
from flexpool_jax.training.steps import NotFinite, TrainState


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read, or whose content is not what was saved."""


def open_checkpoints(workdir: Path, *, read_only: bool = False) -> ocp.CheckpointManager:
    """Opens the checkpoints of a workdir; creates their folder unless read_only.

    Saving keeps the latest two checkpoints and the checkpoint with the best accuracy. With two, a
    damaged file costs only the steps of one interval.

    Raises:
        UserError: with read_only, the metrics of a checkpoint are damaged, so that Orbax cannot
            open the folder; or the folder's path is not a folder, or a permission is missing.
    """
    orbax_faults.check_folder(workdir, read_only=read_only)
    if not read_only:
        (workdir / layout.CHECKPOINTS_FOLDER).mkdir(parents=True, exist_ok=True)
        orbax_faults.recover_superseded(workdir)
    for step, reason in orbax_faults.steps_with_unreadable_metrics(workdir):
        if read_only:
            raise UserError(
                f"checkpoint {step} in {workdir / layout.CHECKPOINTS_FOLDER} is damaged: {reason}; "
                "training on with the same command sets it aside"
            )
        print(f"damaged checkpoint: step {step}: {reason}", file=sys.stderr)
        orbax_faults.set_aside(workdir, step)
    orbax_faults.suppress_repeated_messages()
    policies = ocp.checkpoint_managers
    accuracy = operator.itemgetter("accuracy")
    options = ocp.CheckpointManagerOptions(
        best_fn=accuracy,
        preservation_policy=policies.AnyPreservationPolicy(
            [
                policies.LatestN(2),
                policies.BestN(get_metric_fn=accuracy, n=1, keep_checkpoints_without_metrics=False),
            ]
        ),
        # The loop decides when to save; Orbax saves every state that it is given.
        save_decision_policy=policies.FixedIntervalPolicy(1),
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        create=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        ),
    )
    # With a relative path, Orbax fails in the background without an error.
    return ocp.CheckpointManager(
        (workdir / layout.CHECKPOINTS_FOLDER).absolute(),
        item_names=("model", "optimizer", "progress"),
        options=options,
    )


def digest(item: Any) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a tree's leaves, or over a JSON text."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(item):
        leaf = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        sha.update(leaf.tobytes())
    return sha.hexdigest()


def model_reference(step: int, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by which a report names the weights that it measured.

    `flexpool_jax.files.measures_same_model` compares these fields of two reports.
    """
    return {"step": step, "model_digest": digest(variables)}


def _items(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint: the model for evaluation, and the rest that training needs."""
    optimizer = {"step": state.step, "opt_state": state.opt_state}
    if state.ema_params is not None:
        optimizer["params"] = state.params
    return {"model": state.variables, "optimizer": optimizer}


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    progress: Mapping[str, Any],
    accuracy: float | None = None,
    run: Mapping[str, Any] | None = None,
) -> None:
    """Starts to save a state; its arrays are copied to the host, and written in the background.

    Args:
        manager: result of `open_checkpoints`.
        state: the state, replicated, on one device or on the host.
        progress: the run's `Progress`, as values that JSON can hold.
        accuracy: accuracy of the state in [0, 1], if it has been evaluated. Only an evaluated state
            can become the best checkpoint.
        run: result of `Identity.to_json`; this function adds the step.

    Raises:
        NotFinite: the state holds a NaN or an infinity; it is not saved.
        OSError: this save could not start, or the previous save failed, for example because the
            disk is full.
        UserError: the folder holds a later step, which this run cannot have saved.
    """
    items = jax.device_get(_items(state))
    step = int(items["optimizer"]["step"])
    check_finite(items, step)
    if not processes.is_first():
        return
    digests = {name: digest(item) for name, item in items.items()}
    run = {**(run or {}), "step": step}
    described = {"progress": dict(progress), "run": run}
    digests |= {name: digest(json.dumps(part, sort_keys=True)) for name, part in described.items()}
    wait(manager)
    with orbax_faults.naming_folder(Path(manager.directory)):
        if step in manager.all_steps():
            orbax_faults.supersede(Path(manager.directory).parent, step)
            manager.reload()
        saving = manager.save(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave(item) for name, item in items.items()},
                progress=ocp.args.JsonSave({**described, "accuracy": accuracy, "sha256": digests}),
            ),
            metrics=None if accuracy is None else {"accuracy": accuracy},
        )
    if not saving:
        raise UserError(
            f"step {step} cannot be saved: {manager.directory} holds the later step "
            f"{manager.latest_step()}, which is not of this run; move that folder away"
        )


def wait(manager: ocp.CheckpointManager) -> None:
    """Waits until the checkpoints that were saved are complete on the disk.

    Raises:
        OSError: a checkpoint could not be written, for example because the disk is full.
    """
    with orbax_faults.naming_folder(Path(manager.directory)):
        manager.wait_until_finished()
        if processes.is_first():
            orbax_faults.recover_superseded(Path(manager.directory).parent)


def check_finite(tree: Any, step: int) -> None:
    """Raises `NotFinite` with the step if arrays on the host hold a NaN or an infinity."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            what = f"{jax.tree_util.keystr(path)} is not finite"
            raise NotFinite(step, what, updates=step)


def read_run(manager: ocp.CheckpointManager, step: int) -> dict[str, Any] | None:
    """Reads which run a checkpoint belongs to.

    Returns:
        The argument ``run`` of `save`, with ``step`` added; None for a checkpoint of release 0.1,
        which does not hold it.

    Raises:
        DamagedCheckpoint: the checkpoint cannot be read, or its content is not what was saved.
        UserError: the name of the checkpoint's folder is not the step that the checkpoint holds.
    """
    return _read_progress(manager, step)[1]


Check = Callable[[int, Mapping[str, Any] | None], object]


def restore(
    manager: ocp.CheckpointManager,
    step: int,
    like: TrainState,
    check: Check = lambda step, run: None,
) -> tuple[TrainState, dict[str, Any], dict[str, Any] | None]:
    """Restores one checkpoint to arrays on the host.

    Args:
        manager: result of `open_checkpoints`.
        step: step of the checkpoint, one of ``manager.all_steps()``.
        like: a state, or its `jax.eval_shape`, of the same structure, shapes and dtypes.
        check: function that is called with the step and the result of `read_run`, before the
            arrays are read. It raises a UserError to refuse the checkpoint.

    Returns:
        The state, as NumPy arrays, the progress that was saved with it, and the result of
        `read_run`.

    Raises:
        DamagedCheckpoint: the checkpoint cannot be read, or its content is not what was saved.
        UserError: the name of the checkpoint's folder is not the step that the checkpoint holds, or
            an array has another shape or dtype than in ``like``.
    """
    progress, run, sha256 = _read_progress(manager, step)
    check(step, run)
    items = _restore_items(manager, step, _items(like), sha256)
    model, optimizer = items["model"], items["optimizer"]
    state = TrainState(
        step=optimizer["step"],
        params=optimizer.get("params", model["params"]),
        batch_stats=model["batch_stats"],
        opt_state=optimizer["opt_state"],
        ema_params=model["params"] if "params" in optimizer else None,
    )
    _check_step(manager, step, int(state.step))
    return state, progress, run


def restore_model(manager: ocp.CheckpointManager, step: int, like: TrainState) -> dict[str, Any]:
    """Restores only ``params`` and ``batch_stats``; arguments and errors are those of `restore`."""
    _, run, sha256 = _read_progress(manager, step)
    if run is None:
        # In release 0.1 only the item of the optimizer holds the step, which `restore` checks.
        return restore(manager, step, like)[0].variables
    return _restore_items(manager, step, {"model": like.variables}, sha256)["model"]


def _read_progress(
    manager: ocp.CheckpointManager, step: int
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, str]]:
    """Reads a checkpoint's progress, its run (None in release 0.1) and the digests of its items."""
    try:
        content = manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
        content = content["progress"]
        progress, run, sha256 = content["progress"], content.get("run"), content["sha256"]
        described = {"progress": progress} | ({} if run is None else {"run": run})
        found = {n: digest(json.dumps(part, sort_keys=True)) for n, part in described.items()}
        kept = {name: sha256[name] for name in ("progress", "run") if name in sha256}
        is_whole = found == kept
        saved_step = None if run is None else int(run["step"])
    except Exception as error:  # Orbax raises many kinds for a file that is missing or cut short.
        raise _unreadable(step, error) from error
    if not is_whole:
        raise DamagedCheckpoint(f"step {step} is not what was saved: progress differs")
    if saved_step is not None:
        _check_step(manager, step, saved_step)
    return progress, run, sha256


def _check_step(manager: ocp.CheckpointManager, name: int, step: int) -> None:
    if name != step:
        raise UserError(
            f"{manager.directory / str(name)} holds step {step}: the folder was renamed; give it "
            f"the name {step} again, or move it away"
        )


def _restore_items(
    manager: ocp.CheckpointManager, step: int, like: Mapping[str, Any], sha256: Mapping[str, str]
) -> dict[str, Any]:
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), dict(like))
    try:
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardRestore(item) for name, item in blank.items()}
            ),
        )
        items = {name: restored[name] for name in blank}
        altered = [name for name, item in items.items() if digest(item) != sha256[name]]
    except Exception as error:  # Orbax raises many kinds for a file that is missing or cut short.
        raise _unreadable(step, error) from error
    if altered:
        raise DamagedCheckpoint(f"step {step} is not what was saved: {', '.join(altered)} differs")
    _check_shapes(step, items, blank)
    return items


def _unreadable(step: int, error: Exception) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"step {step} cannot be read: {one_line(error)}")


def _check_shapes(step: int, items: Any, like: Any) -> None:
    """Raises UserError if an array has another shape or dtype, which Orbax does not check."""
    for (path, found), expected in zip(
        jax.tree_util.tree_leaves_with_path(items), jax.tree.leaves(like), strict=True
    ):
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            name = jax.tree_util.keystr(path)
            raise UserError(
                f"step {step} was saved by another model: {name} is {found.dtype} {found.shape}, "
                f"and needs to be {expected.dtype} {expected.shape}; if you changed the code of "
                "your model, give another --workdir"
            )


def restore_latest(
    manager: ocp.CheckpointManager, like: TrainState, check: Check = lambda step, run: None
) -> tuple[TrainState, dict[str, Any], dict[str, Any] | None] | None:
    """Restores the latest undamaged checkpoint by `restore`; returns None if none was ever saved.

    Damaged checkpoints are reported and skipped. When an undamaged one is found, the damaged ones
    are moved to checkpoints_damaged/.

    Raises:
        UserError: every checkpoint is damaged, none holds an optimizer's state, ``check`` refuses
            one, or an array of the latest one that is undamaged has another shape or dtype than in
            ``like``.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    damaged: list[int] = []
    for step in steps:
        try:
            restored = restore(manager, step, like, check)
        except DamagedCheckpoint as error:
            print(f"damaged checkpoint: {error}; trying the one before", file=sys.stderr)
            damaged.append(step)
            continue
        for bad in damaged:
            orbax_faults.set_aside(Path(manager.directory).parent, bad)
        if damaged:
            manager.reload()
        return restored
    workdir = Path(manager.directory).parent
    if steps and not any((Path(manager.directory) / f"{s}/optimizer").exists() for s in steps):
        raise UserError(
            f"{manager.directory} holds no state of an optimizer, so this run cannot continue; use "
            "it by --mode=eval, or start another run from its weights: first --mode=export, then "
            "--config.init_from=FILE"
        )
    kept = [path.name for path in (workdir / layout.DAMAGED_FOLDER).glob("*")]
    if steps or kept:
        listed = ", ".join(sorted([*map(str, steps), *kept]))
        raise UserError(
            f"every checkpoint in {workdir} is damaged (steps {listed}), or the code of the model "
            "has changed; restore the folder or the code, or start again in another --workdir"
        )
    return None


def choose_step(manager: ocp.CheckpointManager, which: str | int) -> int:
    """Returns the step that ``--step=best|latest|N`` selects; N may also be an int.

    If no checkpoint was evaluated, ``best`` selects the latest one.

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
    if str(which).isdecimal() and int(which) in steps:
        return int(which)
    raise UserError(
        f"--step={which}: allowed are best, latest and the saved steps {', '.join(map(str, steps))}"
    )
