"""Parts of VGG, ResNet and Inception: convolution with BatchNorm, max pool, choice of the stem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flexpool_jax.models.layers import BatchNorm, Conv

Array = jax.Array
# Creates a layer: a module class, or a function with the same arguments.
ModuleDef = Callable[..., Any]

# An image is small if its shorter side has at most this many pixels. At 64 pixels, the ResNets'
# stem for large images leaves 16×16 positions, and three more halvings only 2×2 positions to pool.
SMALL_IMAGE_SIDE = 64


def is_small(images: Array, small_images: bool | None = None) -> bool:
    """Whether a network uses its stem for small images.

    Args:
        images: ``[B, H, W, C]``.
        small_images: True or False is returned as it is. None compares the shorter side of the
            images with `SMALL_IMAGE_SIDE`.
    """
    if small_images is not None:
        return small_images
    return min(images.shape[1:3]) <= SMALL_IMAGE_SIDE


def max_pool(x: Array, window: int, stride: int) -> Array:
    """Max over windows of 2×2 or 3×3: ``[B, H, W, C]`` to ``[B, ⌈H/stride⌉, ⌈W/stride⌉, C]``.

    For a window of 3, the map is padded by one pixel on each side, as for a convolution. For a
    window of 2, it is padded at the end, and only if its length is odd: 28 pixels become 14, 7, 4
    and 2.
    """
    padding = [(window // 2, window // 2)] * 2 if window % 2 else "SAME"
    return nn.max_pool(x, (window, window), strides=(stride, stride), padding=padding)


class ConvNorm(nn.Module):
    """A convolution without bias, named ``conv``, followed by BatchNorm, named ``norm``.

    Attributes:
        features: number of output channels.
        kernel_size: height and width of the kernel; see `layers.Conv` for the padding.
        strides: stride of the convolution along both height and width.
        train: whether BatchNorm normalises by the statistics of the batch and updates the running
            statistics; otherwise it normalises by the running statistics.
        dtype: compute dtype.
        norm_axis_name: pmapped axis over which batch statistics are synchronised; None for none.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: int = 1
    train: bool = False
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    norm_axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = Conv(
            self.features, self.kernel_size, strides=self.strides, dtype=self.dtype, name="conv"
        )
        norm = BatchNorm(
            not self.train, dtype=self.dtype, axis_name=self.norm_axis_name, name="norm"
        )
        return norm(conv(x))
