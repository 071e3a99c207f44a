"""The state of training, one training step, one evaluation step, and their pmapped programs.

A step is a pure function of (state, batch, key) on one device's part of the batch; gradients and
metrics are averaged over the pmapped axis. Unless the data are streamed, the pmapped programs take
the whole data set and indices into it: images are gathered, augmented and normalised on the device,
and the host only dispatches. The state is replicated and has no device axis.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from flexpool_jax import losses
from flexpool_jax.pooling import flexpool_regularizer

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]
# The argument that selects the examples of one call: int32 indices or batches, with a leading axis
# of devices.
Part = Any

AXIS = "devices"


class DeviceSplit(NamedTuple):
    """A split that every device holds whole.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N].
    """

    images: Array
    labels: Array


@flax.struct.dataclass
class TrainState:
    """The state that an update takes and returns; the same on every device.

    Attributes:
        step: int32 scalar, the number of updates so far.
        params: float32 parameters.
        batch_stats: float32 running statistics.
        opt_state: state of the optimizer.
        ema_params: moving average of ``params``; None if no average is computed.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """The variables to evaluate: ``ema_params``, or ``params`` if None, and the statistics."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, "batch_stats": self.batch_stats}


class NotFinite(Exception):
    """A loss or a state that holds a NaN or an infinity.

    Attributes:
        step: number of the update after which the value was found.
        updates: number of updates before the value was computed. The loss of an update is computed
            before its weights change.
    """

    def __init__(self, step: int, what: str, *, updates: int) -> None:
        super().__init__(what)
        self.step, self.updates = step, updates


def create_train_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: Array,
    image_shape: tuple[int, int, int],
    keep_average: bool = False,
) -> TrainState:
    """Initialises a model and its optimizer.

    Args:
        model: the Flax module, from `flexpool_jax.create_model`.
        tx: the optimizer.
        key: a typed PRNG key.
        image_shape: (H, W, C) of the training images, which determines the shape of the feature
            maps and so of FlexPool's weights.
        keep_average: whether the state has a moving average of the parameters, which starts as a
            copy of them.

    Returns:
        A `TrainState` at step 0.

    Example:
        >>> import jax, optax
        >>> from flexpool_jax import create_model
        >>> state = jax.eval_shape(
        ...     lambda key: create_train_state(
        ...         create_model("resnet20"), optax.sgd(0.1), key, (32, 32, 3)
        ...     ),
        ...     jax.random.key(0),
        ... )
        >>> state.step.shape
        ()
    """
    # On a CPU, LLVM's optimisation takes several times as long as it saves: the program runs once.
    # At level 1, unlike 0, the numbers are the same bit by bit.
    is_compiled = not isinstance(key, jax.core.Tracer)  # Else only the shapes are asked for.
    is_on_cpu = is_compiled and jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 1} if is_on_cpu else None

    # Jitted as a whole: op by op, initialisation would compile a hundred small programs.
    @functools.partial(jax.jit, compiler_options=options)
    def init(key: Array) -> TrainState:
        # Without the boxes of nn.with_partitioning: training replicates the parameters.
        variables = nn.unbox(model.init(key, jnp.zeros((1, *image_shape))))
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=tx.init(params),
            # A copy, because each buffer of the state is donated and can be donated only once.
            ema_params=jax.tree.map(jnp.copy, params) if keep_average else None,
        )

    return init(key)


def steps_in(part: Part) -> int:
    """The number of updates in a part, whose leaves are [devices, steps, ...]."""
    return int(jax.tree.leaves(part)[0].shape[1])


@jax.jit
def copy_state(state: TrainState) -> TrainState:
    """Copies a state on its devices, for use after its buffers were donated to the next step."""
    return jax.tree.map(jnp.copy, state)


def parameter_count(params: Any) -> int:
    """The number of trainable parameters in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


