"""Restores a checkpoint of a run, with the data set or from the workdir alone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from flexpool_jax import configuration, files, layout
from flexpool_jax.data import Dataset
from flexpool_jax.data.augment import make_normalise
from flexpool_jax.data.dataset import black_split
from flexpool_jax.errors import UnknownName, UserError
from flexpool_jax.training import checkpoints
from flexpool_jax.training.determinism import use_deterministic_ops
from flexpool_jax.training.environment import check_platform
from flexpool_jax.training.identity import Identity, read_id
from flexpool_jax.training.setup import Setup, create_configured_model, set_up

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint, and the set-up that is needed to use it.

    Attributes:
        workdir: absolute path of the run's folder.
        step: step of the checkpoint.
        setup: config, data set, model and compiled steps.
        variables: ``params`` and ``batch_stats``, NumPy arrays on the host.
    """

    workdir: Path
    step: int
    setup: Setup
    variables: dict[str, Any]


def restore(
    workdir: str | os.PathLike[str],
    step: str | int,
    config: ml_collections.ConfigDict | None,
    identify: Callable[[Path, ml_collections.ConfigDict], tuple[Dataset, Identity]],
) -> Restored:
    """Restores a checkpoint of a run; writes nothing. Arguments and errors as for `load_trained`.

    ``identify`` is a function from the workdir and the config to the data set and the identity of
    the run; a checkpoint of another run is refused.
    """
    try:
        return _restore(files.expanded(workdir).absolute(), step, config, identify)
    except UnknownName as error:
        if config is not None:
            raise
        raise UserError(
            f"{error}; if your code registers it, import that code first, or pass its config as "
            "config="
        ) from error


