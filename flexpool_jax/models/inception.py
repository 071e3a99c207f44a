"""GoogLeNet with BatchNorm (Szegedy et al. 2015, "Going Deeper with Convolutions").

The nine Inception modules of its table 1 (arXiv 1409.4842), with BatchNorm and with two 3×3
convolutions in place of each 5×5 convolution, both as in Ioffe & Szegedy 2015 (arXiv 1502.03167).
Large images pass GoogLeNet's own stem, which divides each side by eight. Small images pass one 3×3
convolution of 192 channels instead, as is usual for CIFAR. GoogLeNet's two auxiliary classifiers (a
convolution and two dense layers each) are left out, because this project studies the simple
auxiliary classifiers of `flexpool_jax.models.classifier`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flexpool_jax.models.blocks import ConvNorm, ModuleDef, is_small, max_pool
from flexpool_jax.models.layers import relu

Array = jax.Array

# Table 1 of Szegedy et al. 2015, by stage. The six numbers of channels of a module are: the 1×1
# branch; reduction and result of the 3×3 branch; reduction and result of the 5×5 branch; the
# projection after the max pool.
MODULES = {
    "stage1": {"3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64)},
    "stage2": {
        "4a": (192, 96, 208, 16, 48, 64),
        "4b": (160, 112, 224, 24, 64, 64),
        "4c": (128, 128, 256, 24, 64, 64),
        "4d": (112, 144, 288, 32, 64, 64),
        "4e": (256, 160, 320, 32, 128, 128),
    },
    "stage3": {"5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128)},
}


class InceptionModule(nn.Module):
    """Four parallel branches, concatenated along the channels (Szegedy et al. 2015, Fig. 2b).

    Attributes:
        features: six numbers of channels, as in `MODULES`.
        conv_norm: creates a convolution with BatchNorm.
    """

    features: tuple[int, int, int, int, int, int]
    conv_norm: ModuleDef = ConvNorm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def conv(x: Array, features: int, side: int, name: str) -> Array:
            return relu(self.conv_norm(features, (side, side), name=name)(x))

        one, reduce_three, three, reduce_five, five, project = self.features
        branch1 = conv(x, one, 1, "branch1")
        branch3 = conv(x, reduce_three, 1, "branch3_reduce")
        branch3 = conv(branch3, three, 3, "branch3")
        branch5 = conv(x, reduce_five, 1, "branch5_reduce")
        branch5 = conv(branch5, five, 3, "branch5_first")
        branch5 = conv(branch5, five, 3, "branch5_second")
        branch_pool = conv(max_pool(x, 3, 1), project, 1, "branch_pool")
        return jnp.concatenate([branch1, branch3, branch5, branch_pool], axis=-1)


class Inception(nn.Module):
    """Images ``[B, H, W, C]`` to the maps ``stage1`` (3b), ``stage2`` (4e) and ``stage3`` (5b).

    The maps have 480, 832 and 1024 channels. ``stage1`` has the resolution of the images if they
    are small, otherwise an eighth of it. Each later map is half as high and wide as the map before,
    rounded up.

    Attributes:
        small_images: whether to use the stem for small images; None decides by the size of the
            images, see `blocks.is_small`.
        dtype: compute dtype.
        norm_axis_name: pmapped axis over which batch statistics are synchronised; None for none.
    """

    small_images: bool | None = None
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    norm_axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        conv_norm = functools.partial(
            ConvNorm, train=train, dtype=self.dtype, norm_axis_name=self.norm_axis_name
        )
        if is_small(images, self.small_images):
            x = relu(conv_norm(192, (3, 3), name="stem")(images))
        else:
            x = relu(conv_norm(64, (7, 7), 2, name="stem1")(images))
            x = max_pool(x, 3, 2)
            x = relu(conv_norm(64, (1, 1), name="stem2")(x))
            x = relu(conv_norm(192, (3, 3), name="stem3")(x))
            x = max_pool(x, 3, 2)
        stages: dict[str, Array] = {}
        for stage, modules in MODULES.items():
            if stages:
                x = max_pool(x, 3, 2)
            for name, features in modules.items():
                x = InceptionModule(features, conv_norm, name=f"{stage}_{name}")(x)
            stages[stage] = x
        return stages
