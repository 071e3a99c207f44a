"""VGG11/13/16/19 with BatchNorm (Simonyan & Zisserman 2015, arXiv 1409.1556, table 1: A, B, D, E).

Five stages of 3×3 convolutions, with a 2×2 max pool between stages. The fifth max pool of Simonyan
& Zisserman, which the FlexPool authors' release keeps, is left out: from a 32×32 image it would
leave a single position, where all global pools are equal. The head has the layers of the release,
512→4096→4096→classes (`registry.MODELS`), instead of Simonyan & Zisserman's
25088→4096→4096→classes. The release has a dropout of 0.5 after each hidden layer, and none on the
pooled vector; here ``dropout_rate`` is the rate of both, and its default is 0.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flexpool_jax.models.blocks import ConvNorm, max_pool
from flexpool_jax.models.layers import relu

Array = jax.Array

STAGE_FEATURES = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Images ``[B, H, W, C]`` to the maps ``stage1`` … ``stage5``, each before its max pool.

    ``stage1`` is ``[B, H, W, 64]``. Each later map is half as high and wide as the map before,
    rounded up.

    Attributes:
        convs_per_stage: number of convolutions of each of the five stages; `registry.MODELS` has
            the numbers from table 1 of Simonyan & Zisserman.
        dtype: compute dtype.
        norm_axis_name: pmapped axis over which batch statistics are synchronised; None for none.
    """

    convs_per_stage: tuple[int, int, int, int, int]
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    norm_axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        conv_norm = functools.partial(
            ConvNorm, train=train, dtype=self.dtype, norm_axis_name=self.norm_axis_name
        )
        x = images
        stages = {}
        per_stage = zip(STAGE_FEATURES, self.convs_per_stage, strict=True)
        for stage, (features, convs) in enumerate(per_stage, start=1):
            if stage > 1:
                x = max_pool(x, 2, 2)
            for conv in range(1, convs + 1):
                x = conv_norm(features, name=f"stage{stage}_conv{conv}")(x)
                x = relu(x)
            stages[f"stage{stage}"] = x
        return stages
