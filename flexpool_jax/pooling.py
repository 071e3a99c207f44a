"""FlexPool, Eq. 2 that constrains it, and the global pools it is compared with.

Every pool maps a feature map ``[B, H, W, C]`` to one vector per example ``[B, C]``. This file
needs JAX and Flax only: to use the layer in another project, copy this one file.

Reference: Ali, Alsuwaidi, Khan, "FlexPooling with Simple Auxiliary Classifiers in Deep Networks",
VISAPP 2023, section 3 ("the paper" below).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array
Constraint = Literal["softmax"]


def _check_feature_map(x: Array) -> None:
    if x.ndim != 4:
        raise ValueError(
            f"a global pool needs a feature map [B, H, W, C]; got shape {tuple(x.shape)}"
        )
    if 0 in x.shape[1:]:
        raise ValueError(
            f"a global pool needs at least one position and channel; got shape {tuple(x.shape)}"
        )


def _check_weights(x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> None:
    """Says what to do when weights [H, W, C] meet a feature map of another shape."""
    if tuple(x_shape[1:]) == tuple(w_shape):
        return
    mismatch = (
        f"FlexPool's weights were made for feature maps of [H, W, C] = {tuple(w_shape)}, "
        f"but this one has {tuple(x_shape[1:])}"
    )
    if len(w_shape) != 3 or x_shape[3] != w_shape[2]:
        raise ValueError(f"{mismatch}: the number of channels must be the same")
    raise ValueError(
        f"{mismatch}: resize the images to the resolution it was trained at, or resample the "
        f"weights with flexpool_jax.pooling.resample_weights(w_fp, {tuple(x_shape[1:3])})"
    )


def flex_pool(x: Array, w: Array) -> Array:
    """Weighted sum over positions, one weight per position and channel (the paper, section 3).

    ``y[b, c] = Σ_ij w[i, j, c] · x[b, i, j, c]``, summed in float32 or better.

    Args:
        x: feature map ``[B, H, W, C]``, floating.
        w: weights ``[H, W, C]``.

    Returns:
        ``[B, C]`` of x's dtype.

    Raises:
        ValueError: x is not four-dimensional, or H, W, C of the two differ.

    Example:
        >>> import jax.numpy as jnp
        >>> flex_pool(jnp.ones((2, 4, 4, 3)), jnp.full((4, 4, 3), 1 / 16)).shape
        (2, 3)
    """
    _check_feature_map(x)
    _check_weights(x.shape, w.shape)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.sum(x.astype(wide) * w.astype(wide), axis=(1, 2)).astype(x.dtype)


def softmax_weights(w_fp: Array) -> Array:
    """Softmax over the positions of each channel: positive weights that sum to 1.

    This is the pool of the authors' released code (github.com/aliman80/FlexPoolU); Eq. 2 is zero
    by construction, and a constant w_fp gives average pooling.

    Args:
        w_fp: ``[H, W, C]``, floating.

    Returns:
        ``[H, W, C]``, each channel summing to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> float(softmax_weights(jnp.zeros((2, 2, 1)))[0, 0, 0])
        0.25
    """
    return jax.nn.softmax(w_fp, axis=(0, 1))


class FlexPool(nn.Module):
    """Global pooling by a learned weighted average (the paper, section 3 and Fig. 1).

    The parameter ``w_fp`` is float32 ``[H, W, C]``, whatever the dtype of the feature map, and
    starts at 1/(H·W) everywhere: at step 0 the layer *is* global average pooling.

    Attributes:
        constraint: ``None`` uses w_fp as it is (Eq. 2, `flexpool_regularizer`, pulls each channel's
            sum to 1); ``"softmax"`` uses `softmax_weights` of it.

    Raises:
        ValueError: unknown constraint, an input that is not ``[B, H, W, C]``, or one whose H, W, C
            differ from those the weights were made for.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.ones((2, 8, 8, 64))
        >>> variables = FlexPool().init(jax.random.key(0), x)
        >>> variables["params"]["w_fp"].shape
        (8, 8, 64)
        >>> FlexPool().apply(variables, x).shape
        (2, 64)
    """

    constraint: Constraint | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.constraint not in (None, "softmax"):
            raise ValueError(
                f"unknown FlexPool constraint {self.constraint!r}; allowed: None, 'softmax'"
            )
        _check_feature_map(x)
        height, width, channels = x.shape[1:]
        if self.has_variable("params", "w_fp"):
            _check_weights(x.shape, jnp.shape(self.get_variable("params", "w_fp")))
        w = self.param(
            "w_fp",
            nn.initializers.constant(1.0 / (height * width)),
            (height, width, channels),
            jnp.float32,
        )
        return flex_pool(x, softmax_weights(w) if self.constraint == "softmax" else w)


def _w_fp_leaves(params: Any) -> list[Array]:
    def last_name(path: tuple[Any, ...]) -> Any:
        return getattr(path[-1], "key", getattr(path[-1], "name", None)) if path else None

    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return [leaf for path, leaf in leaves if last_name(path) == "w_fp"]


def flexpool_regularizer(params: Any) -> Array:
    """Eq. 2 of the paper, summed over every FlexPool block in a tree of parameters.

    ``R = Σ_k (Σ_ij w_fp[i, j, k] − 1)²``. It constrains the weights as they are stored, so it is
    meant for ``FlexPool(constraint=None)``; with the softmax constraint it holds by construction.

    Args:
        params: any pytree; its leaves named ``w_fp`` are float ``[H, W, C]``, all others are
            ignored.

    Returns:
        A float32 scalar (float64 for float64 weights), 0.0 where there is no ``w_fp``.

    Example:
        >>> import jax.numpy as jnp
        >>> float(flexpool_regularizer({"pool": {"w_fp": jnp.full((2, 2, 3), 0.5)}}))
        3.0
    """
    total = jnp.zeros((), jnp.float32)
    for w in _w_fp_leaves(params):
        total = total + jnp.sum((jnp.sum(w, axis=(0, 1)) - 1.0) ** 2)
    return total


def resample_weights(w_fp: Array, size: tuple[int, int]) -> Array:
    """Resamples FlexPool weights to feature maps of another resolution.

    Bilinear in position; each channel keeps the sum of its weights, so that features keep their
    scale. For fine-tuning or evaluating at a resolution other than the trained one. For a softmax
    pool give it `softmax_weights` and store the logarithm of the result.

    Args:
        w_fp: ``[H, W, C]``, floating.
        size: the new (H, W), both positive.

    Returns:
        ``[*size, C]`` of w_fp's dtype.

    Raises:
        ValueError: w_fp is not three-dimensional or the size is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> w = resample_weights(jnp.full((8, 8, 64), 1 / 64), (4, 4))
        >>> w.shape, float(w[0, 0, 0]) * 16
        ((4, 4, 64), 1.0)
    """
    if w_fp.ndim != 3 or min(size) < 1:
        raise ValueError(f"needs weights [H, W, C] and a size >= 1; got {w_fp.shape}, {size}")
    # Resized as a density and scaled by the change of area: exact for constant weights, and
    # free of the division by a sum that may be zero.
    height, width, channels = w_fp.shape
    resized = jax.image.resize(w_fp, (*size, channels), "bilinear")
    resized = resized * (height * width / (size[0] * size[1]))
    error = jnp.sum(w_fp, axis=(0, 1)) - jnp.sum(resized, axis=(0, 1))
    return (resized + error / (size[0] * size[1])).astype(w_fp.dtype)


def avg_pool(x: Array) -> Array:
    """Global average pooling (Lin, Chen, Yan 2014, "Network in Network", arXiv 1312.4400).

    Args:
        x: ``[B, H, W, C]``, floating.

    Returns:
        The mean over positions, ``[B, C]`` of x's dtype, summed in float32 or better.

    Example:
        >>> import jax.numpy as jnp
        >>> float(avg_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))[0, 0])
        1.5
    """
    _check_feature_map(x)
    return jnp.mean(x, axis=(1, 2))


def max_pool(x: Array) -> Array:
    """Global max pooling: ``[B, H, W, C]`` to the maximum over positions ``[B, C]``.

    Example:
        >>> import jax.numpy as jnp
        >>> float(max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))[0, 0])
        3.0
    """
    _check_feature_map(x)
    return jnp.max(x, axis=(1, 2))


class GlobalPool(nn.Module):
    """A pool without parameters as a Flax module: ``[B, H, W, C]`` to ``[B, C]``.

    Attributes:
        function: such as `avg_pool` or `max_pool`.
    """

    function: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.function(x)


POOLS: Mapping[str, Callable[..., nn.Module]] = {
    "avg": functools.partial(GlobalPool, avg_pool),
    "max": functools.partial(GlobalPool, max_pool),
    "flexpool": FlexPool,
    "flexpool_softmax": functools.partial(FlexPool, constraint="softmax"),
}


def create_pool(pool: str, **module_fields: Any) -> nn.Module:
    """The global pool of that name, as a Flax module ``[B, H, W, C] -> [B, C]``.

    Args:
        pool: one of `POOLS`.
        **module_fields: passed to the module, such as Flax's ``name``.

    Raises:
        ValueError: unknown name.

    Example:
        >>> create_pool("flexpool_softmax").constraint
        'softmax'
    """
    if pool not in POOLS:
        raise ValueError(f"unknown pool {pool!r}; allowed: {', '.join(POOLS)}")
    return POOLS[pool](**module_fields)
