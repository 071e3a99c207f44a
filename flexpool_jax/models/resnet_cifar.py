"""The CIFAR ResNets of He et al. 2015 ("Deep Residual Learning", arXiv 1512.03385, section 4.2).

The networks have 6n + 2 layers: a 3×3 stem of 16 channels, and three stages of n blocks with two
convolutions each, of 16, 32 and 64 channels. The order is conv–BN–ReLU, convolutions have no bias,
and shortcuts have no parameters (option A). ``norm_after_relu=True`` selects the order of the
FlexPool authors' release instead, and ``projection_shortcuts=True`` the shortcuts that many
published weights need (option B).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flexpool_jax.models.blocks import ModuleDef
from flexpool_jax.models.layers import BatchNorm, Conv, relu

Array = jax.Array

STAGE_FEATURES = (16, 32, 64)


def option_a_shortcut(x: Array, features: int, stride: int, name: str = "") -> Array:
    """Option A of He et al.: keeps every ``stride``-th pixel and pads new channels with zeros."""
    if stride == 1 and x.shape[-1] == features:
        return x
    x = x[:, ::stride, ::stride]
    missing = features - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


def projection_shortcut(
    x: Array, features: int, stride: int, name: str, conv: ModuleDef, norm: ModuleDef
) -> Array:
    """Option B of He et al.: a 1×1 convolution and BatchNorm if the shape changes, otherwise x."""
    if stride == 1 and x.shape[-1] == features:
        return x
    x = conv(features, (1, 1), strides=stride, name=f"{name}_projection_conv")(x)
    return norm(name=f"{name}_projection_norm")(x)


class ResNetCifar(nn.Module):
    """Images ``[B, H, W, C]`` to maps of 16, 32 and 64 channels at 1, 1/2 and 1/4 of their size.

    Attributes:
        blocks_per_stage: number of blocks n of each stage; the depth is 6n + 2. ResNet20, the
            backbone of the FlexPool paper, has n = 3.
        norm_after_relu: False for conv–BN–ReLU. True for conv–ReLU–BN with biases in the
            convolutions, and BN after the last ReLU of a block, as in the FlexPool authors'
            release.
        projection_shortcuts: whether shortcuts are option B instead of option A of He et al.
        dtype: compute dtype.
        norm_axis_name: pmapped axis over which batch statistics are synchronised; None for none.
    """

    blocks_per_stage: int
    norm_after_relu: bool = False
    projection_shortcuts: bool = False
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    norm_axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        conv = functools.partial(Conv, use_bias=self.norm_after_relu, dtype=self.dtype)
        norm = functools.partial(
            BatchNorm, not train, dtype=self.dtype, axis_name=self.norm_axis_name
        )
        block = block_of_the_release if self.norm_after_relu else residual_block
        shortcut: ModuleDef = option_a_shortcut
        if self.projection_shortcuts:
            shortcut = functools.partial(projection_shortcut, conv=conv, norm=norm)
        stem_norm = norm(name="stem_norm")
        x = conv(STAGE_FEATURES[0], name="stem_conv")(images)
        x = stem_norm(relu(x)) if self.norm_after_relu else relu(stem_norm(x))
        stages = {}
        for stage, features in enumerate(STAGE_FEATURES, start=1):
            for number in range(1, self.blocks_per_stage + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                x = block(x, features, stride, f"stage{stage}_block{number}", conv, norm, shortcut)
            stages[f"stage{stage}"] = x
        return stages


def residual_block(
    x: Array,
    features: int,
    stride: int,
    name: str,
    conv: ModuleDef,
    norm: ModuleDef,
    shortcut_of: ModuleDef,
) -> Array:
    """The residual block of He et al., Fig. 2: ``[B, H, W, C] -> [B, H', W', features]``.

    Args:
        x: input map.
        features: number of output channels.
        stride: stride of the first convolution and of the shortcut.
        name: prefix of the names of the block's layers.
        conv: creates a convolution.
        norm: creates a BatchNorm layer.
        shortcut_of: function of (x, features, stride, name) that returns the shortcut.
    """
    shortcut = shortcut_of(x, features, stride, name)
    x = conv(features, strides=stride, name=f"{name}_1_conv")(x)
    x = norm(name=f"{name}_1_norm")(x)
    x = relu(x)
    x = conv(features, name=f"{name}_2_conv")(x)
    x = norm(name=f"{name}_2_norm")(x)
    return relu(x + shortcut)


def block_of_the_release(
    x: Array,
    features: int,
    stride: int,
    name: str,
    conv: ModuleDef,
    norm: ModuleDef,
    shortcut_of: ModuleDef,
) -> Array:
    """`residual_block` in the order of the FlexPool authors' release: BatchNorm after ReLU."""
    shortcut = shortcut_of(x, features, stride, name)
    x = conv(features, strides=stride, name=f"{name}_1_conv")(x)
    x = relu(x)
    x = norm(name=f"{name}_1_norm")(x)
    x = conv(features, name=f"{name}_2_conv")(x)
    x = relu(x + shortcut)
    return norm(name=f"{name}_2_norm")(x)
