"""Convolution, BatchNorm and ReLU: the layers of the backbones.

These layers have the same parameters and results as Flax's layers. On a CPU, in float32 and wider,
`flexpool_jax.cpu` computes them, unless `cpu_kernels` switches this off; otherwise Flax does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flexpool_jax import cpu

Array = jax.Array

# He et al. 2015 ("Delving Deep into Rectifiers", arXiv 1502.01852), eq. 14: variance 2 / fan_out.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Weight of the old running statistics in each update; PyTorch's ``momentum`` is 1 - this number.
_MOMENTUM = 0.9
# Number that BatchNorm adds to the variance.
_EPSILON = 1e-5

# JAX traces a function again where this value differs, even if it is jitted.
_cpu_kernels = jax.make_user_context(True)


@contextlib.contextmanager
def cpu_kernels(enabled: bool) -> Iterator[None]:
    """Chooses the layers for code traced inside the block: on a CPU, this project's or Flax's.

    This project's CPU kernels are custom calls with their own gradients. Use Flax's layers
    (``enabled=False``) for:

    - forward-mode derivatives,
    - `jax.export`, and loading a compiled program in another process,
    - gradients inside `jax.shard_map` with ``check_vma``,
    - a `jax.jit` that splits one convolution over devices, because its operands are sharded.

    Under `jax.vmap`, the kernels run one after the other for each mapped element. `jax.pmap` works
    with both kinds of layers.

    Example:
        >>> with cpu_kernels(False):
        ...     y = Conv(features=4).init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    """
    with _cpu_kernels(enabled):
        yield


def _use_kernels(x: Array, dtype: Any = None) -> bool:
    """Whether to use the CPU kernels: on a CPU, for float32 or wider and known non-empty shapes."""
    dtype = jnp.dtype(dtype or x.dtype)
    wide = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize >= 4
    # A symbolic size of `jax.export` is not an int.
    known = all(isinstance(size, int) and size > 0 for size in x.shape)
    return wide and known and _cpu_kernels.value and jax.default_backend() == "cpu"


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

    For a kernel side of k, ``k // 2`` pixels of zeros are added on each side of the map, at every
    stride, as in PyTorch. (At stride 2, Flax's "SAME" may add more zeros at the end than at the
    start.) The kernel is initialised from a normal distribution with mean 0 and variance
    2 / (kh·kw·features).

    Attributes:
        features: number of output channels.
        kernel_size: height kh and width kw of the kernel.
        strides: stride along both height and width.
        use_bias: whether a bias is added; off by default, because BatchNorm follows.
        dtype: compute dtype. The parameters ``kernel`` [kh, kw, C, features] and ``bias``
            [features] are float32.

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

    The parameters ``scale`` and ``bias``, and the running statistics ``mean`` and ``var`` (the
    biased variance) in ``batch_stats``, are those of `flax.linen.BatchNorm`, all float32 [C]. The
    momentum is 0.9 (0.1 in PyTorch's terms), and epsilon is 1e-5.

    Attributes:
        use_running_average: True normalises by the running statistics. False, for training,
            normalises by the statistics of the batch and updates the running statistics; the
            collection ``batch_stats`` must then be mutable.
        dtype: dtype of the result; statistics are always float32.
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
        # Flax creates running statistics that are missing.
        has_statistics = self.has_variable("batch_stats", "mean")
        if training and has_statistics and _use_kernels(x, self.dtype):
            # The kernel computes in the dtype of its input, and Flax's layer in that of the result.
            return self._call_kernel(jnp.asarray(x, self.dtype))
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
        """Computes ``__call__`` in training with the CPU kernel, using Flax's variables."""
        scale: Array = self.get_variable("params", "scale")
        bias: Array = self.get_variable("params", "bias")
        with _advice_on_forward_mode():
            y, mean, variance = cpu.batch_norm(x, scale, bias, _EPSILON, self.axis_name)
        for name, batch in (("mean", mean), ("var", variance)):
            running: Array = self.get_variable("batch_stats", name)
            mixed = _MOMENTUM * running + (1 - _MOMENTUM) * batch
            self.put_variable("batch_stats", name, mixed.astype(running.dtype))
        return y


def relu(x: Array) -> Array:
    """``max(x, 0)`` of each element, for any shape and floating dtype.

    Example:
        >>> print(relu(jnp.array([-1.0, 2.0])))
        [0. 2.]
    """
    if not _use_kernels(x):
        return nn.relu(x)
    with _advice_on_forward_mode():
        return cpu.relu(x)
