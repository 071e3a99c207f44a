"""Convolution, BatchNorm and ReLU: the layers that every backbone consists of.

They have the parameters and the results of Flax's layers. In float32 on a CPU they are computed by
`flexpool_jax.cpu`, unless `cpu_kernels` switches that off; elsewhere they are Flax's.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flexpool_jax import cpu

Array = jax.Array

# He et al. 2015 ("Delving Deep into Rectifiers", arXiv 1502.01852), eq. 14: variance 2 / fan_out.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# What BatchNorm keeps of the running statistics at each step; PyTorch's ``momentum`` is 1 - this.
_MOMENTUM = 0.9
# What it adds to the variance.
_EPSILON = 1e-5

_cpu_kernels = contextvars.ContextVar("cpu_kernels", default=True)


@contextlib.contextmanager
def cpu_kernels(enabled: bool) -> Iterator[None]:
    """Chooses, for what is traced inside, whether a CPU uses this project's kernels or Flax's.

    The kernels are custom calls with gradients of their own. Flax's layers are needed for
    forward-mode derivatives, for `jax.export` and for loading a compiled program in another
    process, for gradients inside `jax.shard_map` with ``check_vma``, and for a `jax.jit` that
    shares one convolution out over devices by the sharding of its operands (`jax.pmap` shares
    batches out). Under `jax.vmap` the kernels run one after the other.

    Example:
        >>> with cpu_kernels(False):
        ...     y = Conv(features=4).init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    """
    token = _cpu_kernels.set(enabled)
    try:
        yield
    finally:
        _cpu_kernels.reset(token)


def _use_kernels(x: Array, dtype: Any = None) -> bool:
    """Whether the CPU kernels apply: to float32 and wider, of known shapes that are not empty."""
    dtype = jnp.dtype(dtype or x.dtype)
    wide = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize >= 4
    # A symbolic size of `jax.export` is not an int.
    known = all(isinstance(size, int) and size > 0 for size in x.shape)
    return wide and known and _cpu_kernels.get() and jax.default_backend() == "cpu"


@contextlib.contextmanager
def _advice_on_forward_mode() -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            f"{error} On a CPU, compute forward-mode derivatives of this model inside "
            "`with flexpool_jax.models.layers.cpu_kernels(False):`."
        ) from error


class Conv(nn.Module):
    """A two-dimensional convolution: ``[B, H, W, C] -> [B, H', W', features]``.

    ``k // 2`` pixels of zeros are added on each side, at every stride; Flax's "SAME" adds them at
    the end first. The kernel begins as normal numbers of variance 2 / (kh·kw·features).

    Attributes:
        features: number of output channels.
        kernel_size: height and width of the kernel.
        strides: of both dimensions.
        use_bias: off by default, since a norm follows.
        dtype: compute dtype; the parameters ``kernel`` [kh, kw, C, features] and ``bias`` are
            float32.

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
    use_bias: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = nn.Conv(
            self.features,
            tuple(self.kernel_size),
            strides=self.strides,
            padding=[(size // 2, size // 2) for size in self.kernel_size],
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=_KERNEL_INIT,
            conv_general_dilated=cpu.conv_general_dilated if _use_kernels(x, self.dtype) else None,
        )
        nn.share_scope(self, conv)
        with _advice_on_forward_mode():
            return conv(x)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167) of any shape ``[..., C]``.

    Parameters ``scale`` and ``bias``, and ``batch_stats`` ``mean`` and ``var`` (the biased
    variance), all float32 [C], are those of `flax.linen.BatchNorm`. The momentum is 0.9 (0.1 in
    PyTorch's terms) and epsilon 1e-5.

    Attributes:
        use_running_average: False in training, which normalises by the batch's own statistics and
            updates the running ones; the collection ``batch_stats`` must then be mutable.
        dtype: of the result; statistics are float32 throughout.
        axis_name: pmapped axis over which batch statistics are synchronised; None for none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.array([[1.0], [3.0]])
        >>> norm = BatchNorm(use_running_average=False)
        >>> y, variables = norm.init_with_output(jax.random.key(0), x)
        >>> print(y.round(2).T, variables["batch_stats"]["mean"])
        [[-1.  1.]] [0.]
    """

    use_running_average: bool
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        training = not self.use_running_average and not self.is_initializing()
        if training and _use_kernels(x, self.dtype):
            return self._call_kernel(x)
        norm = nn.BatchNorm(
            use_running_average=self.use_running_average,
            axis_name=self.axis_name,
            momentum=_MOMENTUM,
            epsilon=_EPSILON,
            dtype=self.dtype,
        )
        nn.share_scope(self, norm)
        return norm(x)

    def _call_kernel(self, x: Array) -> Array:
        """The same in training, with the parameters and statistics that Flax's layer created."""
        scale: Array = self.get_variable("params", "scale")
        bias: Array = self.get_variable("params", "bias")
        with _advice_on_forward_mode():
            y, mean, variance = cpu.batch_norm(x, scale, bias, _EPSILON, self.axis_name)
        for name, batch in (("mean", mean), ("var", variance)):
            running: Array = self.get_variable("batch_stats", name)
            mixed = _MOMENTUM * running + (1 - _MOMENTUM) * batch
            self.put_variable("batch_stats", name, mixed)
        return y


def relu(x: Array) -> Array:
    """``max(x, 0)``, of any shape and floating dtype.

    Example:
        >>> print(relu(jnp.array([-1.0, 2.0])))
        [0. 2.]
    """
    if not _use_kernels(x):
        return nn.relu(x)
    with _advice_on_forward_mode():
        return cpu.relu(x)
