"""Two ways to overrule XLA's fusion and scheduling on a CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def runtime_zero(x: Array) -> Array:
    """A runtime zero (int32) that depends on x.

    XLA can neither constant-fold it nor schedule its users before x.
    """
    return (x.reshape(-1)[0] * 0).astype(jnp.int32)


def materialise(x: Array, after: Array) -> Array:
    """Forces XLA to materialise x instead of fusing it into its consumers.

    XLA fuses elementwise operations into each of their consumers. A kernel gradient of XLA's would
    then recompute the chain of norms, additions and ReLUs of all blocks since the last stride, and
    sums over a fused ReLU gradient take ten times as long as over an array in memory.
    `jax.lax.optimization_barrier` does not help: the CPU pipeline removes it before fusion. So the
    first element of x is overwritten with itself, at a position that XLA only knows at run time: a
    zero that depends on ``after``, an array from which x is computed. If the zero depended on x
    itself, some versions of XLA would copy x.
    """
    first = jax.lax.slice(x, (0,) * x.ndim, (1,) * x.ndim)
    return jax.lax.dynamic_update_slice(x, first, (runtime_zero(after),) * x.ndim)
