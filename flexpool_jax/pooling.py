"""FlexPool, the regularizer that constrains it, and the global pools it is compared with.

Every pool maps a feature map ``[B, H, W, C]`` to one vector per example: ``[B, C]``, except for
`flatten`. `POOLS` holds them by name, and `register_pool` adds to it. This file needs JAX and Flax
only: to use the layer in another project, copy this one file.

Reference: Ali, Alsuwaidi, Khan, "FlexPooling with Simple Auxiliary Classifiers in Deep Networks",
VISAPP 2023, section 3 ("the paper" below).
"""

from __future__ import annotations

import functools
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

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
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"a global pool needs a floating feature map; got {x.dtype}")
    if 0 in x.shape[1:]:
        raise ValueError(
            f"a global pool needs at least one position and channel; got shape {tuple(x.shape)}"
        )


def _shape_along(axes: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of parameters that vary along `axes` of a map [H, W, C]: 1 along other axes."""
    return tuple(n if axis in axes else 1 for axis, n in zip("HWC", shape, strict=True))


def _check_weights(
    shape: Sequence[int],
    w_shape: tuple[int, ...],
    owner: str = "FlexPool's weights",
    remedy: str = (
        ", or resample the weights with flexpool_jax.pooling.resample_weights(w_fp, {size}), those "
        "of softmax pools with flexpool_jax.resize_flexpool"
    ),
    axes: str = "HWC",
) -> None:
    """Raises a ValueError with a remedy if parameters do not fit a feature map [H, W, C]."""
    needed = _shape_along(axes, shape)
    if tuple(w_shape) == needed:
        return
    mismatch = (
        f"{owner} have shape {tuple(w_shape)}, but feature maps of [H, W, C] = {tuple(shape)} need "
        f"{needed}"
    )
    if "C" in axes and (len(w_shape) != 3 or w_shape[2] != needed[2]):
        raise ValueError(f"{mismatch}: the number of channels must be the same")
    if "H" in axes and len(w_shape) == 3 and w_shape[2] == needed[2]:
        raise ValueError(
            f"{mismatch}: resize the images to the resolution it was trained at"
            f"{remedy.format(size=tuple(shape[:2]))}"
        )
    raise ValueError(mismatch)


def flex_pool(x: Array, w: Array) -> Array:
    """Weighted sum over positions, one weight per position and channel (the paper, section 3).

    ``y[b, c] = Σ_ij w[i, j, c] · x[b, i, j, c]``, summed in float32 or better.

    Args:
        x: feature map ``[B, H, W, C]``, floating.
        w: weights ``[H, W, C]``.

    Returns:
        ``[B, C]`` of x's dtype.

    Raises:
        ValueError: x is not four-dimensional, or H, W, C of x and w differ.

    Example:
        >>> import jax.numpy as jnp
        >>> flex_pool(jnp.ones((2, 4, 4, 3)), jnp.full((4, 4, 3), 1 / 16)).shape
        (2, 3)
    """
    _check_feature_map(x)
    _check_weights(x.shape[1:], w.shape)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.sum(x.astype(wide) * w.astype(wide), axis=(1, 2)).astype(x.dtype)


def softmax_weights(w_fp: Array) -> Array:
    """Softmax over the positions of each channel: positive weights that sum to 1.

    The authors' released code pools with these weights (github.com/aliman80/FlexPoolU). Eq. 2 of
    these weights is zero by construction, and a constant w_fp results in average pooling.

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


def check_constraint(constraint: str | None) -> None:
    """Raises ValueError if a constraint is neither None nor "softmax"."""
    if constraint not in (None, "softmax"):
        raise ValueError(f"unknown FlexPool constraint {constraint!r}; allowed: None, 'softmax'")


class FlexPool(nn.Module):
    """Global pooling by a learned weighted average (the paper, section 3 and Fig. 1).

    The parameter ``w_fp`` is float32 ``[H, W, C]``, whatever the dtype of the feature map, and
    starts at 1/(H·W) everywhere: at step 0 the layer *is* global average pooling.

    Two related layers are older; `POOLS` holds them as controls. Global depthwise convolution
    (`GDConv`; Chen et al. 2018, "MobileFaceNets", arXiv 1804.07573) computes the same function, but
    its weights are initialised at random.
    Spatially weighted pooling with one mask (`FlexPoolShared`; Hu et al. 2017, IEEE Transactions on
    Intelligent Transportation Systems 18(11), 3147-3156) has one map of weights for all channels.

    Attributes:
        constraint: ``None`` uses w_fp as it is (Eq. 2, `flexpool_regularizer`, pulls each channel's
            sum to 1); ``"softmax"`` uses ``softmax_weights(w_fp)``.

    Raises:
        ValueError: the constraint is unknown, the input is not ``[B, H, W, C]``, or its H, W, C
            differ from those for which the weights were created.

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
        check_constraint(self.constraint)
        w = _stored_weights(self, x, _average_start)
        return flex_pool(x, self.effective_weights(w, x.shape[1:]))

    @nn.nowrap
    def effective_weights(self, w_fp: Array, shape: tuple[int, ...]) -> Array:
        """See the function `effective_weights`."""
        _check_weights(shape, jnp.shape(w_fp))
        return softmax_weights(w_fp) if self.constraint == "softmax" else w_fp


def _stored_weights(
    pool: nn.Module, x: Array, start: nn.initializers.Initializer, axes: str = "HWC"
) -> Array:
    """Creates or reads a pool's parameter w_fp, float32, of length 1 along axes not in `axes`."""
    _check_feature_map(x)
    owner, shape = f"{type(pool).__name__}'s weights", x.shape[1:]
    if pool.has_variable("params", "w_fp"):
        _check_weights(shape, jnp.shape(pool.get_variable("params", "w_fp")), owner, axes=axes)
    return pool.param("w_fp", start, _shape_along(axes, shape), jnp.float32)


def _average_start(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """An initializer that returns the weights of global average pooling."""
    return jnp.full(shape, 1.0 / (shape[0] * shape[1]), dtype)


class GDConv(nn.Module):
    """Global depthwise convolution: FlexPool's weighted sum with random initial weights.

    Chen, Liu, Gao & Han 2018, "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face
    Verification on Mobile Devices" (arXiv 1804.07573), section 3.1: a depthwise convolution whose
    kernel is as large as the map, without bias, instead of global average pooling. The parameter
    ``w_fp``, float32 ``[H, W, C]``, is initialised as Flax initialises the kernel of such a
    convolution: LeCun-normal with a fan-in of H·W, hence mean 0 and variance 1/(H·W). The
    MobileFaceNets paper names no initialiser. Only the initial weights differ from FlexPool.

    Raises:
        ValueError: see `FlexPool`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> variables = GDConv().init(jax.random.key(0), jnp.ones((2, 8, 8, 64)))
        >>> variables["params"]["w_fp"].shape
        (8, 8, 64)
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # Flax takes the last axis but one as the input axis, so the fan-in of [H, W, C] is H·W.
        return flex_pool(x, _stored_weights(self, x, nn.initializers.lecun_normal()))

    @nn.nowrap
    def effective_weights(self, w_fp: Array, shape: tuple[int, ...]) -> Array:
        """See the function `effective_weights`."""
        _check_weights(shape, jnp.shape(w_fp), "GDConv's weights")
        return w_fp


class FlexPoolShared(nn.Module):
    """One learned map of weights for all channels: ``y[b, c] = Σ_ij w[i, j] · x[b, i, j, c]``.

    Spatially weighted pooling with one mask: Hu, Wang, Li & Shen 2017, "Deep CNNs With Spatially
    Weighted Pooling for Fine-Grained Car Recognition", IEEE Transactions on Intelligent
    Transportation Systems 18(11), 3147-3156. The parameter ``w_fp`` is float32 ``[H, W, 1]`` and
    starts at 1/(H·W), so that the layer begins as global average pooling.

    Raises:
        ValueError: see `FlexPool`; but the number of channels may change.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> variables = FlexPoolShared().init(jax.random.key(0), jnp.ones((2, 8, 8, 64)))
        >>> variables["params"]["w_fp"].shape
        (8, 8, 1)
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        w = _stored_weights(self, x, _average_start, axes="HW")
        return flex_pool(x, self.effective_weights(w, x.shape[1:]))

    @nn.nowrap
    def effective_weights(self, w_fp: Array, shape: tuple[int, ...]) -> Array:
        """See the function `effective_weights`."""
        _check_weights(shape, jnp.shape(w_fp), "FlexPoolShared's weights", axes="HW")
        return jnp.broadcast_to(w_fp, shape)


class ChannelScale(nn.Module):
    """Average pooling with a learned factor for each channel: ``y[b, c] = s[c] · mean(x[b, c])``.

    This is FlexPool with weights that are constant over positions. The dense layer after the pool
    can absorb the factor, so this pool changes only the optimisation. It is a control for
    FlexPool's spatial weights, from this project and not from the paper. The parameter ``w_fp`` is
    float32 ``[1, 1, C]`` and starts at 1.

    Raises:
        ValueError: see `FlexPool`; but the size of the map may change.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> variables = ChannelScale().init(jax.random.key(0), jnp.ones((2, 8, 8, 64)))
        >>> variables["params"]["w_fp"].shape
        (1, 1, 64)
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        s = _stored_weights(self, x, nn.initializers.ones, axes="C")
        return (s[0, 0] * jnp.mean(_widen(x), axis=(1, 2))).astype(x.dtype)

    @nn.nowrap
    def effective_weights(self, w_fp: Array, shape: tuple[int, ...]) -> Array:
        """See the function `effective_weights`."""
        _check_weights(shape, jnp.shape(w_fp), "ChannelScale's weights", axes="C")
        return jnp.broadcast_to(w_fp / (shape[0] * shape[1]), shape)


def _names(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """The keys on the way to a leaf."""
    names: list[Any] = [
        getattr(part, "key", getattr(part, "name", getattr(part, "idx", None))) for part in path
    ]
    # An nnx.State, and linen's partitioned parameters, wrap each array in a box with a `value`.
    if names[1:] and names[-1] == "value":
        names.pop()
    # The key in a flattened tree is a whole path: a tuple, or a text such as "head/pool/w_fp".
    if names and isinstance(names[-1], tuple):
        names += names.pop()
    elif names and isinstance(names[-1], str):
        names += re.split("[/.]", names.pop())
    return tuple(names)


def _nested(tree: Any) -> Any:
    """Turns an ``nnx.FlatState``, where JAX finds no names, into its ``nnx.State``."""
    return tree.to_nested_state() if hasattr(tree, "to_nested_state") else tree


def named_w_fp(params: Any) -> list[tuple[str, Array]]:
    """Every w_fp of a tree, with the path of the module that holds it, such as "head/pool/"."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(_nested(params)):
        names = _names(path)
        if names[-1:] != ("w_fp",):
            continue
        if jnp.ndim(leaf) != 3:
            raise ValueError(f"weights w_fp must be [H, W, C]; got shape {jnp.shape(leaf)}")
        found.append(("".join(f"{name}/" for name in names[:-1]), leaf))
    return found


def flexpool_regularizer(params: Any) -> Array:
    """Eq. 2 of the paper, summed over every FlexPool block in a tree of parameters.

    ``R = Σ_k (Σ_ij w_fp[i, j, k] − 1)²``. If all channels share one map, there is one sum. If a
    channel has a single factor, its sum is the factor. R constrains the weights as they are stored,
    so it is meant for ``FlexPool(constraint=None)``. With the softmax constraint, the sums of the
    weights that are used are 1 by construction.

    Args:
        params: any pytree, such as linen's parameters or an ``nnx.State``; it may be flattened, by
            tuples or by texts with ``/`` or ``.`` between the names. Its leaves named ``w_fp`` are
            float ``[H, W, C]``, of length 1 along the axes that share a weight. All other leaves
            are ignored.

    Returns:
        A float32 scalar (float64 for float64 weights), 0.0 if there is no ``w_fp``.

    Raises:
        ValueError: a ``w_fp`` is not three-dimensional.

    Example:
        >>> import jax.numpy as jnp
        >>> float(flexpool_regularizer({"pool": {"w_fp": jnp.full((2, 2, 3), 0.5)}}))
        3.0
    """
    total = jnp.zeros((), jnp.float32)
    for _, w in named_w_fp(params):
        total = total + jnp.sum((jnp.sum(_widen(w), axis=(0, 1)) - 1.0) ** 2)
    return total


def pool_summary(params: Any, pool: str | None = None) -> dict[str, Array]:
    """Describes the weights of every FlexPool in a tree of parameters by a few numbers.

    For each parameter ``PATH/w_fp``, with weights w [H, W, C] and the sum s[k] of each channel k:

    - ``PATH/sum_mean`` and ``PATH/sum_sd``: mean and standard deviation of s. Eq. 2 pulls every
      s[k] to 1.
    - ``PATH/negative_share``: the share of weights below 0.
    - ``PATH/deviation_share``: ``Σ (w[i, j, k] − s[k] / (H · W))² / Σ w²``, the share of Σ w² that
      depends on the position; 0 for average pooling.

    Args:
        params: any pytree, as for `flexpool_regularizer`.
        pool: one of `POOLS`, whose `effective_weights` are described. None describes the parameters
            as they are stored.

    Returns:
        Float32 scalars by name; empty if there is no ``w_fp``. The function can be jitted.

    Raises:
        ValueError: a ``w_fp`` is not three-dimensional, or the pool is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> summary = pool_summary({"head": {"pool": {"w_fp": jnp.full((2, 2, 3), 0.25)}}})
        >>> sorted(summary)[-1], float(summary["head/pool/sum_mean"])
        ('head/pool/sum_sd', 1.0)
    """
    found: dict[str, Array] = {}
    for path, w in named_w_fp(params):
        height, width, channels = w.shape
        used = pool and effective_weights(pool, {"w_fp": w}, (height, width, channels))
        w = jnp.asarray(w if used is None else used, jnp.float32)
        sums = jnp.sum(w, axis=(0, 1))
        size = jnp.sum(w**2)
        deviation = jnp.sum((w - jnp.mean(w, axis=(0, 1))) ** 2)
        found |= {
            f"{path}sum_mean": jnp.mean(sums),
            f"{path}sum_sd": jnp.std(sums),
            f"{path}negative_share": jnp.mean((w < 0).astype(jnp.float32)),
            f"{path}deviation_share": deviation / jnp.where(size > 0, size, 1.0),
        }
    return found


def resample_weights(w_fp: Array, size: tuple[int, int]) -> Array:
    """Resamples FlexPool weights to feature maps of another resolution.

    The weights are interpolated bilinearly over positions. Each channel keeps the sum of its
    weights, so that features keep their scale. Use this function to fine-tune or evaluate at
    another resolution than that of training. For a softmax pool use `resize_flexpool` with its
    constraint.

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
        >>> w.shape, round(float(w[0, 0, 0]) * 16, 4)
        ((4, 4, 64), 1.0)
    """
    if w_fp.ndim != 3 or min(size) < 1:
        raise ValueError(f"needs weights [H, W, C] and a size >= 1; got {w_fp.shape}, {size}")
    # The weights are resized as a density and scaled by the change of area. This is exact for
    # constant weights, and does not divide by a sum, which may be zero.
    height, width, channels = w_fp.shape
    resized = jax.image.resize(w_fp, (*size, channels), "bilinear")
    resized = resized * (height * width / (size[0] * size[1]))
    error = jnp.sum(w_fp, axis=(0, 1)) - jnp.sum(resized, axis=(0, 1))
    return (resized + error / (size[0] * size[1])).astype(w_fp.dtype)


def resize_flexpool(params: Any, *, like: Any, constraint: Constraint | None = None) -> Any:
    """Resamples every ``w_fp`` of a tree of parameters to feature maps of another size.

    The weights are interpolated bilinearly over positions, as in `resample_weights`. Each channel
    keeps the sum of its weights, so that features keep their scale. Weights whose map keeps its
    size stay as they are, bit for bit.

    Args:
        params: any pytree, as for `flexpool_regularizer`; its leaves named ``w_fp`` are float
            ``[H, W, C]``, of length 1 along the axes that share a weight.
        like: a tree of the same names with the new shapes: arrays, `jax.ShapeDtypeStruct` or tuples
            of ints, e.g. ``jax.eval_shape(model.init, key, images)["params"]``.
        constraint: constraint of the pools. ``"softmax"`` resamples ``softmax_weights(w_fp)`` and
            stores their logarithm: the weights used stay positive, and each channel's sum stays 1.

    Returns:
        The same tree with the resampled weights, in their dtype. All other leaves are unchanged.
        For an ``nnx.FlatState``, its ``nnx.State``.

    Raises:
        ValueError: a ``w_fp`` is not in `like`, or has another number of channels there; a leaf
            with another name has another shape in `like`; or the constraint is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"pool": {"w_fp": jnp.full((8, 8, 64), 1 / 64)}}
        >>> resized = resize_flexpool(params, like={"pool": {"w_fp": (7, 5, 64)}})
        >>> resized["pool"]["w_fp"].shape, round(float(resized["pool"]["w_fp"][:, :, 0].sum()), 4)
        ((7, 5, 64), 1.0)
    """
    check_constraint(constraint)

    def is_shape(node: Any) -> bool:
        # NumPy's integers count too.
        return isinstance(node, tuple) and all(isinstance(s, numbers.Integral) for s in node)

    shapes = {
        _names(path): tuple(getattr(leaf, "shape", leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(_nested(like), is_leaf=is_shape)
    }

    def resize(path: tuple[Any, ...], leaf: Array) -> Array:
        names = _names(path)
        where = "/".join(map(str, names))
        old, new = tuple(jnp.shape(leaf)), shapes.get(names)
        if names[-1:] != ("w_fp",):
            if new not in (None, old):
                raise ValueError(f"{where} is {old} and would be {new}: only w_fp can be resized")
            return leaf
        if new is None:
            raise ValueError(f"{where} has no new shape: it is not in the tree `like`")
        if new == old:
            return leaf
        if len(old) != 3 or len(new) != 3 or old[2] != new[2]:
            raise ValueError(f"{where} is {old} and would be {new}: H and W alone may change")
        if constraint != "softmax":
            return resample_weights(leaf, new[:2])
        # Not `resample_weights`, whose correction of the sums could make a small weight negative.
        weights = jax.image.resize(softmax_weights(leaf), new, "bilinear")
        weights = jnp.maximum(weights, jnp.finfo(weights.dtype).tiny)
        return jnp.log(weights / jnp.sum(weights, axis=(0, 1))).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(resize, _nested(params))


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


def flatten(x: Array) -> Array:
    """No pooling: all positions and channels side by side, ``[B, H, W, C]`` to ``[B, H·W·C]``.

    The classifier after this pool has a weight for every position, channel and class. For a single
    channel, these weights form a matrix of positions and classes, which has rank one with FlexPool.
    VGG (Simonyan & Zisserman 2015, arXiv 1409.1556) flattens too: its first dense layer takes the
    whole map.

    Example:
        >>> import jax.numpy as jnp
        >>> flatten(jnp.ones((2, 8, 8, 64))).shape
        (2, 4096)
    """
    _check_feature_map(x)
    return jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def avgmax_pool(x: Array) -> Array:
    """Half of the average plus half of the maximum (timm's adaptive pool ``avgmax``).

    After Lee, Gallagher & Tu 2016, "Generalizing Pooling Functions in Convolutional Neural
    Networks" (arXiv 1509.08985), section 3.1, with equal and fixed shares.

    Example:
        >>> import jax.numpy as jnp
        >>> float(avgmax_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))[0, 0])
        2.25
    """
    _check_feature_map(x)
    wide = _widen(x)
    return ((jnp.mean(wide, axis=(1, 2)) + jnp.max(wide, axis=(1, 2))) / 2).astype(x.dtype)


def lse_pool(x: Array, r: float = 5.0) -> Array:
    """Log-sum-exp pooling, ``log(mean(exp(r · x))) / r`` (Pinheiro & Collobert 2015).

    "From Image-level to Pixel-level Labeling with Convolutional Networks", arXiv 1411.6228: the
    average for r → 0, the maximum for r → ∞, and at most log(H·W)/r below the maximum. With the
    default r, log(H·W)/r is 0.83 for maps of 8×8. That is less than 1, the standard deviation of a
    channel after BatchNorm: the result is near enough to the maximum to differ from the average,
    and still smooth.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
        >>> [round(float(lse_pool(x, r)[0, 0]), 2) for r in (1e-3, 5.0, 1e3)]
        [1.5, 2.72, 3.0]
    """
    _check_feature_map(x)
    return (jax.nn.logmeanexp(r * _widen(x), axis=(1, 2)) / r).astype(x.dtype)


def soft_pool(x: Array) -> Array:
    """SoftPool over the whole map: the mean weighted by the softmax of the values themselves.

    Stergiou, Poppe & Kalliatakis 2021, "Refining activation downsampling with SoftPool",
    arXiv 2101.00440, Eqs. 1 and 2, for each channel separately.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(soft_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))[0, 0]), 2)
        2.49
    """
    _check_feature_map(x)
    wide = _widen(x)
    return jnp.sum(jax.nn.softmax(wide, axis=(1, 2)) * wide, axis=(1, 2)).astype(x.dtype)


def gem_pool(x: Array, p: Array | float, epsilon: float = 1e-6) -> Array:
    """Generalised mean, ``mean(max(x, ε)^p)^(1/p)`` (Radenović, Tolias & Chum 2018).

    "Fine-tuning CNN Image Retrieval with No Human Annotation", arXiv 1711.02512, Eq. 3: the
    average for p = 1, the maximum for p → ∞. The mean is computed from logarithms, since ε^p leaves
    float32's range from p = 7 on.

    Args:
        x: ``[B, H, W, C]``, floating; values below epsilon count as epsilon.
        p: the exponent, a scalar other than 0.
        epsilon: smallest value, above 0.

    Returns:
        ``[B, C]`` of x's dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(gem_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), 3.0)[0, 0]), 4)
        2.0801
    """
    _check_feature_map(x)
    log_x = jnp.log(jnp.maximum(_widen(x), epsilon))
    return jnp.exp(jax.nn.logmeanexp(p * log_x, axis=(1, 2)) / p).astype(x.dtype)


def _widen(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class GlobalPool(nn.Module):
    """A pool without parameters as a Flax module: ``[B, H, W, C]`` to ``[B, C]``.

    Attributes:
        function: the pool, such as `avg_pool` or `max_pool`.
    """

    function: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.function(x)


class GeMPool(nn.Module):
    """`gem_pool` with one learned exponent, float32 ``p`` of shape ``[]``.

    Attributes:
        p_init: initial value of p; 3 as in the paper of `gem_pool`.
    """

    p_init: float = 3.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        p = self.param("p", nn.initializers.constant(self.p_init), (), jnp.float32)
        return gem_pool(x, p)


class AttentionPool(nn.Module):
    """CLIP's attention pool: one attention layer whose single query is the mean token.

    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
    (arXiv 2103.00020), section 2.4. The tokens are every position and their mean, each with a
    learned embedding; all of them are keys and values. The number of heads is the largest divisor
    of C that is at most C/64. The result is computed in float32 and returned in x's dtype.

    Raises:
        ValueError: the input is not ``[B, H, W, C]``, or its H, W, C differ from those for which
            the embeddings were created.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.ones((2, 8, 8, 128))
        >>> variables = jax.eval_shape(AttentionPool().init, jax.random.key(0), x)
        >>> variables["params"]["attention"]["query"]["kernel"].shape
        (128, 2, 64)
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        _check_feature_map(x)
        batch, height, width, channels = x.shape
        if self.has_variable("params", "positions"):
            stored = jnp.shape(self.get_variable("params", "positions"))
            _check_weights(x.shape[1:], stored, owner="AttentionPool's embeddings", remedy="")
        init = nn.initializers.normal(channels**-0.5)
        positions = self.param("positions", init, (height, width, channels), jnp.float32)
        mean_position = self.param("mean_position", init, (channels,), jnp.float32)
        wide = _widen(x)
        mean = jnp.mean(wide, axis=(1, 2)) + mean_position
        tokens = jnp.reshape(wide + positions, (batch, height * width, channels))
        tokens = jnp.concatenate([mean[:, None], tokens], axis=1)
        heads = next(n for n in range(max(1, channels // 64), 0, -1) if channels % n == 0)
        attention = nn.MultiHeadDotProductAttention(heads, kernel_init=init, name="attention")
        return attention(tokens[:, :1], tokens)[:, 0].astype(x.dtype)


#: Every global pool by name, including registered ones; each value builds the pool's Flax module.
POOLS: dict[str, Callable[..., nn.Module]] = {
    "avg": functools.partial(GlobalPool, avg_pool),
    "max": functools.partial(GlobalPool, max_pool),
    "avgmax": functools.partial(GlobalPool, avgmax_pool),
    "gem": GeMPool,
    "lse": functools.partial(GlobalPool, lse_pool),
    "softpool": functools.partial(GlobalPool, soft_pool),
    "attention": AttentionPool,
    "flexpool": FlexPool,
    "flexpool_softmax": functools.partial(FlexPool, constraint="softmax"),
    # Controls: what remains of FlexPool's effect without one of its parts.
    "channel_scale": ChannelScale,
    "flexpool_shared": FlexPoolShared,
    "gdconv": GDConv,
    "flatten": functools.partial(GlobalPool, flatten),
}

# Words of a config's variant that are not names in `POOLS`. Each word maps to the field that it
# sets and to the field's value; None if the config file chooses the value.
VARIANT_WORDS: Mapping[str, tuple[str, str | None]] = {
    "softmax": ("pool", "flexpool_softmax"),
    "reg": ("pool_reg", None),
    "dropout": ("dropout_rate", None),
    "sac": ("sac.enabled", "True"),
}

Definition = TypeVar("Definition", bound=Callable[..., Any])


def register_pool(name: str) -> Callable[[Definition], Definition]:
    """Registers a pool under a name that `create_model`, configs, sweeps and reports may use.

    Args:
        name: letters, digits and underscores; it becomes part of folders' names.

    Returns:
        A decorator for a function ``[B, H, W, C] -> [B, C]``, or for a `flax.linen.Module` class
        that maps the same shapes. A module takes part in Eq. 2 if it has a parameter ``w_fp`` of
        shape ``[H, W, C]``, of length 1 along the axes that share a weight. If it has a method
        ``effective_weights(w_fp, shape)``, the function `effective_weights` calls this method. A
        module that wraps a pool with a constraint needs a field ``constraint`` with the same value.

    Raises:
        ValueError: the name holds other characters, has another meaning in a variant, or is taken
            by another pool; or the decorated object is neither a function nor a module class. The
            same definition may be registered again, as when a notebook's cell is run twice.

    Example:
        >>> import jax.numpy as jnp
        >>> @register_pool("centre")
        ... def centre_pool(x):
        ...     return x[:, x.shape[1] // 2, x.shape[2] // 2]
        >>> create_pool("centre").apply({}, jnp.ones((2, 8, 8, 64))).shape
        (2, 64)
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name, re.ASCII):
        raise ValueError(f"a pool cannot be named {name!r}; allowed: letters, digits and _")
    if name in VARIANT_WORDS:
        raise ValueError(
            f"a pool cannot be named {name!r}, which in a variant sets {VARIANT_WORDS[name][0]}; "
            f"reserved: {', '.join(VARIANT_WORDS)}"
        )

    def register(definition: Definition) -> Definition:
        entry: Callable[..., nn.Module] = functools.partial(GlobalPool, definition)
        if isinstance(definition, type) and issubclass(definition, nn.Module):
            entry = definition
        elif isinstance(definition, type | nn.Module) or not callable(definition):
            raise ValueError(
                f"pool {name!r} is given as {definition!r}; allowed: a function "
                "[B, H, W, C] -> [B, C], or a class derived from flax.linen.Module"
            )
        if name in POOLS and not _is_same_pool(POOLS[name], entry):
            raise ValueError(f"a pool named {name!r} is registered already")
        POOLS[name] = entry
        return definition

    return register


def _is_same_pool(one: Any, other: Any) -> bool:
    """Whether two entries of `POOLS` come from the same definition."""
    entries = (one, other)
    functions = [isinstance(e, functools.partial) and e.func is GlobalPool for e in entries]
    if all(functions):
        return is_same_definition(one.args[0], other.args[0])
    return not any(functions) and is_same_definition(one, other)


def is_same_definition(one: Any, other: Any) -> bool:
    """Whether two functions come from the same definition, as when a notebook's cell runs twice.

    The name of a module's function says enough, so that a cell may be edited and run again. Lambdas
    and local functions must also agree in their code, default arguments and enclosed values, as far
    as these can be compared: a cell that runs twice makes its arrays anew.

    Example:
        >>> def define(number):
        ...     def function():
        ...         return number
        ...     return function
        >>> is_same_definition(define(1), define(1)), is_same_definition(define(1), define(2))
        (True, False)
    """
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        given, other_given = (one.args, one.keywords), (other.args, other.keywords)
        return is_same_definition(one.func, other.func) and _may_be_equal(given, other_given)
    if _written_in(one) != _written_in(other):
        return False
    if "<" not in str(getattr(one, "__qualname__", "")):
        return True
    values, others = _values(one), _values(other)
    return len(values) == len(others) and all(map(_may_be_equal, values, others))


def _written_in(function: Any) -> tuple[Any, Any]:
    return getattr(function, "__module__", None), getattr(function, "__qualname__", function)


def _values(function: Any) -> list[Any]:
    """What tells apart functions of one name: code, default arguments and enclosed values."""
    values = [getattr(function, "__code__", None)]
    values += getattr(function, "__defaults__", None) or ()
    values += (getattr(function, "__kwdefaults__", None) or {}).values()
    for cell in getattr(function, "__closure__", None) or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # The variable has no value yet.
            values.append(None)
    return values


def _may_be_equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if hasattr(one, "__qualname__"):  # A local class or function, which is made anew each time.
        return _written_in(one) == _written_in(other)
    try:
        return bool(one == other)
    except Exception:  # Such as arrays, whose comparison is not one bool.
        return True


def create_pool(pool: str, **module_fields: Any) -> nn.Module:
    """Creates the global pool of a name, as a Flax module ``[B, H, W, C] -> [B, C]``.

    Args:
        pool: one of `POOLS`; only ``"flatten"`` returns ``[B, H·W·C]``.
        **module_fields: fields of the module, such as Flax's ``name``.

    Raises:
        ValueError: unknown name.

    Example:
        >>> create_pool("flexpool_softmax").constraint
        'softmax'
    """
    if pool not in POOLS:
        raise ValueError(f"unknown pool {pool!r}; allowed: {', '.join(POOLS)}")
    return POOLS[pool](**module_fields)


def has_weights(pool: str) -> bool:
    """Whether a pool has a parameter ``w_fp`` anywhere in its tree of parameters.

    Raises:
        ValueError: unknown pool.

    Example:
        >>> has_weights("flexpool_softmax"), has_weights("attention")
        (True, False)
    """
    # Traced only, so that nothing is computed on a device.
    variables = jax.eval_shape(
        lambda: create_pool(pool).init(jax.random.key(0), jnp.zeros((1, 8, 8, 64)))
    )
    return bool(named_w_fp(variables.get("params", {})))


def regularizer_applies(pool: str) -> bool:
    """Whether Eq. 2 can constrain a pool: it has a ``w_fp``, and uses ``w_fp`` as it is stored.

    Raises:
        ValueError: unknown pool.

    Example:
        >>> [regularizer_applies(pool) for pool in ("flexpool", "flexpool_softmax", "avg")]
        [True, False, False]
    """
    return has_weights(pool) and getattr(create_pool(pool), "constraint", None) is None


def effective_weights(
    pool: str, params: Mapping[str, Any], shape: tuple[int, int, int]
) -> Array | None:
    """The weights by which a pool with learned weights multiplies a feature map.

    The pool computes ``flex_pool(x, effective_weights(pool, params, x.shape[1:]))`` from x. The
    effective weights are w_fp itself, the softmax of w_fp, the one map repeated for all channels,
    or the factor of each channel divided by H·W.

    Args:
        pool: one of `POOLS`.
        params: parameters of that pool alone, such as ``{"w_fp": w}``.
        shape: (H, W, C) of the feature map.

    Returns:
        ``[H, W, C]`` of w_fp's dtype; None for a pool that has no method ``effective_weights`` (see
        `register_pool`), such as a pool without learned weights.

    Raises:
        ValueError: the pool is unknown, or the weights do not fit the shape.

    Example:
        >>> import jax.numpy as jnp
        >>> w = effective_weights("channel_scale", {"w_fp": jnp.ones((1, 1, 3))}, (2, 2, 3))
        >>> w.shape, float(w[0, 0, 0])
        ((2, 2, 3), 0.25)
        >>> effective_weights("avg", {}, (2, 2, 3)) is None
        True
    """
    module = create_pool(pool)
    # An inherited method does not count: a class derived from FlexPool may compute something else.
    if "effective_weights" not in vars(type(module)):
        return None
    return module.effective_weights(params["w_fp"], shape)
