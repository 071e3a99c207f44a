"""The training objective: Eq. 4 for one classifier, Eq. 3 over all classifiers, pool_reg × Eq. 2.

The equations are those of the paper below. This module needs only JAX and Optax: the value of Eq. 2
is an argument of `total_loss`. Each part can be used, and is logged, on its own.

Reference: Ali, Alsuwaidi, Khan, "FlexPooling with Simple Auxiliary Classifiers in Deep Networks",
VISAPP 2023, section 3.2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array


def cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
    """Categorical cross-entropy (Eq. 4 of the paper), averaged over the batch.

    Args:
        logits: ``[B, num_classes]``, floating; computed in float32 or better.
        labels: int ``[B]``, each in ``[0, num_classes)``.
        label_smoothing: share, in [0, 1), of each label's probability that is spread evenly over
            all classes (Szegedy et al. 2016, arXiv 1512.00567, section 7). The FlexPool paper does
            not use label smoothing.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: the shapes do not match, or a label is outside ``[0, num_classes)``. The labels
            are not checked where they have no values yet, as arguments of a jitted function.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(cross_entropy(jnp.zeros((2, 10)), jnp.array([3, 7]))), 4)
        2.3026
    """
    _check_labels(labels, logits.shape)
    labels = jnp.asarray(labels)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if label_smoothing:
        one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        smoothed = optax.smooth_labels(one_hot, label_smoothing)
        return jnp.mean(optax.softmax_cross_entropy(logits, smoothed))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def _check_labels(labels: Array, logits_shape: tuple[int, ...]) -> None:
    if len(logits_shape) != 2 or np.shape(labels) != logits_shape[:1]:
        raise ValueError(
            "needs logits [B, num_classes] and labels [B]; got the shapes "
            f"{logits_shape} and {np.shape(labels)}"
        )
    if isinstance(labels, jax.core.Tracer) or not np.size(labels):
        return
    # With NumPy, because inside a jitted function jnp.min has no value even if the labels have.
    values = np.asarray(labels)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= logits_shape[1]:
        raise ValueError(f"labels are {low} to {high}; allowed: 0 to {logits_shape[1] - 1}")


def check_sac_weights(weights: Sequence[float], num_stages: int) -> None:
    """Checks the paper's condition on the weights of Eq. 3: λ1 < λ2 < … < λn.

    Args:
        weights: one λ per stage, first stage first.
        num_stages: n, the number of classifiers.

    Raises:
        ValueError: the number of weights is not n, or the weights are not finite, are negative or
            do not strictly increase.

    Example:
        >>> check_sac_weights((0.1, 0.2, 0.7), num_stages=3)
    """
    # With NumPy, because inside a jitted function the elements of a JAX array have no values.
    weights = tuple(map(float, np.asarray(weights)))
    if num_stages < 1:
        raise ValueError("SAC needs the logits of at least one stage; got none")
    if len(weights) != num_stages:
        raise ValueError(
            f"SAC needs one weight per stage: {num_stages} stages, got {len(weights)} weights "
            f"{weights}"
        )
    if not all(math.isfinite(w) and w >= 0 for w in weights):
        raise ValueError(f"SAC weights must be finite and not negative; got {weights}")
    if any(later <= earlier for earlier, later in itertools.pairwise(weights)):
        raise ValueError(f"SAC weights must strictly increase from first to last; got {weights}")


def sac_loss(
    stage_logits: Sequence[Array],
    labels: Array,
    weights: Sequence[float],
    label_smoothing: float = 0.0,
) -> Array:
    """The SAC loss, Eq. 3 of the paper: ``Σ_s λ_s · L(stage_logits[s], labels)``.

    SAC stands for Simple Auxiliary Classifiers; L is `cross_entropy`.

    Args:
        stage_logits: logits ``[B, num_classes]`` of each stage, from the first to the last.
        labels: int ``[B]``.
        weights: λ, one per stage, strictly increasing; the paper's are (0.1, 0.2, 0.7). They are
            checked, so they cannot be arguments of a jitted function.
        label_smoothing: see `cross_entropy`.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: see `check_sac_weights` and `cross_entropy`.

    Example:
        >>> import jax.numpy as jnp
        >>> logits = [jnp.zeros((2, 10))] * 3
        >>> round(float(sac_loss(logits, jnp.array([3, 7]), (0.1, 0.2, 0.7))), 4)
        2.3026
    """
    check_sac_weights(weights, len(stage_logits))
    losses = [cross_entropy(logits, labels, label_smoothing) for logits in stage_logits]
    first, *others = (w * loss for w, loss in zip(weights, losses, strict=True))
    return sum(others, first)


def total_loss(
    logits: Array,
    labels: Array,
    *,
    aux_logits: Sequence[Array] = (),
    sac_weights: Sequence[float] = (),
    label_smoothing: float = 0.0,
    regularizer: Array | float = 0.0,
    pool_reg: float = 0.0,
) -> tuple[Array, dict[str, Array]]:
    """The whole objective: Eq. 3 (Eq. 4 without auxiliary classifiers) + pool_reg × Eq. 2.

    Args:
        logits: logits of the last classifier, ``[B, num_classes]``.
        labels: int ``[B]``.
        aux_logits: logits of the auxiliary classifiers, first stage first; empty without SAC.
        sac_weights: λ of Eq. 3, one per auxiliary classifier and one for the last.
        label_smoothing: see `cross_entropy`.
        regularizer: the value of Eq. 2, see `flexpool_jax.pooling.flexpool_regularizer`.
        pool_reg: coefficient of Eq. 2.

    Returns:
        The scalar to minimise, and its unweighted parts: ``cross_entropy`` (of the last
        classifier), ``cross_entropy_stage<s>`` for each auxiliary classifier, ``sac`` (Eq. 3, if
        used) and ``regularizer`` (Eq. 2).

    Raises:
        ValueError: see `check_sac_weights` and `cross_entropy`.

    Example:
        >>> import jax.numpy as jnp
        >>> logits, labels = jnp.zeros((2, 10)), jnp.array([3, 7])
        >>> loss, parts = total_loss(logits, labels, regularizer=2.0, pool_reg=0.1)
        >>> round(float(loss - parts["cross_entropy"]), 4)
        0.2
    """
    parts = {"cross_entropy": cross_entropy(logits, labels, label_smoothing)}
    loss = parts["cross_entropy"]
    if aux_logits or len(sac_weights):
        for stage, stage_logits in enumerate(aux_logits, start=1):
            parts[f"cross_entropy_stage{stage}"] = cross_entropy(
                stage_logits, labels, label_smoothing
            )
        # The compiler merges the cross-entropies that sac_loss repeats with those above.
        loss = parts["sac"] = sac_loss([*aux_logits, logits], labels, sac_weights, label_smoothing)
    parts["regularizer"] = jnp.asarray(regularizer, loss.dtype)
    if pool_reg:
        loss = loss + pool_reg * parts["regularizer"]
    return loss, parts
