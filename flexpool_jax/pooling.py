"""FlexPool, the regularizer that constrains it (Eq. 2), and three controls with learned weights.

Every layer here maps a feature map ``[B, H, W, C]`` to ``[B, C]`` by a parameter ``w_fp``. To use
FlexPool in another project, copy this one file, which needs JAX and Flax only. The other pools are
in `flexpool_jax.pools`.

Reference: Ali, Alsuwaidi, Khan, "FlexPooling with Simple Auxiliary Classifiers in Deep Networks",
VISAPP 2023, section 3 ("the paper" below).
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array
Constraint = Literal["softmax"]


class FlexPool(nn.Module):
    """Global pooling by a learned weighted average (the paper, section 3 and Fig. 1).

    The parameter ``w_fp`` is float32 ``[H, W, C]``, whatever the dtype of the feature map, and
    starts at 1/(H·W) everywhere: at step 0 the layer *is* global average pooling.

    Two related layers are older, and are controls here. Global depthwise convolution (`GDConv`;
    Chen et al. 2018) computes the same function, but its weights are initialised at random.
    Spatially weighted pooling with one mask (`FlexPoolShared`; Hu et al. 2017) has one map of
    weights for all channels.

    Attributes:
        constraint: ``None`` uses w_fp as it is (Eq. 2, `flexpool_regularizer`, pulls each channel's
            sum to 1); ``"softmax"`` uses ``softmax_weights(w_fp)``.

    Raises:
        ValueError: the constraint is unknown, the input is not a floating ``[B, H, W, C]`` with
            some positions, or its H, W, C differ from those for which the weights were created.

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
        """Returns the weights [H, W, C] that multiply a map of this shape (H, W, C)."""
        check_weights(shape, jnp.shape(w_fp))
        return softmax_weights(w_fp) if self.constraint == "softmax" else w_fp


def flex_pool(x: Array, w: Array) -> Array:
    """Weighted sum over positions, one weight per position and channel (the paper, section 3).

    ``y[b, c] = Σ_ij w[i, j, c] · x[b, i, j, c]``, summed in float32 or better.

    Args:
        x: feature map ``[B, H, W, C]``, floating.
        w: weights ``[H, W, C]``.

    Returns:
        ``[B, C]`` of x's dtype.

    Raises:
        ValueError: x is not a floating ``[B, H, W, C]`` with some positions, or H, W, C of x and w
            differ.

    Example:
        >>> import jax.numpy as jnp
        >>> flex_pool(jnp.ones((2, 4, 4, 3)), jnp.full((4, 4, 3), 1 / 16)).shape
        (2, 3)
    """
    check_feature_map(x)
    check_weights(x.shape[1:], w.shape)
    wide = widen(x)
    return jnp.sum(wide * w.astype(wide.dtype), axis=(1, 2)).astype(x.dtype)


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
        total = total + jnp.sum((jnp.sum(widen(w), axis=(0, 1)) - 1.0) ** 2)
    return total


def named_w_fp(params: Any) -> list[tuple[str, Array]]:
    """Every w_fp of a tree, with the path of the module that holds it, such as "head/pool/"."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(_nested(params)):
        names = path_names(path)
        if names[-1:] != ("w_fp",):
            continue
        if jnp.ndim(leaf) != 3:
            raise ValueError(f"weights w_fp must be [H, W, C]; got shape {jnp.shape(leaf)}")
        found.append(("".join(f"{name}/" for name in names[:-1]), leaf))
    return found


def path_names(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the names on the way to a leaf, of linen and NNX trees, nested or flattened."""
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
        path_names(path): tuple(getattr(leaf, "shape", leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(_nested(like), is_leaf=is_shape)
    }

    def resize(path: tuple[Any, ...], leaf: Array) -> Array:
        names = path_names(path)
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
        weights = weights / jnp.sum(weights, axis=(0, 1))
        # Clamped last: a device may compute with 0 in place of numbers smaller than tiny.
        return jnp.log(jnp.maximum(weights, jnp.finfo(weights.dtype).tiny)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(resize, _nested(params))


class GDConv(nn.Module):
    """Global depthwise convolution: FlexPool's weighted sum with random initial weights.

    Chen, Liu, Gao & Han 2018, "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face
    Verification on Mobile Devices" (arXiv 1804.07573), section 3.2: a depthwise convolution whose
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
        """Returns the weights [H, W, C] that multiply a map of this shape (H, W, C)."""
        check_weights(shape, jnp.shape(w_fp), "GDConv's weights")
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
        """Returns the weights [H, W, C] that multiply a map of this shape (H, W, C)."""
        check_weights(shape, jnp.shape(w_fp), "FlexPoolShared's weights", axes="HW")
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
        return (s[0, 0] * jnp.mean(widen(x), axis=(1, 2))).astype(x.dtype)

    @nn.nowrap
    def effective_weights(self, w_fp: Array, shape: tuple[int, ...]) -> Array:
        """Returns the weights [H, W, C] that multiply a map of this shape (H, W, C)."""
        check_weights(shape, jnp.shape(w_fp), "ChannelScale's weights", axes="C")
        return jnp.broadcast_to(w_fp / (shape[0] * shape[1]), shape)


def _stored_weights(
    pool: nn.Module, x: Array, start: nn.initializers.Initializer, axes: str = "HWC"
) -> Array:
    """Creates or reads a pool's parameter w_fp, float32, of length 1 along axes not in `axes`."""
    check_feature_map(x)
    owner, shape = f"{type(pool).__name__}'s weights", x.shape[1:]
    if pool.has_variable("params", "w_fp"):
        check_weights(shape, jnp.shape(pool.get_variable("params", "w_fp")), owner, axes=axes)
    return pool.param("w_fp", start, _shape_along(axes, shape), jnp.float32)


def _average_start(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """An initializer that returns the weights of global average pooling."""
    return jnp.full(shape, 1.0 / (shape[0] * shape[1]), dtype)


def check_feature_map(x: Array) -> None:
    """Raises ValueError unless x is a floating feature map [B, H, W, C] with some positions."""
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


def check_weights(
    shape: Sequence[int],
    w_shape: tuple[int, ...],
    owner: str = "FlexPool's weights",
    remedy: str = ", or resample the weights with flexpool_jax.resize_flexpool",
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
            f"{mismatch}: resize the images to the resolution it was trained at{remedy}"
        )
    raise ValueError(mismatch)


def _shape_along(axes: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of parameters that vary along `axes` of a map [H, W, C]: 1 along other axes."""
    return tuple(n if axis in axes else 1 for axis, n in zip("HWC", shape, strict=True))


def widen(x: Array) -> Array:
    """Converts x to float32, in which sums are computed; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
