"""Convolution and BatchNorm for XLA's CPU backend: the same results as flax's, computed faster.

`flexpool_jax.models.layers` uses them on CPUs only. Convolutions in float32 are oneDNN's where its
library is installed (`flexpool_jax.models.onednn`), and otherwise XLA's own, arranged so that XLA
computes them faster. Why each piece is here stands with the piece; `benchmarks/train_step.py`
measures the whole. All have gradients of their own (`jax.custom_vjp`), and so no forward-mode
derivative: whoever needs one switches them off (`layers.cpu_kernels`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flexpool_jax.models import onednn

Array = jax.Array
Padding = Sequence[tuple[int, int]]

# Bytes of input per slice of XLA's kernel gradient, which takes two to four times as long an image
# at batch 1000 as at 128; in slices that stay in the cache it does not. Slices of 1 MiB ran 1.3 to
# 1.5 times as fast as slices of 2 MiB at 32×32×16 and 16×16×32. Smaller ones gain a tenth at most,
# and each costs compile time.
KERNEL_GRADIENT_SLICE_BYTES = 1024 * 1024

# Up to so many features, a convolution computes two columns at once (`_conv_in_pairs`).
PAIRED_FEATURES = 16


def conv_general_dilated(
    x: Array, kernel: Array, strides: Sequence[int], padding: str | Padding, **others: Any
) -> Array:
    """What `flax.linen.Conv` takes for its ``conv_general_dilated``; `conv` where it applies."""
    dilations = (*others.get("lhs_dilation", ()), *others.get("rhs_dilation", ()))
    if (
        len(strides) != 2
        or isinstance(padding, str)
        or strides[0] != strides[1]
        or any(dilation != 1 for dilation in dilations)
        or others.get("feature_group_count", 1) != 1
    ):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **others)
    return conv(x, kernel, strides[0], padding)


def conv(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """`jax.lax.conv_general_dilated` in NHWC: oneDNN's where that is possible, or else XLA's.

    Args:
        x: ``[B, H, W, C]``.
        kernel: ``[kh, kw, C, features]``.
        stride: of both directions.
        padding: (low, high) for each of them.

    Returns:
        ``[B, H', W', features]``.
    """
    margins = tuple((low, high) for low, high in padding)
    matching = x.ndim == kernel.ndim == 4 and x.shape[3] == kernel.shape[2]
    if matching and x.dtype == kernel.dtype == jnp.float32 and onednn.library() is not None:
        geometry = onednn.Geometry(x.shape, kernel.shape, stride, margins)
        sizes = (*geometry.x, *geometry.kernel, *geometry.y)
        if min(sizes) > 0 <= min(itertools.chain(*margins)):
            return onednn.conv(x, kernel, geometry)
    return xla_conv(x, kernel, stride, margins)


def _conv(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _conv_in_pairs(x: Array, kernel: Array, padding: Padding) -> Array:
    """`_conv` with stride 1 and an even number of columns, two of them per application.

    A kernel that is one column wider and moves by two gives the features of both columns side by
    side, which in NHWC is the result itself. A quarter of a 3×3 kernel's products is with zeros
    then, but 16 features fill only a third of the block of products that Eigen keeps in registers,
    and 32 two thirds: 119 GFLOP/s of useful work, not 99, at 32×32×16. With the smaller slices
    below, a step of ResNet20 takes a tenth less at batch 128 and at 1000.
    """
    features = kernel.shape[-1]
    left = jnp.pad(kernel, ((0, 0), (0, 1), (0, 0), (0, 0)))
    right = jnp.pad(kernel, ((0, 0), (1, 0), (0, 0), (0, 0)))
    both = jnp.concatenate([left, right], axis=-1)
    y = jax.lax.conv_general_dilated(
        x, both, (1, 2), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.reshape(*y.shape[:2], -1, features)


def _conv_fast(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    _, columns, _, features = kernel.shape
    width = x.shape[2] + sum(padding[1]) - columns + 1
    if stride == 1 and columns > 1 and width % 2 == 0 and features <= PAIRED_FEATURES:
        return _conv_in_pairs(x, kernel, padding)
    return _conv(x, kernel, stride, padding)


def _input_gradient(x: Array, kernel: Array, g: Array, stride: int, padding: Padding) -> Array:
    if stride > 1:
        (dx,) = jax.linear_transpose(lambda x: _conv(x, kernel, stride, padding), x)(g)
        return dx
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    sizes = zip(kernel.shape[:2], padding, strict=True)
    return _conv_fast(g, turned, 1, [(n - 1 - low, n - 1 - high) for n, (low, high) in sizes])


def _slices(batch: int, bytes_per_image: int, slice_bytes: int) -> list[slice]:
    """Cuts a batch into slices of nearly equal length that hold at most so many bytes each."""
    count = min(batch, max(1, -(-batch * bytes_per_image // slice_bytes)))
    bounds = [batch * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def xla_conv(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """The same by XLA, with the kernel's gradient summed over slices of the batch."""
    return _conv_fast(x, kernel, stride, padding)


def _conv_forward(
    x: Array, kernel: Array, stride: int, padding: Padding
) -> tuple[Array, tuple[Array, Array]]:
    return _conv_fast(x, kernel, stride, padding), (x, kernel)


