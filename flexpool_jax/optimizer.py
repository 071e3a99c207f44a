"""Optimizers and learning-rate schedules by name, built with Optax from a few plain values."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from flexpool_jax.errors import UserError, one_line, unknown_name
from flexpool_jax.pooling import path_names

WEIGHT_DECAY_KINDS = ("l2", "decoupled")


def _onecycle(learning_rate: float, total_steps: int, warmup_steps: int) -> optax.Schedule:
    # With fewer than four steps the warm-up has no step of its own, and Optax divides by zero.
    if total_steps < 4:
        return optax.cosine_decay_schedule(learning_rate, total_steps)
    return optax.cosine_onecycle_schedule(total_steps, learning_rate)


def _warmup_cosine(learning_rate: float, total_steps: int, warmup_steps: int) -> optax.Schedule:
    first = learning_rate / (warmup_steps + 1)
    return optax.warmup_cosine_decay_schedule(first, learning_rate, warmup_steps, total_steps)


# Each value is a function of learning_rate, total_steps and warmup_steps.
SCHEDULES: Mapping[str, Callable[[float, int, int], optax.Schedule]] = {
    "onecycle": _onecycle,
    "cosine": lambda rate, total, warmup: optax.cosine_decay_schedule(rate, total),
    "warmup_cosine": _warmup_cosine,
    "constant": lambda rate, total, warmup: optax.constant_schedule(rate),
    "step": lambda rate, total, warmup: optax.piecewise_constant_schedule(
        rate, {max(1, total // 2): 0.1, max(2, total * 3 // 4): 0.1}
    ),
}


def make_schedule(
    name: str, learning_rate: float, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    ``onecycle`` (the paper, section 4.1; Smith & Topin 2017, arXiv 1708.07120): cosine from
    learning_rate/25 up to learning_rate over the first 30 % of the steps, then down to a
    ten-thousandth of the initial rate; these are PyTorch's defaults. ``cosine``: half a cosine from
    learning_rate to 0. ``warmup_cosine``: a straight line up to learning_rate over warmup_steps,
    then half a cosine to 0. ``step``: learning_rate, divided by 10 after 50 % and again after 75 %
    of the steps (He et al. 2015, section 4.2). ``constant``: learning_rate.

    Args:
        name: one of `SCHEDULES`.
        learning_rate: largest learning rate.
        total_steps: number of steps of the whole training, at least 1.
        warmup_steps: number of warm-up steps of ``warmup_cosine``, below total_steps; the other
            schedules do not use it.

    Returns:
        A function from the step (int scalar) to the rate (float scalar).

    Raises:
        UserError: the name is unknown.

    Example:
        >>> round(float(make_schedule("onecycle", 0.1, 100)(30)), 4)
        0.1
        >>> round(float(make_schedule("warmup_cosine", 0.1, 100, warmup_steps=10)(10)), 4)
        0.1
    """
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, SCHEDULES)
    return SCHEDULES[name](learning_rate, total_steps, warmup_steps)


def _is_optimizer(name: str, value: Any) -> bool:
    """Whether a public name of Optax is an optimizer that needs nothing but a learning rate."""
    # scale_by_... are parts of optimizers. schedule_free_... keeps the weights that should be
    # evaluated in its state, where evaluation does not look for them.
    if name.startswith(("_", "scale_by_", "schedule_free_")):
        return False
    if not inspect.isfunction(value) and not isinstance(value, functools.partial):
        return False
    parameters = inspect.signature(value).parameters
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = {p.name for p in parameters.values() if p.default is p.empty}
    required -= {p.name for p in parameters.values() if p.kind in variable}
    return "learning_rate" in parameters and required <= {"learning_rate"}


