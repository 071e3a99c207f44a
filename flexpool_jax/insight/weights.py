"""A pool's learned weights: how a probe changes them, and their statistics.

``w`` [H, W, C] are the effective weights of ``y_k = Σ_ij w[i, j, k] · x[i, j, k]``; the pool may
compute them from other parameters (`flexpool_jax.pools.effective_weights`). All computations are
in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

RANKS = (1, 2, 4)
NUM_DRAWS = 5


def deviations(w: np.ndarray) -> np.ndarray:
    """Subtracts each channel's mean: ``v[i, j, k] = w[i, j, k] − Σ_ij w[i, j, k] / (H · W)``.

    Args:
        w: weights ``[H, W, C]``, floating.

    Returns:
        float64 ``[H, W, C]``, exactly 0 in channels whose weights are all the same.

    Example:
        >>> print(deviations(np.array([[[1.0, 0.1]], [[3.0, 0.1]]])).squeeze())
        [[-1.  0.]
         [ 1.  0.]]
    """
    w = np.asarray(w, np.float64)
    # A mean of equal numbers is rounded, and may differ from them.
    from_first = w - w[:1, :1]
    return from_first - from_first.mean(axis=(0, 1))


def interventions(w: np.ndarray) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Lists the weights that a probe puts in the place of w.

    Here v are the `deviations` of w, m = w − v holds each channel's mean, and V is v as a matrix
    [H · W, C]:

    - ``unchanged``: w.
    - ``channel_means``: m. The pool is then average pooling with one factor for each channel.
    - ``permute_positions``: each channel's weights in a random order, another one for each channel.
      Each channel keeps its sum and its values, and loses its spatial structure.
    - ``permute_maps``: ``w[:, :, π(k)]`` for a random permutation π of the channels. The channels'
      sums are permuted, too.
    - ``permute_deviations``: ``m[k] + v[:, :, π(k)]`` for the same π. Each channel keeps its sum,
      on which the classifier after the pool relies.
    - ``rank`` r: m plus the best approximation of V by a matrix of rank r, which has its r largest
      singular values.

    Args:
        w: weights ``[H, W, C]``, floating.

    Returns:
        Pairs of an intervention's fields in the report and its weights, float32
        ``[draws, H, W, C]``. Random interventions have `NUM_DRAWS` draws, from NumPy's generators
        with the seeds 0, 1, ...; all others have one draw.

    Example:
        >>> [(named["name"], len(drawn)) for named, drawn in interventions(np.ones((2, 2, 3)))][:4]
        [('unchanged', 1), ('channel_means', 1), ('permute_positions', 5), ('permute_maps', 5)]
    """
    w = np.asarray(w, np.float64)
    v = deviations(w)
    means = w - v
    orders = [np.random.default_rng(draw).permutation(w.shape[2]) for draw in range(NUM_DRAWS)]
    positions = [
        np.random.default_rng(draw).permuted(w.reshape(-1, w.shape[2]), axis=0).reshape(w.shape)
        for draw in range(NUM_DRAWS)
    ]
    changed: list[tuple[dict[str, Any], list[np.ndarray]]] = [
        ({"name": "unchanged"}, [w]),
        ({"name": "channel_means"}, [means]),
        ({"name": "permute_positions"}, positions),
        ({"name": "permute_maps"}, [w[:, :, order] for order in orders]),
        ({"name": "permute_deviations"}, [means + v[:, :, order] for order in orders]),
        *(({"name": "rank", "rank": rank}, [means + _cut_to_rank(v, rank)]) for rank in RANKS),
    ]
    return [(named, np.stack(drawn).astype(np.float32)) for named, drawn in changed]


