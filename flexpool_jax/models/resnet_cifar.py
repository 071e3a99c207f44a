"""The CIFAR ResNets of He et al. 2015 ("Deep Residual Learning", arXiv 1512.03385, section 4.2).

6n + 2 layers: a 3×3 stem of 16 channels and three stages of n two-convolution blocks with 16, 32
and 64 channels. conv–BN–ReLU, no convolution bias, parameter-free option-A shortcuts.
``norm_after_relu=True`` gives the order of the FlexPool authors' release instead.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from flexpool_jax.models.layers import BatchNorm, Conv

Array = jax.Array

STAGE_FEATURES = (16, 32, 64)


def option_a_shortcut(x: Array, features: int, stride: int) -> Array:
    """Option A of He et al.: every ``stride``-th pixel, zeros for the new channels."""
    if stride == 1 and x.shape[-1] == features:
        return x
    x = x[:, ::stride, ::stride]
    missing = features - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


class ResNetCifar(nn.Module):
    """Images ``[B, H, W, C]`` to maps of 16, 32 and 64 channels at 1, 1/2 and 1/4 of their size.

    Attributes:
        blocks_per_stage: n; the depth is 6n + 2.
        norm_after_relu: conv–ReLU–BN with biased convolutions, and BN after the block's last ReLU,
            as in the authors' release.
        dtype: compute dtype.
        norm_axis_name: axis over which batch statistics are synchronised, if any.
    """

    blocks_per_stage: int
    norm_after_relu: bool = False
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    norm_axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        x = self._conv_norm_relu(images, STAGE_FEATURES[0], 1, "stem", train)
        stages = {}
        for stage, features in enumerate(STAGE_FEATURES, start=1):
            for block in range(1, self.blocks_per_stage + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                x = self._block(x, features, stride, f"stage{stage}_block{block}", train)
            stages[f"stage{stage}"] = x
        return stages

    def _block(self, x: Array, features: int, stride: int, name: str, train: bool) -> Array:
        shortcut = option_a_shortcut(x, features, stride)
        x = self._conv_norm_relu(x, features, stride, f"{name}_1", train)
        return self._conv_norm_relu(x, features, 1, f"{name}_2", train, shortcut)

    def _conv_norm_relu(
        self,
        x: Array,
        features: int,
        stride: int,
        name: str,
        train: bool,
        shortcut: Array | None = None,
    ) -> Array:
        """One convolution with its norm and ReLU; the block's shortcut is added before the ReLU."""
        x = Conv(
            features,
            strides=stride,
            use_bias=self.norm_after_relu,
            dtype=self.dtype,
            name=f"{name}_conv",
        )(x)
        norm = BatchNorm(
            dtype=self.dtype,
            axis_name=self.norm_axis_name,
            activation=None if self.norm_after_relu else "relu",
            name=f"{name}_norm",
        )
        if not self.norm_after_relu:
            return norm(x, residual=shortcut, train=train)
        return norm(nn.relu(x if shortcut is None else x + shortcut), train=train)


def _resnet(depth: int, **fields: object) -> ResNetCifar:
    return ResNetCifar(blocks_per_stage=(depth - 2) // 6, **fields)  # type: ignore[arg-type]


def resnet20(**fields: object) -> ResNetCifar:
    """ResNet20, the paper's backbone: 269,722 parameters for CIFAR-10 with average pooling."""
    return _resnet(20, **fields)


def resnet32(**fields: object) -> ResNetCifar:
    """ResNet32 of He et al. 2015."""
    return _resnet(32, **fields)


def resnet44(**fields: object) -> ResNetCifar:
    """ResNet44 of He et al. 2015."""
    return _resnet(44, **fields)


def resnet56(**fields: object) -> ResNetCifar:
    """ResNet56 of He et al. 2015."""
    return _resnet(56, **fields)


def resnet110(**fields: object) -> ResNetCifar:
    """ResNet110 of He et al. 2015."""
    return _resnet(110, **fields)
