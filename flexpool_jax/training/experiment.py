"""A config and a data set in, everything that runs out: model, optimiser, compiled steps.

The one place that reads a config; what it calls takes plain values. Training and evaluation both
start here, so that a restored model is evaluated by the very program that training used.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import linen as nn

from flexpool_jax import configuration
from flexpool_jax.data import Dataset, Split, load_dataset
from flexpool_jax.data.augment import make_augment, make_normalise
from flexpool_jax.errors import UserError
from flexpool_jax.models import create_model, fast_cpu
from flexpool_jax.training import steps
from flexpool_jax.training.optimizer import make_optimizer, make_schedule
from flexpool_jax.training.state import TrainState, create_train_state

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a run consists of besides its state.

    Attributes:
        model, tx, schedule: as named.
        key: the run's PRNG key, from which all randomness derives.
        seed: the same as a number, for the order of the examples.
        image_shape: (H, W, C).
        num_train_examples: in the training split.
        batch_size: examples per step over all devices.
        steps_per_epoch: whole batches; the examples left over differ from epoch to epoch.
        num_epochs: of the whole run.
        steps_per_dispatch: divides steps_per_epoch.
        eval_batch_size: a multiple of the number of devices.
        replicated: the sharding of whatever every device holds.
        compiler_options: XLA's, for the compiled steps alone.
        run_steps: see `steps.pmap_train_step`.
        run_evaluation: see `steps.pmap_eval_step`.
        keep_average: whether the state has a moving average of the parameters.
    """

    model: nn.Module
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    key: Array
    seed: int
    image_shape: tuple[int, int, int]
    num_train_examples: int
    batch_size: int
    steps_per_epoch: int
    num_epochs: int
    steps_per_dispatch: int
    eval_batch_size: int
    replicated: jax.sharding.NamedSharding
    compiler_options: dict[str, str | bool]
    run_steps: Callable[..., tuple[TrainState, steps.Metrics]]
    run_evaluation: Callable[..., tuple[steps.Metrics, steps.Metrics]]
    keep_average: bool = False

    @property
    def total_steps(self) -> int:
        """Updates in the whole run."""
        return self.num_epochs * self.steps_per_epoch

    @property
    def num_devices(self) -> int:
        """Devices that share each batch."""
        return self.replicated.mesh.size

    def init(self) -> TrainState:
        """The state at step 0, on one device."""
        return create_train_state(
            self.model, self.tx, self.key, self.image_shape, self.keep_average
        )

    def abstract_state(self) -> TrainState:
        """The shapes and dtypes of the state, without computing it."""
        return jax.eval_shape(self.init)

    def replicate(self, tree: Any) -> Any:
        """Puts a tree whole on every device, where the compiled steps expect it."""
        return jax.device_put(tree, self.replicated)

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """The order of the examples in an epoch: int32 [steps_per_epoch, devices, B / devices].

        A function of (seed, epoch) alone, so that a resumed run sees the same batches.
        """
        order = np.random.default_rng((self.seed, epoch)).permutation(self.num_train_examples)
        used = order[: self.steps_per_epoch * self.batch_size].astype(np.int32)
        return used.reshape(self.steps_per_epoch, self.num_devices, -1)


def load_configured_dataset(config: ml_collections.ConfigDict) -> Dataset:
    """Loads what ``config.dataset`` names, and prepares it first if that has not been done."""
    return load_dataset(
        config.dataset.name,
        config.dataset.data_dir,
        config.dataset.raw_dir,
        image_size=config.dataset.image_size,
        holdout=config.dataset.holdout,
        seed=config.seed,
    )