TrainStep = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]
# Returns sums over all devices, and the results for each example of this device.
EvalStep = Callable[[Mapping[str, Any], Batch], tuple[Metrics, Metrics]]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    augment: Callable[[Array, Array], Array],
    normalise: Callable[[Array], Array],
    sac_weights: Sequence[float] = (),
    label_smoothing: float = 0.0,
    pool_reg: float = 0.0,
    regularizer: Callable[[Any], Array] = flexpool_regularizer,
    ema_decay: float = 0.0,
    freeze_backbone: bool = False,
    grad_accum_steps: int = 1,
) -> TrainStep:
    """Returns the function that makes one update, for ``jax.pmap(..., axis_name=AXIS)``.

    Args:
        model: the Flax module, from `flexpool_jax.create_model`; with ``norm_axis_name=AXIS`` if
            it normalises by the statistics of all devices. The running statistics are averaged over
            devices in any case.
        tx: the optimizer.
        schedule: learning rate as a function of the step, for the log.
        augment: ``(normalised images [B, H, W, C], keys [B]) -> images``, from
            `flexpool_jax.data.augment.make_augment`.
        normalise: function from uint8 images to floating-point images of mean 0.
        sac_weights: λ of Eq. 3 of the FlexPool paper; empty without SAC.
        label_smoothing: label smoothing of the training loss, see
            `flexpool_jax.losses.cross_entropy`; evaluation uses none.
        pool_reg: coefficient of Eq. 2 of the FlexPool paper.
        regularizer: Eq. 2 as a function of the parameters. It is logged even if pool_reg is 0.
        ema_decay: decay of the moving average of the parameters, if the state has one.
        freeze_backbone: whether to leave the backbone's parameters and running statistics as they
            are, and to normalise by the running statistics.
        grad_accum_steps: number of microbatches into which a device's batch is divided. They are
            computed one after the other, and their gradients are averaged. The number must divide
            B.

    Returns:
        ``train_step(state, batch, key) -> (state, metrics)``. batch: ``image`` uint8 [B, H, W, C]
        and ``label`` int32 [B], this device's part. key: the run's typed PRNG key. All randomness
        derives from the key and the step. Augmentation also uses the example's position in the
        whole batch; dropout also uses the device and the microbatch. metrics: float32 scalars
        averaged over the examples of all devices.
    """
    if freeze_backbone:
        model = model.clone(freeze_backbone=True)
    objective = functools.partial(
        losses.total_loss,
        sac_weights=sac_weights,
        label_smoothing=label_smoothing,
        pool_reg=pool_reg,
    )
    gradient = _make_gradient(model, objective, regularizer, augment, normalise)
    if grad_accum_steps != 1:
        gradient = _over_microbatches(gradient, grad_accum_steps)

    def train_step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        count = batch["label"].shape[0]
        device = jax.lax.axis_index(AXIS)
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        positions = device * count + jnp.arange(count)
        example_keys = jax.vmap(jax.random.fold_in, (None, 0))(augment_key, positions)
        grads, metrics, batch_stats = gradient(
            state.params,
            state.batch_stats,
            batch,
            example_keys,
            jax.random.fold_in(dropout_key, device),
        )
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        # All devices must have the same state, even if the model does not synchronise statistics.
        batch_stats = jax.tree.map(lambda x: jax.lax.pmean(x, AXIS).astype(x.dtype), batch_stats)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        if freeze_backbone:
            # The backbone's gradients are 0, but weight decay and momentum would still change it.
            updates = updates | {"backbone": jax.tree.map(jnp.zeros_like, updates["backbone"])}
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        params = optax.apply_updates(state.params, updates)
        average = state.ema_params
        if average is not None:
            average = optax.incremental_update(params, average, step_size=1 - ema_decay)
        return TrainState(state.step + 1, params, batch_stats, opt_state, average), metrics

    return train_step


# A function of parameters, batch statistics, a batch, its examples' keys and dropout's key, which
# returns gradients, metrics and new batch statistics.
Gradient = Callable[[Any, Any, Batch, Array, Array], tuple[Any, Metrics, Any]]


def _make_gradient(
    model: nn.Module,
    objective: Callable[..., tuple[Array, Metrics]],
    regularizer: Callable[[Any], Array],
    augment: Callable[[Array, Array], Array],
    normalise: Callable[[Array], Array],
) -> Gradient:
    """Returns the function that computes gradients, metrics and statistics of one batch.

    The objective is `losses.total_loss` with its coefficients. `make_train_step` describes the
    other arguments.
    """

    def loss_fn(
        params: Any, batch_stats: Any, images: Array, labels: Array, key: Array
    ) -> tuple[Array, tuple[Metrics, Any]]:
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            # Flax draws from "params" for the streams of a user's model that have no key here.
            rngs={"dropout": key, "params": jax.random.fold_in(key, 1)},
            mutable=["batch_stats", "aux_logits"],
        )
        aux_logits = updates.get("aux_logits", {}).get("logits", ())
        loss, parts = objective(
            logits, labels, aux_logits=aux_logits, regularizer=regularizer(params)
        )
        accuracy = jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))
        metrics = {"loss": loss, **parts, "accuracy": accuracy}
        return loss, (metrics, updates.get("batch_stats", {}))

    def gradient(
        params: Any, batch_stats: Any, batch: Batch, example_keys: Array, dropout_key: Array
    ) -> tuple[Any, Metrics, Any]:
        images = augment(normalise(batch["image"]), example_keys)
        grads, (metrics, batch_stats) = jax.grad(loss_fn, has_aux=True)(
            params, batch_stats, images, batch["label"], dropout_key
        )
        return grads, metrics, batch_stats

    return gradient