def _cut_to_rank(v: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(v.reshape(-1, v.shape[2]), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ vt[:rank]).reshape(v.shape)


def weight_statistics(w: np.ndarray, mean_map: np.ndarray) -> dict[str, Any]:
    """Computes statistics of a pool's weights.

    Here v and V are as in `interventions`, ``|·|`` is the root of the sum of squares over all
    entries, and A is the mean feature map:

    - ``mean`` and ``sd`` of all entries of w.
    - ``channel_sums``: ``s[k] = Σ_ij w[i, j, k]``: ``mean``, ``sd`` (over the channels, with
      divisor C), ``min``, ``max`` and all ``values``. Eq. 2 of the paper pulls these sums to 1.
    - ``negative_share``: the share of entries of w below 0.
    - ``deviation_share``: ``|v|² / |w|²``; 0 for spatially constant weights.
    - ``singular_values`` of V, largest first; min(H · W, C) of them.
    - ``effective_rank`` of V: ``exp(−Σ p log p)``, where p are the singular values divided by their
      sum (Roy & Vetterli 2007, "The effective rank"). It is about the number of maps of which the
      channels' maps are mixtures.
    - ``entropy``: the mean over channels of ``−Σ_ij q log q / log(H · W)`` with
      ``q = |w[i, j, k]| / Σ_ij |w[i, j, k]|``: 1 for even weights, 0 for a single position.
      Channels whose weights are all 0 do not count.
    - ``mirror_correlation``: ``Σ_ijk v[i, j, k] · v[i, W + 1 − j, k] / |v|²``, the correlation over
      all entries of v with its left-right mirror image; equal to the mean of the channels'
      correlations weighted by their shares of ``|v|²``. 1 for symmetric weights.
    - ``activation_correlation``: the mean over channels of the Pearson correlation over positions
      of ``|v[i, j, k]|`` (absolute value) with ``A[i, j, k]``; only channels in which both
      vary count. ``activation_channels`` is their number.

    Args:
        w: weights ``[H, W, C]``, floating.
        mean_map: mean feature map A, ``[H, W, C]``.

    Returns:
        The statistics by name; None for one that is not defined (0 / 0).

    Example:
        >>> w = np.array([[[0.75], [0.25]]])
        >>> found = weight_statistics(w, mean_map=np.ones((1, 2, 1)))
        >>> found["deviation_share"], found["mirror_correlation"]
        (0.2, -1.0)
    """
    w = np.asarray(w, np.float64)
    v = deviations(w)
    sums = w.sum(axis=(0, 1))
    size = np.sum(v**2)
    correlations = _correlations(np.abs(v), np.asarray(mean_map, np.float64))
    singular_values = np.linalg.svd(v.reshape(-1, v.shape[2]), compute_uv=False)
    sizes = np.abs(w).reshape(-1, w.shape[2])
    entropies = stats.entropy(sizes[:, sizes.sum(axis=0) > 0])
    return {
        "mean": float(w.mean()),
        "sd": float(w.std()),
        "channel_sums": {
            "mean": float(sums.mean()),
            "sd": float(sums.std()),
            "min": float(sums.min()),
            "max": float(sums.max()),
            "values": sums.tolist(),
        },
        "negative_share": float(np.mean(w < 0)),
        "deviation_share": _ratio(size, np.sum(w**2)),
        "singular_values": singular_values.tolist(),
        "effective_rank": float(np.exp(stats.entropy(singular_values))) if size else None,
        "entropy": _ratio(entropies.sum(), len(entropies) * np.log(len(sizes))),
        "mirror_correlation": _ratio(np.sum(v * v[:, ::-1]), size),
        "activation_correlation": _ratio(correlations.sum(), len(correlations)),
        "activation_channels": len(correlations),
    }


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation over positions, for each channel in which both x and y vary."""
    x, y = deviations(x), deviations(y)
    covariances = np.sum(x * y, axis=(0, 1))
    scales = np.sqrt(np.sum(x**2, axis=(0, 1)) * np.sum(y**2, axis=(0, 1)))
    return covariances[scales > 0] / scales[scales > 0]