def build_experiment(config: ml_collections.ConfigDict, dataset: Dataset) -> Experiment:
    """Builds a run from its config.

    Args:
        config: from `flexpool_jax.configuration.resolve`.
        dataset: what ``config.dataset`` names.

    Raises:
        UserError: the config does not fit the data or the devices.
    """
    devices = np.array(jax.local_devices())
    configuration.check_batch_size(config, len(devices), len(dataset.train.labels))
    steps_per_epoch = len(dataset.train.labels) // config.batch_size
    schedule = make_schedule(
        config.schedule,
        config.learning_rate,
        total_steps=config.num_epochs * steps_per_epoch,
        warmup_steps=config.warmup_epochs * steps_per_epoch,
    )
    tx = make_optimizer(
        config.optimizer.name,
        schedule,
        momentum=config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
        weight_decay_kind=config.optimizer.weight_decay_kind,
        decay_pool=config.optimizer.decay_pool,
        clip_norm=config.optimizer.clip_norm,
        pool_learning_rate_scale=config.pool_learning_rate_scale,
        kwargs=config.optimizer.get("kwargs", {}),
    )
    model = _model(config, dataset.num_classes)
    key = jax.random.key(config.seed)
    _check_shapes(config, model, key, dataset.image_shape)
    normalise = make_normalise(dataset.mean, dataset.std, jnp.dtype(config.dtype))
    train_step = steps.make_train_step(
        model,
        tx,
        schedule,
        augment=make_augment(
            flip=config.augment.flip, scale=config.augment.scale, crop=config.augment.crop
        ),
        normalise=normalise,
        sac_weights=config.sac.weights if config.sac.enabled else (),
        label_smoothing=config.label_smoothing,
        pool_reg=config.pool_reg,
        sync_batch_norm=config.sync_batch_norm,
        ema_decay=config.ema_decay,
    )
    steps_per_dispatch = _steps_per_dispatch(config, steps_per_epoch)
    options = fast_cpu.compiler_options()
    mesh = jax.sharding.Mesh(devices, (steps.AXIS,))
    return Experiment(
        model=model,
        tx=tx,
        schedule=schedule,
        key=key,
        seed=config.seed,
        image_shape=dataset.image_shape,
        num_train_examples=len(dataset.train.labels),
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch,
        num_epochs=config.num_epochs,
        steps_per_dispatch=steps_per_dispatch,
        eval_batch_size=math.ceil(config.eval_batch_size / len(devices)) * len(devices),
        replicated=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
        compiler_options=options,
        run_steps=steps.pmap_train_step(train_step, steps_per_dispatch, options),
        run_evaluation=steps.pmap_eval_step(
            steps.make_eval_step(model, normalise=normalise), options
        ),
        keep_average=config.ema_decay > 0,
    )


def _model(config: ml_collections.ConfigDict, num_classes: int) -> nn.Module:
    options = {"norm_after_relu": True} if config.norm_after_relu else {}
    return create_model(
        config.model,
        num_classes=num_classes,
        pool=config.pool,
        sac=config.sac.enabled,
        dropout_rate=config.dropout_rate,
        dtype=config.dtype,
        norm_axis_name=steps.AXIS if config.sync_batch_norm else None,
        **options,
    )


def _check_shapes(
    config: ml_collections.ConfigDict,
    model: nn.Module,
    key: Array,
    image_shape: tuple[int, int, int],
) -> None:
    """Refuses, before anything is compiled or written, what the model or Eq. 2 cannot hold."""
    try:
        variables = jax.eval_shape(model.init, key, jnp.zeros((1, *image_shape)))
    except ValueError as error:
        raise UserError(
            f"model {config.model!r} cannot take images of {image_shape}: {error}"
        ) from error
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    pooled = [leaf.shape[:2] for path, leaf in leaves if path[-1].key == "w_fp"]
    configuration.check_pool_reg_stability(config, pooled)


def _steps_per_dispatch(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """The largest divisor of an epoch up to the limit: one compiled program serves it all."""
    limit = config.steps_per_dispatch
    if not limit:
        limit = 1 if jax.default_backend() == "cpu" else config.log_every_steps
    return next(k for k in range(min(limit, steps_per_epoch), 0, -1) if steps_per_epoch % k == 0)


def on_devices(experiment: Experiment, split: Split) -> Split:
    """Puts a split whole on every device: uint8 images and int32 labels."""
    return Split(*experiment.replicate((split.images, split.labels)))


class Evaluation(NamedTuple):
    """What a model makes of a split.

    Attributes:
        metrics: ``loss`` (mean cross-entropy in nats) and ``accuracy`` in [0, 1].
        predictions: int16 [N], the predicted class of each example, in the order of the split.
        confidences: float16 [N], the probability of the predicted class.
    """

    metrics: dict[str, float]
    predictions: np.ndarray
    confidences: np.ndarray


def evaluate(
    experiment: Experiment,
    variables: Any,
    split: Split,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluates every example of a split exactly once, whatever the batch size and device count.

    Args:
        experiment: from `build_experiment`.
        variables: ``params`` and ``batch_stats``, replicated.
        split: images and labels, on the devices or on the host.
        check: called between batches; may raise to abandon the evaluation.
    """
    count = len(split.labels)
    devices = experiment.num_devices
    batch = min(experiment.eval_batch_size, math.ceil(count / devices) * devices)
    padded = np.full(math.ceil(count / batch) * batch, -1, np.int32)
    padded[:count] = np.arange(count)
    results = []
    for indices in padded.reshape(-1, devices, batch // devices):
        check()
        results.append(experiment.run_evaluation(variables, split.images, split.labels, indices))
        if len(results) > 1 and jax.default_backend() == "cpu":
            # One batch ahead is enough to keep a CPU busy; more would only hold memory.
            jax.block_until_ready(results[-2])
    sums, examples = zip(*jax.device_get(results), strict=True)
    metrics = {
        "loss": math.fsum(float(part["loss"]) for part in sums) / count,
        "accuracy": sum(int(part["correct"]) for part in sums) / count,
    }

    def of_all(name: str) -> np.ndarray:
        return np.concatenate([part[name].ravel() for part in examples])[:count]

    return Evaluation(
        metrics, of_all("prediction").astype(np.int16), of_all("confidence").astype(np.float16)
    )
