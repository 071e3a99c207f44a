"""Convolution on a CPU: by oneDNN if it is installed, otherwise by XLA with a faster gradient."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flexpool_jax.cpu import onednn
from flexpool_jax.cpu.materialise import runtime_zero

Array = jax.Array
Padding = Sequence[tuple[int, int]]

# Bytes of input in each slice of the batch for which XLA computes a kernel gradient. XLA takes two
# to four times as long per image at batch 1000 as at batch 128, unless it works on slices that stay
# in the cache. Slices of 1 MiB ran 1.3 to 1.5 times as fast as slices of 2 MiB at 32×32×16 and
# 16×16×32. Smaller slices gain a tenth at most, and each slice costs compile time.
KERNEL_GRADIENT_SLICE_BYTES = 1024 * 1024


def conv_general_dilated(
    x: Array, kernel: Array, strides: Sequence[int], padding: Padding, **others: Any
) -> Array:
    """The argument ``conv_general_dilated`` of `flax.linen.Conv`, for `models.layers.Conv`.

    That layer has one stride for both directions, padding in numbers, no dilation and no groups.
    """
    return conv(x, kernel, strides[0], padding)


def conv(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """Convolves in NHWC as `jax.lax.conv_general_dilated`: by oneDNN if possible, otherwise by XLA.

    Args:
        x: ``[B, H, W, C]``, not empty.
        kernel: ``[kh, kw, C, features]``.
        stride: stride in both directions.
        padding: (low, high) padding of the height, then of the width.

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


def _lax_conv(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def xla_conv(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """XLA's convolution, with a kernel gradient that is summed over slices of the batch."""
    return _lax_conv(x, kernel, stride, padding)


def _forward(
    x: Array, kernel: Array, stride: int, padding: Padding
) -> tuple[Array, tuple[Array, Array]]:
    return _lax_conv(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: Padding, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: _lax_conv(x, kernel, stride, padding), x)(g)
    # XLA transposes each slice of x. Without this dependency on g, XLA would transpose as soon as x
    # is computed, and would keep a second copy of all activations until the backward pass.
    origin = runtime_zero(g)
    # Unrolled, because XLA runs convolutions inside a loop on one core.
    dk = jnp.zeros_like(kernel)
    for part in _slices(x.shape[0], x.dtype.itemsize * x[0].size):
        images = jax.lax.dynamic_slice_in_dim(x, origin + part.start, part.stop - part.start)
        transpose = jax.linear_transpose(
            lambda k, images=images: _lax_conv(images, k, stride, padding), kernel
        )
        dk = dk + transpose(g[part])[0]
    return dx, dk


xla_conv.defvjp(_forward, _backward)


def _slices(batch: int, bytes_per_image: int) -> list[slice]:
    """Cuts a batch into slices of nearly equal length, about 1 MiB each."""
    count = min(batch, max(1, -(-batch * bytes_per_image // KERNEL_GRADIENT_SLICE_BYTES)))
    bounds = [batch * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]
