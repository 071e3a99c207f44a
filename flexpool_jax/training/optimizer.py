"""The learning-rate schedule and the optimiser, both Optax's, built from a few plain values."""

from __future__ import annotations

from typing import Any

import jax
import optax

from flexpool_jax.errors import unknown_name

SCHEDULES = ("onecycle", "cosine", "constant", "step")
OPTIMIZERS = ("adam", "sgd")
WEIGHT_DECAY_KINDS = ("l2", "decoupled")


def make_schedule(name: str, learning_rate: float, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step.

    ``onecycle`` (the paper, section 4.1; Smith & Topin 2017, arXiv 1708.07120): cosine from
    learning_rate/25 up to learning_rate over the first 30 % of the steps, then down to a
    ten-thousandth of where it began, PyTorch's defaults. ``cosine``: half a cosine from
    learning_rate to 0. ``step``: divided by 10 after 50 % and again after 75 % of the steps (He et
    al. 2015, section 4.2). ``constant``: learning_rate.

    Args:
        name: one of `SCHEDULES`.
        learning_rate: its largest value.
        total_steps: of the whole training, at least 1.

    Returns:
        A function from the step (int scalar) to the rate (float scalar).

    Raises:
        UserError: unknown name.

    Example:
        >>> round(float(make_schedule("onecycle", 0.1, 100)(30)), 4)
        0.1
    """
    if name == "onecycle":
        # With fewer than four steps the warm-up has no step of its own, and Optax divides by zero.
        if total_steps < 4:
            return optax.cosine_decay_schedule(learning_rate, total_steps)
        return optax.cosine_onecycle_schedule(total_steps, learning_rate)
    if name == "cosine":
        return optax.cosine_decay_schedule(learning_rate, total_steps)
    if name == "step":
        return optax.piecewise_constant_schedule(
            learning_rate, {total_steps // 2: 0.1, total_steps * 3 // 4: 0.1}
        )
    if name == "constant":
        return optax.constant_schedule(learning_rate)
    raise unknown_name("schedule", name, SCHEDULES)


def is_decayed(params: Any) -> Any:
    """Which leaves weight decay acts on: the kernels of convolutions and dense layers.

    Norm parameters and biases are left out as is usual; ``w_fp`` is, since decay pulls it to 0
    where Eq. 2 pulls its sums to 1.

    Args:
        params: a tree of parameters.

    Returns:
        A tree of bools of the same structure.
    """

    def decayed(path: tuple[Any, ...], leaf: Any) -> bool:
        return getattr(path[-1], "key", None) == "kernel"

    return jax.tree_util.tree_map_with_path(decayed, params)


def _scale_w_fp(tx: optax.GradientTransformation, scale: float) -> optax.GradientTransformation:
    """Multiplies the updates of every ``w_fp`` leaf; the state is that of `tx`."""

    def scaled(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf * scale if getattr(path[-1], "key", None) == "w_fp" else leaf

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = tx.update(updates, state, params, **extra)
        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return tx._replace(update=update)


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    weight_decay_kind: str = "l2",
    pool_learning_rate_scale: float = 1.0,
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015) or SGD with momentum, with weight decay of a named kind.

    Args:
        name: one of `OPTIMIZERS`.
        schedule: from `make_schedule`.
        momentum: of SGD; Adam's are its usual 0.9 and 0.999.
        weight_decay: coefficient; acts on kernels only (`is_decayed`).
        weight_decay_kind: ``"l2"`` adds weight_decay·w to the gradient (PyTorch's
            ``weight_decay``); ``"decoupled"`` shrinks w by rate·weight_decay apart from the
            gradient (AdamW; Loshchilov & Hutter 2019, arXiv 1711.05101).
        pool_learning_rate_scale: multiplies the updates of every ``w_fp``, and so its learning
            rate.

    Returns:
        An Optax gradient transformation.

    Raises:
        UserError: unknown optimiser or kind.

    Example:
        >>> import optax
        >>> tx = make_optimizer("sgd", optax.constant_schedule(0.1), weight_decay=1e-4)
    """
    if name == "adam":
        scale = optax.scale_by_adam()
    elif name == "sgd":
        scale = optax.trace(decay=momentum)
    else:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    if weight_decay_kind not in WEIGHT_DECAY_KINDS:
        raise unknown_name("kind of weight decay", weight_decay_kind, WEIGHT_DECAY_KINDS)
    l2, decoupled = (
        optax.add_decayed_weights(weight_decay * (weight_decay_kind == kind), mask=is_decayed)
        for kind in WEIGHT_DECAY_KINDS
    )
    # All four, even where one does nothing: the state's tree must not depend on the coefficients,
    # or a run could not go on with others.
    tx = optax.chain(l2, scale, decoupled, optax.scale_by_learning_rate(schedule))
    # Around the chain and not in it, for the same reason: states of the first release have no link
    # for it.
    return _scale_w_fp(tx, pool_learning_rate_scale)
