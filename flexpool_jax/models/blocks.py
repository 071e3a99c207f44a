"""What VGG, ResNet and Inception share: normed convolutions, max pools, the choice of the stem."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from flexpool_jax.models.layers import BatchNorm, Conv

Array = jax.Array

# The longest shorter side of a small image. Of 64 pixels the large stem of the ResNets leaves a
# quarter, and three more halvings 2×2 positions to pool.
SMALL_IMAGE_SIDE = 64


def is_small(images: Array, small_images: bool | None = None) -> bool:
    """Whether images ``[B, H, W, C]`` get the stem for small ones; ``small_images`` overrides."""
    if small_images is not None:
        return small_images
    return min(images.shape[1:3]) <= SMALL_IMAGE_SIDE


def max_pool(x: Array, window: int, stride: int) -> Array:
    """Max over windows of 2×2 or 3×3: ``[B, H, W, C]`` to ``[B, ⌈H/stride⌉, ⌈W/stride⌉, C]``.

    A window of 3 is padded by one pixel on each side, as a convolution is. One of 2 is padded at
    the end of a side of odd length only, so that 28 pixels become 14, 7, 4 and 2.
    """
    padding = [(window // 2, window // 2)] * 2 if window % 2 else "SAME"
    return nn.max_pool(x, (window, window), strides=(stride, stride), padding=padding)


class ConvNorm(nn.Module):
    """A convolution without bias, named ``conv``, and the BatchNorm on it, named ``norm``.

    Attributes:
        features: channels of the result.
        kernel_size: height and width; padded by half of it on each side.
        strides: of both directions.
        train: whether the norm uses the batch's statistics and updates the running ones.
        dtype: compute dtype.
        norm_axis_name: axis over which batch statistics are synchronised, if any.
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
