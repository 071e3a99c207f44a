"""Exact evidence maps: how much each position of the last feature map adds to each logit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flexpool_jax.pools import effective_weights


class EvidenceMaps(NamedTuple):
    """The evidence maps of some images, for the classes that are most probable.

    Attributes:
        positions: indices of the images in the split, int [M].
        classes: class indices, int [M, n], most probable first; the true class is among them, in
            the last place if it is not one of the n most probable.
        maps: evidence maps of these classes, float64 [M, n, H, W].
        logits: logits of these classes, float32 [M, n].
        bias: biases of these classes, float32 [M, n]: the part of a logit that belongs to no
            position.
        largest_difference: largest difference between a logit and the sum of its map plus its
            bias, over all M · num_classes logits. The cause is rounding.
    """

    positions: np.ndarray
    classes: np.ndarray
    maps: np.ndarray
    logits: np.ndarray
    bias: np.ndarray
    largest_difference: float


def why_not_exact(pool: str, params: Mapping[str, Any], shape: tuple[int, int, int]) -> str:
    """Returns the reason why a head's logits are not sums over positions; "" if they are.

    Args:
        pool: one of `flexpool_jax.pools.POOLS`.
        params: parameters of the head: ``pool``, ``classifier`` and the hidden layers, if any.
        shape: (H, W, C) of the feature map.

    Example:
        >>> why_not_exact("max", {"classifier": {}}, (2, 2, 3))
        'the pool max is not a weighted sum over positions'
    """
    if any(name.startswith("hidden") for name in params):
        return "hidden dense layers between the pool and the classifier mix the positions"
    has_weights = effective_weights(pool, params.get("pool", {}), shape) is not None
    if pool not in ("avg", "flatten") and not has_weights:
        return f"the pool {pool} is not a weighted sum over positions"
    return ""


def evidence_maps(pool: str, params: Mapping[str, Any], feature_map: np.ndarray) -> np.ndarray:
    """Splits logits into the contributions of the positions.

    ``E[i, j, n] = Σ_k f[i, j, k] · w[i, j, k] · A[k, n]``: f is the feature map, w the pool's
    weights and A the classifier's kernel. Since the logit n is ``Σ_ij E[i, j, n]`` plus the
    classifier's bias, the map is not an approximation. HiResCAM (Draelos & Carin 2020, arXiv
    2011.08891) computes the same map here; Grad-CAM does not, since it averages position-dependent
    weights. For the pool `flatten`, whose kernel has a row for each position and channel, the map
    is ``E[i, j, n] = Σ_k f[i, j, k] · A[i, j, k, n]``.

    Args:
        pool: one of `flexpool_jax.pools.POOLS`.
        params: parameters of the head.
        feature_map: feature map of the last stage, [B, H, W, C], floating.

    Returns:
        The maps, float64 [B, H, W, num_classes].

    Raises:
        ValueError: the logits are not sums over positions; see `why_not_exact`.

    Example:
        >>> params = {"classifier": {"kernel": np.ones((3, 2)), "bias": np.zeros(2)}}
        >>> evidence_maps("avg", params, np.ones((1, 2, 2, 3)))[0, :, :, 0]
        array([[0.75, 0.75],
               [0.75, 0.75]])
    """
    height, width, channels = feature_map.shape[1:]
    shape = (height, width, channels)
    reason = why_not_exact(pool, params, shape)
    if reason:
        raise ValueError(f"there is no exact evidence map: {reason}")
    f = np.asarray(feature_map, np.float64)
    kernel = np.asarray(params["classifier"]["kernel"], np.float64)
    if pool == "flatten":
        return np.einsum("bijk,ijkn->bijn", f, kernel.reshape(*shape, -1))
    even = 1 / (height * width)
    w = even if pool == "avg" else effective_weights(pool, params["pool"], shape)
    return (f * np.asarray(w, np.float64)) @ kernel