def _over_microbatches(gradient: Gradient, count: int) -> Gradient:
    """Divides a batch into ``count`` microbatches, and averages their gradients and metrics.

    Each microbatch updates BatchNorm's running statistics.
    """

    def accumulated_gradient(
        params: Any, batch_stats: Any, batch: Batch, example_keys: Array, dropout_key: Array
    ) -> tuple[Any, Metrics, Any]:
        def add(carry: tuple[Any, Any], microbatch: tuple[Batch, Array, Array]) -> tuple[Any, None]:
            total, batch_stats = carry
            batch, example_keys, index = microbatch
            key = jax.random.fold_in(dropout_key, index)
            *found, batch_stats = gradient(params, batch_stats, batch, example_keys, key)
            return (jax.tree.map(jnp.add, total, tuple(found)), batch_stats), None

        # Every count-th example: a microbatch then has the same examples on any number of devices.
        microbatches = jax.tree.map(
            lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), (batch, example_keys)
        )
        first = jax.tree.map(lambda x: x[0], microbatches)
        found = jax.eval_shape(gradient, params, batch_stats, *first, dropout_key)[:2]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)
        # A CPU runs a convolution inside a loop many times slower.
        unroll = jax.default_backend() == "cpu"
        (total, batch_stats), _ = jax.lax.scan(
            add, (zeros, batch_stats), (*microbatches, jnp.arange(count)), unroll=unroll
        )
        grads, metrics = jax.tree.map(lambda x: x / count, total)
        return grads, metrics, batch_stats

    return accumulated_gradient


def make_eval_step(model: nn.Module, *, normalise: Callable[[Array], Array]) -> EvalStep:
    """Returns the function that evaluates one batch, for ``jax.pmap(..., axis_name=AXIS)``.

    Returns:
        ``eval_step(variables, batch) -> (sums, examples)``. batch: ``image``, ``label`` and
        ``valid`` bool [B], False for an example that only fills up the batch. sums: values that
        are summed over the batches; this step has none. examples: ``logits`` float32 [B,
        num_classes] of this device.
    """

    def eval_step(variables: Mapping[str, Any], batch: Batch) -> tuple[Metrics, Metrics]:
        logits: Any = model.apply(variables, normalise(batch["image"]), train=False)
        return {}, {"logits": logits}

    return eval_step


def pick(data: DeviceSplit | None, part: Part) -> Batch:
    """Gathers the examples at a part's indices into a batch, as `make_eval_step` takes it.

    If data is None, the part is the batch.
    """
    if data is None:
        return part
    chosen = jnp.maximum(part, 0)
    return {"image": data.images[chosen], "label": data.labels[chosen], "valid": part >= 0}


def pmap_train_step(
    train_step: TrainStep,
) -> Callable[[TrainState, DeviceSplit | None, Part, Array], tuple[TrainState, Metrics]]:
    """Returns the program that makes one or more updates on all devices of all processes.

    Args:
        train_step: result of `make_train_step`.

    Returns:
        ``run(state, data, part, key) -> (state, metrics)``. data: replicated, or None. part:
        indices into data, int32 [local devices, steps, B / devices]; if data is None, ``image`` and
        ``label`` with these leading axes. metrics: float32 [steps] for each name. The state's
        buffers are donated. The program is compiled for each number of steps. One step is run
        directly. More steps are run by a `jax.lax.scan`, which is meant for accelerators only: on a
        CPU, XLA runs a convolution inside a loop many times slower.
    """

    def run(
        state: TrainState, data: DeviceSplit | None, part: Part, key: Array
    ) -> tuple[TrainState, Metrics]:
        def step(state: TrainState, part: Part) -> tuple[TrainState, Metrics]:
            return train_step(state, pick(data, part), key)

        if len(jax.tree.leaves(part)[0]) > 1:
            return jax.lax.scan(step, state, part)
        state, metrics = step(state, jax.tree.map(lambda x: x[0], part))
        return state, jax.tree.map(lambda x: x[None], metrics)

    return jax.pmap(run, AXIS, in_axes=(None, None, 0, None), out_axes=None, donate_argnums=0)


def pmap_eval_step(
    eval_step: EvalStep,
) -> Callable[[Mapping[str, Any], DeviceSplit | None, Part], tuple[Metrics, Metrics]]:
    """Returns the program that evaluates one batch on all devices of all processes.

    Args:
        eval_step: result of `make_eval_step`.

    Returns:
        ``run(variables, data, part) -> (sums, examples)``. data: replicated, or None. part: indices
        into data, int32 [local devices, B / devices], -1 where an example only fills up the batch;
        if data is None, ``image``, ``label`` and ``valid`` with these leading axes. sums: see
        `make_eval_step`. examples: those of `make_eval_step` for all devices, [devices, B /
        devices, ...].
    """

    def run(
        variables: Mapping[str, Any], data: DeviceSplit | None, part: Part
    ) -> tuple[Metrics, Metrics]:
        sums, examples = eval_step(variables, pick(data, part))
        # Gathered from all devices, because a process can only read results of its own devices.
        return sums, jax.lax.all_gather(examples, AXIS)

    return jax.pmap(run, AXIS, in_axes=(None, None, 0), out_axes=None)