def _restore(
    workdir: Path,
    step: str | int,
    config: ml_collections.ConfigDict | None,
    identify: Callable[[Path, ml_collections.ConfigDict], tuple[Dataset, Identity]],
) -> Restored:
    config = configuration.config_of_run(workdir, config)
    if config.deterministic:
        # If JAX has already started, sums on a GPU may differ from those of training in rounding.
        with contextlib.suppress(UserError):
            use_deterministic_ops()
    check_platform()
    with checkpoints.open_checkpoints(workdir, read_only=True) as manager:
        found = setup = None
        while True:
            number = checkpoints.choose_step(manager, step)
            try:
                run = checkpoints.read_run(manager, number)
                found = found or identify(workdir, config)  # Reads the data only once.
                dataset, identity = found
                identity.check(number, run)
                setup = setup or set_up(config, dataset)
                variables = checkpoints.restore_model(manager, number, setup.abstract_state)
                break
            except checkpoints.DamagedCheckpoint as error:
                # A run that is in training may have saved another checkpoint and deleted this one.
                manager.reload()
                if checkpoints.choose_step(manager, step) == number:
                    raise UserError(f"cannot use {manager.directory}: {error}") from error
    return Restored(workdir, number, setup, variables)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network, with everything that is needed to classify other images.

    Attributes:
        workdir: absolute path of the run's folder.
        step: step of the checkpoint.
        config: config of the run.
        model: the Flax module, from `flexpool_jax.create_model`.
        variables: ``params`` and ``batch_stats``, NumPy arrays on the host.
        class_names: names of the classes, in the order of the logits.
        image_shape: (H, W, C) of the images that the model takes.
        mean, std: float32 [C], mean and standard deviation that normalise images / 255.
        dataset_name: name of the data set; differs from config.dataset.name if a program passed
            ``dataset=`` to `flexpool_jax.train`.
        test_images: number of images of the evaluation split.
    """

    workdir: Path
    step: int
    config: ml_collections.ConfigDict
    model: nn.Module
    variables: dict[str, Any]
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    dataset_name: str
    test_images: int

    @property
    def preprocess(self) -> Callable[[Array], Array]:
        """A function that turns uint8 images [B, H, W, C] into the input of the model.

        It raises UserError for images of another dtype, such as images divided by 255, or with
        other channels.
        """
        normalise = make_normalise(self.mean, self.std, jnp.dtype(self.config.dtype))

        def preprocess(images: Array) -> Array:
            images = jnp.asarray(images)
            is_batch = images.ndim == 4 and images.shape[-1] == self.image_shape[-1]
            if images.dtype != jnp.uint8 or not is_batch:
                raise UserError(
                    f"images are {images.dtype} {list(images.shape)}; allowed: uint8 "
                    f"[B, H, W, {self.image_shape[-1]}], from 0 to 255"
                )
            return normalise(images)

        return preprocess

    def probabilities(self, variables: Mapping[str, Any], images: Array) -> Array:
        """Maps uint8 images [B, H, W, C] to the classes' probabilities, float32 [B, K].

        The function is not compiled: wrap it in `jax.jit`.

        Args:
            variables: ``variables`` of this object, or the same arrays on a device.
            images: uint8 [B, H, W, C].
        """
        logits: Any = self.model.apply(variables, self.preprocess(images), train=False)
        return jax.nn.softmax(logits)


def load_trained(
    workdir: str | os.PathLike[str],
    step: str | int = "latest",
    config: ml_collections.ConfigDict | None = None,
) -> Trained:
    """Restores a checkpoint of a run with the help of its data.json; writes nothing.

    Args:
        workdir: folder of the run.
        step: ``"best"``, ``"latest"`` or the number of a saved step.
        config: config to use instead of the workdir's; it must describe the same model and data.

    Raises:
        UserError: there is no such workdir or step, there is no data.json, a file is damaged or
            belongs to another run, or JAX cannot use the platform that JAX_PLATFORMS names.

    Example:
        >>> trained = load_trained("runs/digits")  # doctest: +SKIP
        >>> images = trained.preprocess(uint8_images)  # doctest: +SKIP
        >>> logits = trained.model.apply(trained.variables, images)  # doctest: +SKIP
        >>> trained.class_names[logits[0].argmax()]  # doctest: +SKIP
        '7'
    """
    restored = restore(workdir, step, config, _identify)
    dataset = restored.setup.dataset
    # Statistics that are averaged over the devices of a run exist only in its compiled steps.
    alone = ml_collections.ConfigDict(restored.setup.config)
    alone.sync_batch_norm = False
    return Trained(
        workdir=restored.workdir,
        step=restored.step,
        config=restored.setup.config,
        model=create_configured_model(alone, dataset),
        variables=restored.variables,
        class_names=dataset.class_names,
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        dataset_name=dataset.name,
        test_images=len(dataset.test),
    )


def _identify(workdir: Path, config: ml_collections.ConfigDict) -> tuple[Dataset, Identity]:
    """Returns the data set and the identity that a workdir's data.json and run.json describe."""
    data = files.read_json(workdir / layout.DATA_FILE, ("digest",))
    if data is None:
        raise UserError(
            f"{workdir} has no {layout.DATA_FILE}, which release 0.1 did not write yet; run once "
            f"`python launch.py --workdir={shlex.quote(str(workdir))}`: a finished run adds the "
            "file and does not train"
        )
    if not files.digest_matches(data):
        raise UserError(
            f"{workdir / layout.DATA_FILE} is not what was written; start the run's training "
            "command once, which writes the file again and does not train a finished run"
        )
    dataset = _parse_data_json(data, workdir / layout.DATA_FILE)
    return dataset, Identity(read_id(workdir), config, data["digest"])


def _parse_data_json(data: dict[str, Any], path: Path) -> Dataset:
    """Builds the data set that data.json describes. Its images are black and take no memory."""
    try:
        height, width, channels = map(int, data["image_shape"])
        name, class_names = str(data["name"]), tuple(map(str, data["class_names"]))
        mean, std = (np.asarray(data[name], np.float32) for name in ("mean", "std"))
        counts = [int(data[name]) for name in ("train_images", "test_images")]
        whole = mean.shape == std.shape == (channels,) and np.isfinite([mean, std]).all()
        sizes = (height, width, channels, *counts)
        if not whole or not class_names or min(sizes) < 1 or min(std) <= 0:
            raise ValueError("its numbers do not fit together")
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is damaged: {reason}") from error
    train, test = (black_split(count, (height, width, channels)) for count in counts)
    return Dataset(name, train, test, class_names, mean, std)
