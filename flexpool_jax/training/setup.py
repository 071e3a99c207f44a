"""Builds the model, the optimizer and the compiled steps from a config and a data set.

Training and evaluation both begin with `set_up`, so that a checkpoint is evaluated by the program
that training used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import linen as nn
from flax.errors import FlaxError

from flexpool_jax import configuration, cpu
from flexpool_jax.data import Dataset, load_dataset, memory_for_images
from flexpool_jax.data.augment import make_augment, make_normalise
from flexpool_jax.errors import UserError, one_line
from flexpool_jax.models import create_model
from flexpool_jax.models.registry import CIFAR_OPTIONS
from flexpool_jax.optimizer import make_optimizer, make_schedule
from flexpool_jax.pooling import flexpool_regularizer, named_w_fp
from flexpool_jax.pools import constraint_of, has_weights, pool_summary
from flexpool_jax.training import processes, steps
from flexpool_jax.training.determinism import check_deterministic
from flexpool_jax.training.pace import longest_dispatch
from flexpool_jax.training.steps import TrainState, create_train_state

Array = jax.Array

# Most bytes of images that are sent for one dispatch, so that several dispatches fit into memory.
_DISPATCH_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Setup:
    """All parts of a run except its state.

    Attributes:
        config: result of `flexpool_jax.configuration.resolve`.
        dataset: data set that the config names.
        model: the Flax module, from `flexpool_jax.create_model`.
        tx: the optimizer.
        normalise: function from uint8 images to the input of the model.
        is_streamed: whether batches are read while the devices compute, see
            config.dataset.placement.
        steps_per_dispatch: largest number of updates in one call of ``train_steps``; see
            `flexpool_jax.training.pace`.
        train_steps: see `steps.pmap_train_step`.
        eval_step: see `steps.pmap_eval_step`.
        pool_summary: `flexpool_jax.pools.pool_summary` of the model's pool, compiled as a whole.
    """

    config: ml_collections.ConfigDict
    dataset: Dataset
    model: nn.Module
    tx: optax.GradientTransformation
    normalise: Callable[[Array], Array]
    is_streamed: bool
    steps_per_dispatch: int
    train_steps: Callable[..., tuple[TrainState, steps.Metrics]]
    eval_step: Callable[..., tuple[steps.Metrics, steps.Metrics]]
    pool_summary: Callable[[Any], dict[str, Any]]

    @property
    def steps_per_epoch(self) -> int:
        """The number of whole batches; the examples that are left over differ between epochs."""
        return len(self.dataset.train) // self.config.batch_size

    @property
    def total_steps(self) -> int:
        """The number of updates in the whole run."""
        return self.config.num_epochs * self.steps_per_epoch

    @property
    def split_name(self) -> str:
        """The split in ``dataset.test``: "test", or "validation" if held out of the training."""
        return "validation" if self.config.dataset.holdout else "test"

    @property
    def convolutions(self) -> str:
        """Which library computes the convolutions."""
        uses_kernels = jax.default_backend() == "cpu" and self.config.dtype == "float32"
        return cpu.describe() if uses_kernels else "XLA"

    def init(self) -> TrainState:
        """The state at step 0, on one device."""
        key = jax.random.key(self.config.seed)
        shape, keep_average = self.dataset.image_shape, self.config.ema_decay > 0
        return create_train_state(self.model, self.tx, key, shape, keep_average)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """The shapes and dtypes of the state, without computing it."""
        return jax.eval_shape(self.init)


def set_up(config: ml_collections.ConfigDict, dataset: Dataset) -> Setup:
    """Builds the parts of a run from its config and data set.

    Args:
        config: result of `flexpool_jax.configuration.resolve`.
        dataset: data set that ``config.dataset`` names.

    Raises:
        UserError: the config does not fit the data. `check_training` checks what only training
            needs.
    """
    dataset = _with_normalisation(config, dataset)
    # At least one: evaluation builds a schedule as well, and may have fewer images than a batch.
    steps_per_epoch = max(1, len(dataset.train) // config.batch_size)
    schedule = make_schedule(
        config.schedule,
        config.learning_rate,
        total_steps=config.num_epochs * steps_per_epoch,
        warmup_steps=config.warmup_epochs * steps_per_epoch,
    )
    tx = make_optimizer(
        schedule=schedule,
        pool_learning_rate_scale=config.pool_learning_rate_scale,
        **config.optimizer,
    )
    model = create_configured_model(config, dataset)
    normalise = make_normalise(dataset.mean, dataset.std, jnp.dtype(config.dtype))
    train_step = steps.make_train_step(
        model,
        tx,
        schedule,
        augment=make_augment(
            flip=config.augment.flip,
            scale=config.augment.scale,
            crop=config.augment.crop,
            area=config.augment.random_resized_crop,
            size=dataset.image_shape[:2],
        ),
        normalise=normalise,
        sac_weights=config.sac.weights if config.sac.enabled else (),
        label_smoothing=config.label_smoothing,
        pool_reg=config.pool_reg,
        regularizer=_regularizer(config.pool),
        ema_decay=config.ema_decay,
        freeze_backbone=config.freeze == "backbone",
        grad_accum_steps=config.grad_accum_steps,
    )
    size = dataset.train.images.nbytes + dataset.test.images.nbytes
    # All processes must run the same program, so the data are streamed in all of them or in none.
    is_streamed = any(processes.gather(size > _memory_for_images(config)))
    image_bytes = math.prod(dataset.train.images.shape[1:])
    batch_bytes = config.batch_size * image_bytes if is_streamed else 0
    return Setup(
        config,
        dataset,
        model,
        tx,
        normalise,
        is_streamed,
        steps_per_dispatch=_steps_per_dispatch(config, steps_per_epoch, batch_bytes),
        train_steps=steps.pmap_train_step(train_step),
        eval_step=steps.pmap_eval_step(steps.make_eval_step(model, normalise=normalise)),
        pool_summary=jax.jit(functools.partial(pool_summary, pool=config.pool)),
    )


def check_training(setup: Setup) -> None:
    """Checks what only training needs: sizes of images, how a batch is divided, stability of Eq. 2.

    Nothing is compiled.

    Raises:
        UserError: the training images have another size than the test images and are not cropped
            to it; see also `flexpool_jax.configuration.check_batch_size` and
            `flexpool_jax.configuration.check_pool_reg_stability`.
    """
    train, test = (s.images.shape[1:3] for s in (setup.dataset.train, setup.dataset.test))
    if train != test and not setup.config.augment.random_resized_crop:
        raise UserError(
            f"the training images have {train[0]} x {train[1]} pixels and the test images "
            f"{test[0]} x {test[1]}; allowed: the same size, or config.augment.random_resized_crop"
        )
    with _tracing_model(setup.config, setup.dataset) as images:
        jax.eval_shape(setup.model.apply, setup.abstract_state.variables, images)
    configuration.check_batch_size(setup.config, jax.device_count(), len(setup.dataset.train))
    pooled = [w.shape[:2] for _, w in named_w_fp(setup.abstract_state.params)]
    configuration.check_pool_reg_stability(setup.config, pooled)


def _with_normalisation(config: ml_collections.ConfigDict, dataset: Dataset) -> Dataset:
    """Returns the data set with the mean and deviation of the config, if it gives any."""
    mean, std = (
        np.asarray(values, np.float32) for values in (config.dataset.mean, config.dataset.std)
    )
    if not mean.size:
        return dataset
    if mean.shape != dataset.mean.shape:
        raise UserError(
            f"config.dataset.mean is {config.dataset.mean!r}, and images of {dataset.name} have "
            f"{dataset.image_shape[2]} channels; allowed: one number for each channel"
            + (f" ({config.init_from} gives the numbers of its images)" if config.init_from else "")
        )
    changed = dataclasses.replace(dataset, mean=mean, std=std)
    if "digest" in vars(dataset):
        # Sets the cached property: computing the digest again would read all stored images.
        vars(changed)["digest"] = dataset.digest
    return changed


def _regularizer(pool: str) -> Callable[[Any], jax.Array]:
    """Returns Eq. 2 as a function of the parameters; 0 for pools that use a softmax of w_fp."""
    if constraint_of(pool) is not None and has_weights(pool):
        return lambda params: jnp.zeros(())
    return flexpool_regularizer


def create_configured_model(config: ml_collections.ConfigDict, dataset: Dataset) -> nn.Module:
    """Creates the model, and checks that it can take the images, without compiling it."""
    options = {name: True for name in CIFAR_OPTIONS if config[name]}
    model = create_model(
        config.model,
        num_classes=dataset.num_classes,
        pool=config.pool,
        sac=config.sac.enabled,
        dropout_rate=config.dropout_rate,
        dtype=config.dtype,
        norm_axis_name=steps.AXIS if config.sync_batch_norm else None,
        **options,
    )
    with _tracing_model(config, dataset) as images:
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        named_w_fp(variables["params"])
    others = sorted(variables.keys() - {"params", "batch_stats"})
    if others:
        raise UserError(
            f"model {config.model!r} has variables in {', '.join(others)}, which training does not "
            "keep; allowed: params and batch_stats"
        )
    if config.deterministic:
        check_deterministic(model, variables, dataset.image_shape)
    return model


@contextlib.contextmanager
def _tracing_model(
    config: ml_collections.ConfigDict, dataset: Dataset
) -> Iterator[jax.ShapeDtypeStruct]:
    """Yields the shape of an image; an error becomes a UserError with the line of a user's code."""
    try:
        yield jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    except UserError:
        raise
    except (FlaxError, TypeError, ValueError) as error:
        others = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1]))
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if not frame.filename.startswith(others)]
        where = f"{own[-1].filename}:{own[-1].lineno}: {type(error).__name__}: " if own else ""
        raise UserError(
            f"model {config.model!r} with the pool {config.pool!r} cannot take images of "
            f"{dataset.image_shape}: {where}{one_line(error, limit=None)}"
        ) from error


