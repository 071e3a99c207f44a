"""Restores a checkpoint from a workdir, and evaluates it as training did."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from flexpool_jax import files, layout
from flexpool_jax.data import Dataset
from flexpool_jax.data.arrays import check_dataset
from flexpool_jax.data.dataset import black_split
from flexpool_jax.data.images import Fit
from flexpool_jax.errors import UserError
from flexpool_jax.pooling import resize_flexpool
from flexpool_jax.pools import constraint_of
from flexpool_jax.trained import Restored, restore
from flexpool_jax.training import checkpoints, processes
from flexpool_jax.training.environment import agree_on_compilation_cache
from flexpool_jax.training.eval_loop import evaluate_split
from flexpool_jax.training.feed import Feed
from flexpool_jax.training.identity import Identity, facts, recall
from flexpool_jax.training.setup import load_configured_dataset, replicate, set_up


def restore_workdir(
    workdir: str | os.PathLike[str],
    step: str | int = "latest",
    config: ConfigDict | None = None,
    dataset: Dataset | None = None,
) -> Restored:
    """Restores a checkpoint of a run; writes nothing.

    Args:
        workdir: folder of the run; its config.json describes the model and the data.
        step: ``"best"``, ``"latest"`` or the number of a saved step.
        config: config to use instead of the workdir's, for example with another data folder or
            batch size; it must describe the same model and data.
        dataset: the data set that was passed to `flexpool_jax.train`, if one was passed.

    Raises:
        UserError: there is no such workdir or step, the checkpoint is damaged or belongs to another
            run, the config or the data are not those of the run, or JAX cannot use the platform
            that JAX_PLATFORMS names.
    """

    def load(workdir: Path, config: ConfigDict) -> tuple[Dataset, Identity]:
        loaded = check_dataset(dataset) if dataset else load_configured_dataset(config)
        return loaded, recall(workdir, config, loaded)

    return restore(workdir, step, config, load)


@processes.explaining_loss()
def evaluate(
    workdir: str | os.PathLike[str],
    step: str | int = "latest",
    config: ConfigDict | None = None,
    dataset: Dataset | None = None,
    resize: int | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint on the test split; arguments and errors as for `restore_workdir`.

    Args:
        workdir: see `restore_workdir`.
        step: see `restore_workdir`.
        config: see `restore_workdir`.
        dataset: see `restore_workdir`.
        resize: side in pixels to which the test images are resized, see `at_resolution`; None keeps
            the size that the network was trained with.

    Returns:
        A report with ``step``, ``model_digest``, ``split``, ``examples``, ``loss`` (mean
        cross-entropy in nats), ``accuracy`` in [0, 1], the metrics of `flexpool_jax.scoring`,
        ``accuracy_per_class``, and ``resize`` if it is given. The report is also written to the
        workdir's evaluation.json, if that is possible.
    """
    restored = restore_workdir(workdir, step, config, dataset)
    asked = {"the checkpoint's step": restored.step, "--resize": resize}
    processes.check_alike({**facts(restored.setup.config, restored.setup.dataset), **asked})
    processes.check_shared(restored.workdir / layout.RUN_FILE)
    agree_on_compilation_cache()
    # Before the pools are resampled to another size: the weights of the checkpoint.
    model = checkpoints.model_reference(restored.step, restored.variables)
    label = {}
    if resize is not None:
        restored, label = at_resolution(restored, resize), {"resize": resize}
    setup = restored.setup
    test = Feed(setup.dataset.test, setup.is_streamed)
    evaluation = evaluate_split(setup, replicate(restored.variables), test)
    report = {
        **model,
        "split": setup.split_name,
        **label,
        "examples": len(setup.dataset.test),
        **evaluation.metrics,
        "accuracy_per_class": evaluation.accuracy_per_class,
    }
    try:
        with processes.writable(restored.workdir) as folder:
            files.write_json(folder / layout.EVALUATION_FILE, report)
    except OSError as error:
        # The folder may be another user's, or the disk full: the report is returned in any case.
        print(f"not written: {error.filename}: {error.strerror}", file=sys.stderr)
    return report


def at_resolution(restored: Restored, side: int) -> Restored:
    """Prepares a restored checkpoint for test images of side × side pixels.

    The test images, which have the size of training, are resized once more, and the weights of
    every pool with a ``w_fp`` are resampled to the new feature maps. All other weights stay as they
    were trained.

    Args:
        restored: result of `restore_workdir`.
        side: height and width of the images in pixels.

    Returns:
        The same checkpoint, with the resized test split and without training images.

    Raises:
        UserError: the network cannot take images of this size, or has other weights whose shape
            depends on the size, such as the classifier after the pool ``flatten``.
    """
    config, dataset = restored.setup.config, restored.setup.dataset
    if not isinstance(side, int) or not 8 <= side <= 1024:
        raise UserError(f"resize is {side!r}; allowed: a whole number of pixels from 8 to 1024")
    resized = dataclasses.replace(
        dataset,
        train=black_split(0, (side, side, dataset.image_shape[2])),
        test=dataset.test.resize(Fit(side)),
    )
    setup = set_up(config, resized)
    like = setup.abstract_state.params
    try:
        params = resize_flexpool(
            restored.variables["params"],
            like=like,
            constraint=constraint_of(config.pool),
        )
    except ValueError as error:
        raise UserError(f"cannot evaluate at {side}x{side} pixels: {error}") from error
    has: Any = jax.tree.structure(params)
    if has != jax.tree.structure(like):
        raise UserError(
            f"cannot evaluate at {side}x{side} pixels: {config.model} has other layers for images "
            "of this size"
        )
    variables = {**restored.variables, "params": jax.device_get(params)}
    return dataclasses.replace(restored, setup=setup, variables=variables)