# Every optimizer that Optax exports, found by its signature; this project's usual ones come first.
OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.adam,
    "sgd": optax.sgd,
    **{
        name: value
        for module in (optax, optax.contrib)
        for name, value in sorted(vars(module).items())
        if _is_optimizer(name, value)
    },
}


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    weight_decay_kind: str = "l2",
    decay_pool: bool = False,
    clip_norm: float = 0.0,
    pool_learning_rate_scale: float = 1.0,
    kwargs: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """Builds Adam (Kingma & Ba 2015), SGD with momentum, or any other optimizer of Optax.

    Args:
        name: one of `OPTIMIZERS`.
        schedule: learning rate, from `make_schedule`.
        momentum: momentum of ``sgd``; the other optimizers take their own, if any, from kwargs.
        weight_decay: coefficient of weight decay, which acts on kernels only (see `is_decayed`).
        weight_decay_kind: ``"l2"`` adds weight_decay·w to the gradient (PyTorch's
            ``weight_decay``); ``"decoupled"`` shrinks w by rate·weight_decay apart from the
            gradient (AdamW; Loshchilov & Hutter 2019, arXiv 1711.05101). Optimizers that have a
            weight decay of their own with a mask, such as ``adamw``, ``lion`` and ``lamb``, use
            their own instead, except ``adafactor`` and ``muon``.
        decay_pool: whether weight decay acts on ``w_fp`` as well.
        clip_norm: largest norm of the gradients over all parameters; larger gradients are scaled
            down to this norm before everything else. 0 turns clipping off.
        pool_learning_rate_scale: factor on the updates of every ``w_fp``, and so on its learning
            rate.
        kwargs: further keyword arguments of the optimizer, as plain values.

    Returns:
        An Optax gradient transformation.

    Raises:
        UserError: the optimizer or the kind of weight decay is unknown, or the optimizer does not
            take these keyword arguments or values, or needs more than gradients to train.

    Example:
        >>> import optax
        >>> tx = make_optimizer("sgd", optax.constant_schedule(0.1), weight_decay=1e-4)
        >>> tx = make_optimizer("lion", optax.constant_schedule(1e-3), kwargs={"b1": 0.95})
    """
    kwargs = dict(kwargs or {})
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    if weight_decay_kind not in WEIGHT_DECAY_KINDS:
        raise unknown_name("kind of weight decay", weight_decay_kind, WEIGHT_DECAY_KINDS)
    # Optax takes any text for True.
    for parameter in inspect.signature(OPTIMIZERS[name]).parameters.values():
        value = kwargs.get(parameter.name, parameter.default)
        if isinstance(parameter.default, bool) and not isinstance(value, bool):
            raise UserError(f"{parameter.name} is {value!r}; allowed: True, False")
    mask = functools.partial(is_decayed, decay_pool=decay_pool)
    try:
        if name in ("adam", "sgd"):
            # The states of `optax.adam` and `optax.sgd` differ from those of this project's first
            # release.
            if name == "adam":
                direction = optax.scale_by_adam(**kwargs)
            else:
                direction = optax.trace(**{"decay": momentum, **kwargs})
            l2, decoupled = (
                optax.add_decayed_weights(weight_decay * (weight_decay_kind == kind), mask=mask)
                for kind in WEIGHT_DECAY_KINDS
            )
            # All four transformations, even if one does nothing: the state's tree must not depend
            # on the coefficients, or a run could not continue with other coefficients.
            tx = optax.chain(l2, direction, decoupled, optax.scale_by_learning_rate(schedule))
        else:
            tx = _from_optax(name, schedule, weight_decay, weight_decay_kind, mask, kwargs)
        if name not in ("adam", "sgd") or kwargs:
            _try(tx)
    except Exception as error:  # Optimizers raise many kinds of errors.
        given = f" with {kwargs}" if kwargs else ""
        raise UserError(f"optimizer {name!r} cannot be used{given}: {one_line(error)}") from error
    is_w_fp = functools.partial(_are_named, names=("w_fp",))
    # Not in one `optax.chain` with the optimizer: states of the first release have no entry for
    # clipping and scaling, and these settings may change in the middle of a run.
    return _around(
        tx,
        before=optax.clip_by_global_norm(clip_norm) if clip_norm else _IDENTITY,
        after=optax.masked(optax.scale(pool_learning_rate_scale), is_w_fp),
    )


def is_decayed(params: Any, decay_pool: bool = False) -> Any:
    """Marks the leaves that weight decay acts on: the kernels of convolutions and dense layers.

    Norm parameters and biases are left out, as is usual. ``w_fp`` is left out because decay pulls
    it to 0, while Eq. 2 of the FlexPool paper pulls its sums to 1.

    Args:
        params: a tree of parameters.
        decay_pool: whether weight decay acts on ``w_fp`` as well.

    Returns:
        A tree of bools of the same structure.
    """
    return _are_named(params, ("kernel", "w_fp") if decay_pool else ("kernel",))


def _are_named(params: Any, names: tuple[str, ...]) -> Any:
    wanted = [(name,) for name in names]
    return jax.tree_util.tree_map_with_path(lambda path, _: path_names(path)[-1:] in wanted, params)