def _steps_per_dispatch(
    config: ml_collections.ConfigDict, steps_per_epoch: int, batch_bytes: int
) -> int:
    """Limits and calls `longest_dispatch`; each step sends ``batch_bytes`` to the devices."""
    limit = config.steps_per_dispatch
    if not limit:
        limit = 1 if jax.default_backend() == "cpu" else config.log_every_steps
        limit = max(1, min(limit, _DISPATCH_BYTES // max(1, batch_bytes)))
    return longest_dispatch(steps_per_epoch, limit)


def load_configured_dataset(config: ml_collections.ConfigDict) -> Dataset:
    """Loads the data set of ``config.dataset``; prepares the data set first, if necessary."""
    return load_dataset(
        **configuration.dataset_options(config), max_bytes=_memory_for_images(config)
    )


def _memory_for_images(config: ml_collections.ConfigDict) -> float:
    device = jax.local_devices()[0]
    is_cpu = device.platform == "cpu"
    stats = device.memory_stats() or {}
    # All processes of a run on this machine share its memory.
    host = socket.gethostname()
    sharing = processes.gather(host).count(host)
    return memory_for_images(
        config.dataset.placement,
        device_bytes=math.inf if is_cpu else stats.get("bytes_limit", math.inf),
        copies=sharing * (jax.local_device_count() if is_cpu else 1),
    )


def replicate(tree: Any) -> Any:
    """Copies a whole tree to every local device, where the compiled steps expect it."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (steps.AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
