"""The training objective: Eq. 4 on one classifier, Eq. 3 over all of them, plus pool_reg × Eq. 2.

It needs JAX, Optax and nothing else of this project but Eq. 2's value, which is handed in, so that
each part can be used, and is logged, on its own.

Reference: Ali, Alsuwaidi, Khan, "FlexPooling with Simple Auxiliary Classifiers in Deep Networks",
VISAPP 2023, section 3.2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
    """Categorical cross-entropy, Eq. 4, averaged over the batch.

    Args:
        logits: ``[B, num_classes]``, floating; computed in float32 or better.
        labels: int ``[B]``, each in ``[0, num_classes)``.
        label_smoothing: in [0, 1): this share of each label's probability is spread evenly over
            all classes (Szegedy et al. 2016, arXiv 1512.00567, section 7). The paper has 0.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: the shapes do not fit, or a label is outside ``[0, num_classes)``; under
            ``jit`` and other transformations, where labels have no values yet, the latter is not
            seen.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(cross_entropy(jnp.zeros((2, 10)), jnp.array([3, 7]))), 4)
        2.3026
    """
    _check_labels(labels, logits.shape)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if label_smoothing:
        one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        smoothed = optax.smooth_labels(one_hot, label_smoothing)
        return jnp.mean(optax.softmax_cross_entropy(logits, smoothed))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def _check_labels(labels: Array, logits_shape: tuple[int, ...]) -> None:
    if len(logits_shape) != 2 or jnp.shape(labels) != logits_shape[:1]:
        raise ValueError(
            "needs logits [B, num_classes] and labels [B]; got the shapes "
            f"{logits_shape} and {jnp.shape(labels)}"
        )
    if isinstance(labels, jax.core.Tracer) or not jnp.size(labels):
        return
    low, high = int(jnp.min(labels)), int(jnp.max(labels))
    if low < 0 or high >= logits_shape[1]:
        raise ValueError(f"labels are {low} to {high}; allowed: 0 to {logits_shape[1] - 1}")


def check_sac_weights(weights: Sequence[float], num_stages: int) -> None:
    """Checks the condition that the paper puts on Eq. 3's weights: λ1 < λ2 < … < λn.

    Args:
        weights: one λ per stage, first stage first.
        num_stages: n, the number of classifiers.

    Raises:
        ValueError: another number of weights, or weights that are not finite, are negative or do
            not strictly increase.

    Example:
        >>> check_sac_weights((0.1, 0.2, 0.7), num_stages=3)
    """
    weights = tuple(float(w) for w in weights)
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
    """The loss of Simple Auxiliary Classifiers, Eq. 3: ``Σ_s λ_s · L(stage_logits[s], labels)``.

    Args:
        stage_logits: one ``[B, num_classes]`` per stage, from the first to the last.
        labels: int ``[B]``.
        weights: λ, one per stage, strictly increasing; the paper's are (0.1, 0.2, 0.7).
        label_smoothing: see `cross_entropy`.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: see `check_sac_weights`.

    Example:
        >>> import jax.numpy as jnp
        >>> logits = [jnp.zeros((2, 10))] * 3
        >>> round(float(sac_loss(logits, jnp.array([3, 7]), (0.1, 0.2, 0.7))), 4)
        2.3026
    """
    check_sac_weights(weights, len(stage_logits))
    losses = [cross_entropy(logits, labels, label_smoothing) for logits in stage_logits]
    return sum((w * loss for w, loss in zip(weights, losses, strict=True)), jnp.zeros(()))


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
        logits: the last classifier's, ``[B, num_classes]``.
        labels: int ``[B]``.
        aux_logits: the auxiliary classifiers', first stage first; empty without SAC.
        sac_weights: λ of Eq. 3, one per auxiliary classifier and one for the last.
        label_smoothing: see `cross_entropy`.
        regularizer: the value of Eq. 2, `flexpool_jax.pooling.flexpool_regularizer`.
        pool_reg: its coefficient.

    Returns:
        The scalar to minimise, and its parts, unweighted: ``cross_entropy`` (of the last
        classifier), ``cross_entropy_stage<s>`` for each auxiliary one, ``sac`` (Eq. 3, if used) and
        ``regularizer`` (Eq. 2).

    Raises:
        ValueError: see `check_sac_weights`.

    Example:
        >>> import jax.numpy as jnp
        >>> logits, labels = jnp.zeros((2, 10)), jnp.array([3, 7])
        >>> loss, parts = total_loss(logits, labels, regularizer=2.0, pool_reg=0.1)
        >>> round(float(loss - parts["cross_entropy"]), 4)
        0.2
    """
    parts = {"cross_entropy": cross_entropy(logits, labels, label_smoothing)}
    loss = parts["cross_entropy"]
    if aux_logits:
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
