"""ResNet18/34/50 (He et al. 2015, "Deep Residual Learning", arXiv 1512.03385, table 1).

Four stages of 64, 128, 256 and 512 channels (ResNet50, with bottlenecks: four times as many), with
1×1 projection shortcuts where the shape changes (option B). The stride of a bottleneck is on its
3×3 convolution, as in torchvision and most later work. Large images first pass the 7×7 convolution
and max pool of He et al., which divide each side by four. Small images first pass a 3×3 convolution
of stride 1 and no max pool, as is usual for CIFAR.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flexpool_jax.models.blocks import ConvNorm, ModuleDef, is_small, max_pool
from flexpool_jax.models.layers import relu

Array = jax.Array

STAGE_FEATURES = (64, 128, 256, 512)
BOTTLENECK_EXPANSION = 4


class Block(nn.Module):
    """A residual block: two 3×3 convolutions, or a bottleneck, plus a shortcut.

    A bottleneck is a 1×1, a 3×3 and a 1×1 convolution, the last with four times the features.

    Attributes:
        features: channels of the 3×3 convolutions.
        stride: stride of the first 3×3 convolution and of the shortcut.
        bottleneck: whether the block is a bottleneck.
        conv_norm: creates a convolution with BatchNorm.
    """

    features: int
    stride: int = 1
    bottleneck: bool = False
    conv_norm: ModuleDef = ConvNorm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = self.features * (BOTTLENECK_EXPANSION if self.bottleneck else 1)
        shortcut = x
        if self.stride > 1 or x.shape[-1] != features:
            shortcut = self.conv_norm(features, (1, 1), self.stride, name="projection")(x)
        if self.bottleneck:
            x = self.conv_norm(self.features, (1, 1), name="conv1")(x)
            x = relu(x)
            x = self.conv_norm(self.features, (3, 3), self.stride, name="conv2")(x)
            x = relu(x)
            x = self.conv_norm(features, (1, 1), name="conv3")(x)
        else:
            x = self.conv_norm(self.features, (3, 3), self.stride, name="conv1")(x)
            x = relu(x)
            x = self.conv_norm(features, (3, 3), name="conv2")(x)
        return relu(x + shortcut)


class ResNet(nn.Module):
    """Images ``[B, H, W, C]`` to the maps ``stage1`` … ``stage4``, each after the stage's blocks.

    ``stage1`` has the resolution of the images if they are small, otherwise a quarter of it. Each
    later map is half as high and wide as the map before, rounded up.

    Attributes:
        blocks_per_stage: number of blocks of each of the four stages; `registry.MODELS` has the
            numbers from table 1 of He et al.
        bottleneck: whether the blocks are bottlenecks.
        small_images: whether to use the stem for small images; None decides by the size of the
            images, see `blocks.is_small`.
        dtype: compute dtype.
        norm_axis_name: pmapped axis over which batch statistics are synchronised; None for none.
    """

    blocks_per_stage: tuple[int, int, int, int]
    bottleneck: bool = False
    small_images: bool | None = None
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    norm_axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        conv_norm = functools.partial(
            ConvNorm, train=train, dtype=self.dtype, norm_axis_name=self.norm_axis_name
        )
        small = is_small(images, self.small_images)
        kernel_size, stride = ((3, 3), 1) if small else ((7, 7), 2)
        x = relu(conv_norm(STAGE_FEATURES[0], kernel_size, stride, name="stem")(images))
        if not small:
            x = max_pool(x, 3, 2)
        stages = {}
        per_stage = zip(STAGE_FEATURES, self.blocks_per_stage, strict=True)
        for stage, (features, blocks) in enumerate(per_stage, start=1):
            for block in range(1, blocks + 1):
                x = Block(
                    features,
                    stride=2 if stage > 1 and block == 1 else 1,
                    bottleneck=self.bottleneck,
                    conv_norm=conv_norm,
                    name=f"stage{stage}_block{block}",
                )(x)
            stages[f"stage{stage}"] = x
        return stages
