"""FlexPool for Flax NNX, with the same parameter and the same results as the linen module."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from flexpool_jax.pooling import Constraint, check_constraint, flex_pool, softmax_weights


class FlexPool(nnx.Module):
    """Global pooling by a learned weighted average: ``[B, H, W, C] -> [B, C]``.

    The parameter ``w_fp`` is float32 ``[H, W, C]`` and starts at 1/(H·W), so that the layer begins
    as global average pooling. `flexpool_jax.flexpool_regularizer` and
    `flexpool_jax.resize_flexpool` take the model's ``nnx.state``. See
    `flexpool_jax.pooling.FlexPool` for the source and related layers.

    Args:
        shape: (H, W, C) of the feature maps.
        constraint: ``None`` uses w_fp as it is, ``"softmax"`` its softmax over positions.
        rngs: not used, since the initial weights are not random. All NNX layers take this argument.

    Raises:
        ValueError: the constraint is unknown, the shape is not three positive sizes, or the feature
            maps have another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> pool = FlexPool((8, 8, 64))
        >>> pool(jnp.ones((2, 8, 8, 64))).shape, pool.w_fp.shape
        ((2, 64), (8, 8, 64))
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        constraint: Constraint | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        check_constraint(constraint)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(
                f"FlexPool's shape is {tuple(shape)}; allowed: (H, W, C), all positive"
            )
        self.constraint = constraint
        self.w_fp = nnx.Param(jnp.full(tuple(shape), 1 / (shape[0] * shape[1]), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pools a floating feature map ``[B, H, W, C]`` to ``[B, C]`` of the same dtype."""
        w = self.w_fp[...]
        return flex_pool(x, softmax_weights(w) if self.constraint == "softmax" else w)