def _conv_backward(
    stride: int, padding: Padding, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    dx = _input_gradient(x, kernel, g, stride, padding)
    image_bytes = x.dtype.itemsize * x[0].size
    # XLA transposes each slice of x for this. If nothing kept it from doing so, it would do it as
    # soon as there is an x, and hold a second copy of all activations until they are needed here.
    origin = _zero_after(g)
    # The gradient is written down as a convolution by linear_transpose, once for each slice. A loop
    # would be shorter, but XLA runs convolutions inside loops on one core.
    dk = jnp.zeros_like(kernel)
    for part in _slices(x.shape[0], image_bytes, KERNEL_GRADIENT_SLICE_BYTES):
        images = jax.lax.dynamic_slice_in_dim(x, origin + part.start, part.stop - part.start)
        transpose = jax.linear_transpose(
            lambda k, images=images: _conv(images, k, stride, padding), kernel
        )
        dk = dk + transpose(g[part])[0]
    return dx, dk


xla_conv.defvjp(_conv_forward, _conv_backward)


def _sums(x: Array, y: Array) -> tuple[Array, Array]:
    """Sums of x and of x · y over all axes but the last.

    Both in one pass, and at most 32 rows of W·C at first: XLA's CPU backend does that at memory
    speed, 45 GB/s. Of 64 and more rows it adds up 3 GB a second, of all pixels at once 8, and a
    matrix product with ones, which has to write x · y first, 11.
    """
    channels = x.shape[-1]
    width = x.shape[-2] if x.ndim > 2 else 1
    rows = x.size // (width * channels)
    few = max(n for n in range(1, 33) if rows % n == 0)
    x, y = (a.reshape(-1, few, width * channels) for a in (x, y))
    zero = jnp.zeros((), x.dtype)
    sums = jax.lax.reduce((x, x * y), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (1,))
    sum_x, sum_xy = (part.reshape(-1, channels).sum(0) for part in sums)
    return sum_x, sum_xy


def _zero_after(x: Array) -> Array:
    """The index 0, which XLA does not know to be 0, and does not have before it has x."""
    return (x.reshape(-1)[0] * 0).astype(jnp.int32)


def _written_once(x: Array, scale: Array) -> Array:
    """The same x, in a form that XLA writes to memory before anything reads it.

    XLA fuses elementwise operations into each of their readers. A kernel gradient of XLA's reads in
    transposed order, and would there compute anew the chain of norms, residuals and ReLUs of all
    blocks since the last stride, from up to nine arrays; and sums over what a ReLU's gradient
    selects take ten times as long as over what lies in memory. An optimization barrier does not do
    it: the CPU pipeline drops it ahead of fusion. An element written over itself does, where its
    position is known at run time only.
    """
    origin = _zero_after(scale)
    first = jax.lax.slice(x, (0,) * x.ndim, (1,) * x.ndim)
    return jax.lax.dynamic_update_slice(x, first, (origin,) * x.ndim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def batch_norm(
    x: Array,
    residual: Array | None,
    scale: Array,
    bias: Array,
    epsilon: float,
    relu: bool,
    axis_name: str | None,
) -> tuple[Array, Array, Array]:
    """BatchNorm in training, with the addition of a residual and the ReLU that follow it.

    Ioffe & Szegedy 2015, arXiv 1502.03167, Alg. 1. One pass reads x for both sums, one writes the
    result; backward likewise: dx is ``a · g + b · x + c`` with a, b and c per channel.

    Args:
        x: ``[..., C]``, floating.
        residual: of x's shape, or None.
        scale: ``[C]``.
        bias: ``[C]``.
        epsilon: added to the variance.
        relu: whether to clip the result at 0.
        axis_name: pmapped axis over which the statistics are averaged, or None.

    Returns:
        The result, and the batch's mean and biased variance ``[C]``, which have no gradient.
    """
    return _batch_norm_forward(x, residual, scale, bias, epsilon, relu, axis_name)[0]


def _mean_over_devices(values: tuple[Array, ...], axis_name: str | None) -> tuple[Array, ...]:
    return values if axis_name is None else jax.lax.pmean(values, axis_name)


def _batch_norm_forward(x, residual, scale, bias, epsilon, relu, axis_name):  # type: ignore[no-untyped-def]
    count = x.size // x.shape[-1]
    sum_x, sum_xx = _sums(x, x)
    mean, square = _mean_over_devices((sum_x / count, sum_xx / count), axis_name)
    variance = jnp.maximum(square - mean * mean, 0.0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = x * (scale * inverse) + (bias - mean * scale * inverse)
    if residual is not None:
        y = y + residual
    if relu:
        y = jnp.maximum(y, 0.0)
    y = _written_once(y, scale)
    return (y, mean, variance), (x, y if relu else None, residual is None, mean, inverse, scale)


def _batch_norm_backward(epsilon, relu, axis_name, saved, cotangents):  # type: ignore[no-untyped-def]
    x, y, no_residual, mean, inverse, scale = saved
    g = cotangents[0]
    if relu:
        g = _written_once(jnp.where(y > 0, g, 0.0), scale)
    count = x.size // x.shape[-1]
    sum_g, sum_gx = _sums(g, x)
    d_scale = (sum_gx - mean * sum_g) * inverse
    mean_g, mean_gx = _mean_over_devices((sum_g / count, sum_gx / count), axis_name)
    a = scale * inverse
    b = -a * inverse * inverse * (mean_gx - mean * mean_g)
    dx = _written_once(a * g + b * x - (a * mean_g + b * mean), scale)
    return dx, None if no_residual else g, d_scale, sum_g


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
