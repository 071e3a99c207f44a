"""The convolution and the batch normalisation that every backbone is built from.

They are one module so that a backbone says what it computes and this one decides how: both have
flax's parameters and flax's results, and the switch `fast` chooses flax's own layers or faster ways
to the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

Array = jax.Array
Padding = str | int | Sequence[tuple[int, int]]

# He et al. 2015 ("Delving Deep into Rectifiers", arXiv 1502.01852), eq. 14: variance 2 / fan_out.
kaiming_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def symmetric_padding(kernel_size: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """``k // 2`` pixels on both sides, at every stride; flax's "SAME" pads at the end first."""
    return tuple((size // 2, size // 2) for size in kernel_size)


class Conv(nn.Module):
    """A two-dimensional convolution: ``[B, H, W, C] -> [B, H', W', features]``.

    Attributes:
        features: number of output channels.
        kernel_size: height and width of the kernel.
        strides: of both dimensions.
        padding: "symmetric" pads ``k // 2`` pixels on each side; otherwise as `flax.linen.Conv`.
        use_bias: off by default, since a norm follows.
        dtype: compute dtype; the parameters ``kernel`` [kh, kw, C, features] and ``bias`` are
            float32.
        kernel_init: normal with variance 2 / (kh·kw·features) by default.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> conv = Conv(features=16, strides=2)
        >>> y, variables = conv.init_with_output(jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> y.shape, variables["params"]["kernel"].shape
        ((1, 16, 16, 16), (3, 3, 3, 16))
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    strides: int = 1
    padding: Padding = "symmetric"
    use_bias: bool = False
    dtype: Any = None
    kernel_init: nn.initializers.Initializer = kaiming_normal_fan_out

    @nn.compact
    def __call__(self, x: Array) -> Array:
        padding = self.padding
        if padding == "symmetric":
            padding = symmetric_padding(self.kernel_size)
        conv = nn.Conv(
            self.features,
            tuple(self.kernel_size),
            strides=self.strides,
            padding=padding,
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
        )
        nn.share_scope(self, conv)
        return conv(x)


class BatchNorm(nn.Module):
    """``activation(BN(x) + residual)``, of any shape ``[..., C]``.

    Parameters ``scale`` and ``bias``, and ``batch_stats`` ``mean`` and ``var`` (the biased
    variance), all float32 [C], are those of `flax.linen.BatchNorm` (Ioffe and Szegedy 2015, arXiv
    1502.03167); addition and activation belong to it so that they can share its passes over memory.

    Attributes:
        dtype: of the result; statistics are float32 throughout.
        axis_name: pmapped axis over which batch statistics are synchronised; None for none.
        momentum: kept of the running statistics at each step; PyTorch's ``momentum`` is 1 − this.
        epsilon: added to the variance.
        activation: None or "relu".

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.array([[1.0], [3.0]])
        >>> norm = BatchNorm(activation="relu")
        >>> y, variables = norm.init_with_output(jax.random.key(0), x, train=True)
        >>> print(y.round(2).T, variables["batch_stats"]["mean"])
        [[0. 1.]] [0.]
    """

    dtype: Any = None
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    activation: str | None = None

    @nn.compact
    def __call__(self, x: Array, residual: Array | None = None, *, train: bool) -> Array:
        if self.activation not in (None, "relu"):
            raise ValueError(f"activation must be None or 'relu'; got {self.activation!r}")
        norm = nn.BatchNorm(
            use_running_average=not train,
            axis_name=self.axis_name,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        nn.share_scope(self, norm)
        y = norm(x)
        if residual is not None:
            y = y + residual
        return nn.relu(y) if self.activation == "relu" else y