def _from_optax(
    name: str,
    schedule: optax.Schedule,
    weight_decay: float,
    weight_decay_kind: str,
    mask: Callable[[Any], Any],
    kwargs: Mapping[str, Any],
) -> optax.GradientTransformation:
    """Builds an optimizer of Optax; adds weight decay unless it has its own with a mask."""
    parameters = inspect.signature(OPTIMIZERS[name]).parameters
    decays = [p for p in parameters if "weight_decay" in p and not p.endswith("mask")]
    masks = [p for p in parameters if p in ("mask", "weight_decay_mask")]
    taken = sorted({*decays, *masks, "learning_rate"} & set(kwargs))
    if taken:
        raise UserError(f"{', '.join(taken)}: set by optimizer.weight_decay and learning_rate")
    # An optimizer with several weight decays, such as muon, applies the mask to only one of them.
    # That of adafactor does not shrink with the learning rate.
    maskable = len(decays) == 1 and bool(masks) and name != "adafactor"
    own = weight_decay if maskable else 0.0
    options: dict[str, Any] = {**dict.fromkeys(decays, own), **dict.fromkeys(masks, mask), **kwargs}
    tx = OPTIMIZERS[name](learning_rate=schedule, **options)
    if maskable or not weight_decay:
        return tx
    return _decay(tx, weight_decay, weight_decay_kind, mask, schedule)


def _decay(
    tx: optax.GradientTransformation,
    coefficient: float,
    kind: str,
    mask: Callable[[Any], Any],
    schedule: optax.Schedule,
) -> optax.GradientTransformation:
    """Adds weight decay to an optimizer of Optax; the state is that of `tx`."""
    if kind == "l2":
        return _around(tx, before=optax.add_decayed_weights(coefficient, mask))

    def update(updates: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        rate = schedule(_schedule_count(state))
        decay = optax.add_decayed_weights(-rate * coefficient, mask)
        return _around(tx, after=decay).update(updates, state, params, **extra)

    return tx._replace(update=update)


def _schedule_count(state: Any) -> jax.Array:
    """The number of updates so far, with which the optimizer of this state looks up its rate."""
    nodes = jax.tree.leaves(state, is_leaf=_is_schedule)
    counts: list[jax.Array] = [node.count for node in nodes if _is_schedule(node)]
    if not counts:
        # Prodigy, MADGRAD and D-Adaptation have one count for everything.
        counts = [count for _, count in optax.tree_utils.tree_get_all_with_path(state, "count")]
    return counts[0]


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)


_IDENTITY = optax.identity()


def _around(
    tx: optax.GradientTransformation,
    *,
    before: optax.GradientTransformation = _IDENTITY,
    after: optax.GradientTransformation = _IDENTITY,
) -> optax.GradientTransformation:
    """Chains `tx` with transformations that keep no state; the state is that of `tx` alone."""

    def update(updates: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        updates, _ = before.update(updates, before.init(params), params)
        updates, state = tx.update(updates, state, params, **extra)
        updates, _ = after.update(updates, after.init(params), params)
        return updates, state

    return tx._replace(update=update)


def _try(tx: optax.GradientTransformation) -> None:
    """Traces an update of a few weights; raises an error if gradients alone are not enough."""
    # Shapes, because the first array starts JAX, which reads XLA's flags only then.
    shapes = {"conv": (3, 3, 2, 2), "dense": (2, 2), "norm": (2,)}
    params = {
        name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)} for name, shape in shapes.items()
    }
    state = jax.eval_shape(tx.init, params)
    jax.eval_shape(tx.update, params, state, params)
    if any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state)):
        raise ValueError("its state holds a random key, which a checkpoint cannot")
    if any(0 in x.shape for x in jax.tree.leaves(state)):
        raise ValueError("its state holds an array without elements, which a checkpoint cannot")


def restart(tx: optax.GradientTransformation, params: Any, state: Any) -> Any | None:
    """Initialises an optimizer's state anew, except for the counts that the schedule uses.

    Adam divides its moments by 1 - β^count. The moments of weights that were frozen are 0 while the
    count is large. Under a constant gradient, the updates of these weights would be 3.2 times the
    rate at first and 6.6 times the rate at the 12th step (β1 = 0.9, β2 = 0.999).

    Args:
        tx: the optimizer.
        params: the parameters from which training continues.
        state: the optimizer's state so far.

    Returns:
        The new state; None if the optimizer has one count for the schedule and for everything else,
        as Prodigy, MADGRAD and D-Adaptation do.
    """
    if not any(map(_is_schedule, jax.tree.leaves(state, is_leaf=_is_schedule))):
        return None
    return jax.tree.map(
        lambda new, old: old if _is_schedule(new) else new,
        jax.jit(tx.init)(params),
        state,
        is_leaf=_is_schedule,
    )
