"""The convolution and the batch normalisation that every backbone is built from.

They are one module so that a backbone says what it computes and this one decides how: both have
flax's parameters and flax's results. On accelerators they are flax's own layers; on a CPU they are
computed by `flexpool_jax.models.fast_cpu`, unless `cpu_kernels` switches that off.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flexpool_jax.models import fast_cpu

Array = jax.Array
Padding = str | int | Sequence[tuple[int, int]]

# He et al. 2015 ("Delving Deep into Rectifiers", arXiv 1502.01852), eq. 14: variance 2 / fan_out.
kaiming_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def symmetric_padding(kernel_size: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """``k // 2`` pixels on both sides, at every stride; flax's "SAME" pads at the end first."""
    return tuple((size // 2, size // 2) for size in kernel_size)


_cpu_kernels = contextvars.ContextVar("cpu_kernels", default=True)


@contextlib.contextmanager
def cpu_kernels(enabled: bool) -> Iterator[None]:
    """Chooses, for what is traced inside, between `fast_cpu` and flax's own layers on a CPU.

    Flax's own are for what `fast_cpu` cannot, since its convolutions are custom calls: forward-mode
    derivatives, `jax.export` and loading a compiled program in another process, gradients inside
    `jax.shard_map` with ``check_vma``, and sharing one convolution out over the devices of a
    `jax.jit` by the sharding of its operands (`jax.pmap` shares batches out). Under `jax.vmap` they
    are computed one after the other.

    Example:
        >>> with cpu_kernels(False):
        ...     y = Conv(features=4).init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    """
    token = _cpu_kernels.set(enabled)
    try:
        yield
    finally:
        _cpu_kernels.reset(token)


def _fast(dtype: Any) -> bool:
    """Whether `fast_cpu` applies: it is written for float32 and better on the CPU backend."""
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize >= 4
    return wide and _cpu_kernels.get() and jax.default_backend() == "cpu"


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
            conv_general_dilated=fast_cpu.conv_general_dilated
            if _fast(self.dtype or x.dtype)
            else None,
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
        if train and not self.is_initializing() and _fast(self.dtype or x.dtype):
            return self._fast_cpu(x, residual)
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

    def _fast_cpu(self, x: Array, residual: Array | None) -> Array:
        """The same in training, on the parameters and statistics that flax's layer has made."""
        y, mean, variance = fast_cpu.batch_norm(
            x,
            residual,
            self.get_variable("params", "scale"),
            self.get_variable("params", "bias"),
            self.epsilon,
            self.activation == "relu",
            self.axis_name,
        )
        for name, batch in (("mean", mean), ("var", variance)):
            if self.is_mutable_collection("batch_stats"):
                running: Array = self.get_variable("batch_stats", name)
                mixed = self.momentum * running + (1 - self.momentum) * batch
                self.put_variable("batch_stats", name, mixed)
        return y
