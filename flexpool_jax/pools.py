"""All global pools by name: FlexPool, the pools it is compared with, and registered ones.

Every pool maps a feature map ``[B, H, W, C]`` to one vector per example: ``[B, C]``, except for
`flatten`. `POOLS` holds them by name, and `register_pool` adds to it. FlexPool and its controls,
whose weights are a parameter ``w_fp``, are in `flexpool_jax.pooling`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from flexpool_jax.errors import UserError, unknown_name
from flexpool_jax.pooling import (
    ChannelScale,
    FlexPool,
    FlexPoolShared,
    GDConv,
    check_feature_map,
    check_weights,
    named_w_fp,
    widen,
)
from flexpool_jax.registration import is_same_definition, why_not_callable

Array = jax.Array


def avg_pool(x: Array) -> Array:
    """Global average pooling (Lin, Chen, Yan 2014, "Network in Network", arXiv 1312.4400).

    Args:
        x: ``[B, H, W, C]``, floating.

    Returns:
        The mean over positions, ``[B, C]`` of x's dtype, summed in float32 or better.

    Example:
        >>> import jax.numpy as jnp
        >>> float(avg_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))[0, 0])
        1.5
    """
    check_feature_map(x)
    return jnp.mean(x, axis=(1, 2))


def max_pool(x: Array) -> Array:
    """Global max pooling: ``[B, H, W, C]`` to the maximum over positions ``[B, C]``.

    Example:
        >>> import jax.numpy as jnp
        >>> float(max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))[0, 0])
        3.0
    """
    check_feature_map(x)
    return jnp.max(x, axis=(1, 2))


def flatten(x: Array) -> Array:
    """No pooling: all positions and channels side by side, ``[B, H, W, C]`` to ``[B, H·W·C]``.

    The classifier after this pool has a weight for every position, channel and class. For a single
    channel, these weights form a matrix of positions and classes, which has rank one with FlexPool.
    VGG (Simonyan & Zisserman 2015, arXiv 1409.1556) flattens too: its first dense layer takes the
    whole map.

    Example:
        >>> import jax.numpy as jnp
        >>> flatten(jnp.ones((2, 8, 8, 64))).shape
        (2, 4096)
    """
    check_feature_map(x)
    return jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def avgmax_pool(x: Array) -> Array:
    """Half of the average plus half of the maximum (timm's adaptive pool ``avgmax``).

    After Lee, Gallagher & Tu 2016, "Generalizing Pooling Functions in Convolutional Neural
    Networks" (arXiv 1509.08985), section 3.1, with equal and fixed shares.

    Example:
        >>> import jax.numpy as jnp
        >>> float(avgmax_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))[0, 0])
        2.25
    """
    check_feature_map(x)
    wide = widen(x)
    return ((jnp.mean(wide, axis=(1, 2)) + jnp.max(wide, axis=(1, 2))) / 2).astype(x.dtype)


def lse_pool(x: Array, r: float = 5.0) -> Array:
    """Log-sum-exp pooling, ``log(mean(exp(r · x))) / r`` (Pinheiro & Collobert 2015).

    "From Image-level to Pixel-level Labeling with Convolutional Networks", arXiv 1411.6228: the
    average for r → 0, the maximum for r → ∞, and at most log(H·W)/r below the maximum. With the
    default r, log(H·W)/r is 0.83 for maps of 8×8: near enough to the maximum to differ from the
    average, and still smooth.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
        >>> [round(float(lse_pool(x, r)[0, 0]), 2) for r in (1e-3, 5.0, 1e3)]
        [1.5, 2.72, 3.0]
    """
    check_feature_map(x)
    return (jax.nn.logmeanexp(r * widen(x), axis=(1, 2)) / r).astype(x.dtype)


def soft_pool(x: Array) -> Array:
    """SoftPool over the whole map: the mean weighted by the softmax of the values themselves.

    Stergiou, Poppe & Kalliatakis 2021, "Refining activation downsampling with SoftPool",
    arXiv 2101.00440, Eqs. 1 and 2, for each channel separately.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(soft_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))[0, 0]), 2)
        2.49
    """
    check_feature_map(x)
    wide = widen(x)
    return jnp.sum(jax.nn.softmax(wide, axis=(1, 2)) * wide, axis=(1, 2)).astype(x.dtype)


def gem_pool(x: Array, p: Array | float, epsilon: float = 1e-6) -> Array:
    """Generalised mean, ``mean(max(x, ε)^p)^(1/p)`` (Radenović, Tolias & Chum 2018).

    "Fine-tuning CNN Image Retrieval with No Human Annotation", arXiv 1711.02512, Eq. 3: the
    average for p = 1, the maximum for p → ∞. The mean is computed from logarithms, since ε^p leaves
    float32's range from p = 7 on.

    Args:
        x: ``[B, H, W, C]``, floating; values below epsilon count as epsilon.
        p: the exponent, a scalar other than 0.
        epsilon: smallest value, above 0.

    Returns:
        ``[B, C]`` of x's dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(gem_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), 3.0)[0, 0]), 4)
        2.0801
    """
    check_feature_map(x)
    log_x = jnp.log(jnp.maximum(widen(x), epsilon))
    return jnp.exp(jax.nn.logmeanexp(p * log_x, axis=(1, 2)) / p).astype(x.dtype)


class GlobalPool(nn.Module):
    """A pool without parameters as a Flax module: ``[B, H, W, C]`` to ``[B, C]``.

    Attributes:
        function: the pool, such as `avg_pool` or `max_pool`.
    """

    function: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.function(x)


class GeMPool(nn.Module):
    """`gem_pool` with one learned exponent, float32 ``p`` of shape ``[]``.

    Attributes:
        p_init: initial value of p; 3 as in the paper of `gem_pool`.
    """

    p_init: float = 3.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        p = self.param("p", nn.initializers.constant(self.p_init), (), jnp.float32)
        return gem_pool(x, p)


class AttentionPool(nn.Module):
    """CLIP's attention pool: one attention layer whose single query is the mean token.

    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
    (arXiv 2103.00020), section 2.4. The tokens are every position and their mean, each with a
    learned embedding; all of them are keys and values. The number of heads is the largest divisor
    of C that is at most C/64. The result is computed in float32 and returned in x's dtype.

    Raises:
        ValueError: the input is not a floating ``[B, H, W, C]`` with some positions, or its H, W, C
            differ from those for which the embeddings were created.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.ones((2, 8, 8, 128))
        >>> variables = jax.eval_shape(AttentionPool().init, jax.random.key(0), x)
        >>> variables["params"]["attention"]["query"]["kernel"].shape
        (128, 2, 64)
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        check_feature_map(x)
        batch, height, width, channels = x.shape
        if self.has_variable("params", "positions"):
            stored = jnp.shape(self.get_variable("params", "positions"))
            check_weights(x.shape[1:], stored, owner="AttentionPool's embeddings", remedy="")
        init = nn.initializers.normal(channels**-0.5)
        positions = self.param("positions", init, (height, width, channels), jnp.float32)
        mean_position = self.param("mean_position", init, (channels,), jnp.float32)
        wide = widen(x)
        mean = jnp.mean(wide, axis=(1, 2)) + mean_position
        tokens = jnp.reshape(wide + positions, (batch, height * width, channels))
        tokens = jnp.concatenate([mean[:, None], tokens], axis=1)
        heads = next(n for n in range(max(1, channels // 64), 0, -1) if channels % n == 0)
        attention = nn.MultiHeadDotProductAttention(heads, kernel_init=init, name="attention")
        return attention(tokens[:, :1], tokens)[:, 0].astype(x.dtype)


#: Every global pool by name, including registered ones; each value builds the pool's Flax module.
POOLS: dict[str, Callable[..., nn.Module]] = {
    "avg": functools.partial(GlobalPool, avg_pool),
    "max": functools.partial(GlobalPool, max_pool),
    "avgmax": functools.partial(GlobalPool, avgmax_pool),
    "gem": GeMPool,
    "lse": functools.partial(GlobalPool, lse_pool),
    "softpool": functools.partial(GlobalPool, soft_pool),
    "attention": AttentionPool,
    "flexpool": FlexPool,
    "flexpool_softmax": functools.partial(FlexPool, constraint="softmax"),
    # Controls: each is FlexPool with one part removed.
    "channel_scale": ChannelScale,
    "flexpool_shared": FlexPoolShared,
    "gdconv": GDConv,
    "flatten": functools.partial(GlobalPool, flatten),
}

# Words of a config's variant that are not names in `POOLS`. Each word maps to the field that it
# sets and to the field's value; None if the config file chooses the value.
VARIANT_WORDS: Mapping[str, tuple[str, str | None]] = {
    "softmax": ("pool", "flexpool_softmax"),
    "reg": ("pool_reg", None),
    "dropout": ("dropout_rate", None),
    "sac": ("sac.enabled", "True"),
}

Definition = TypeVar("Definition", bound=Callable[..., Any])


def register_pool(name: str) -> Callable[[Definition], Definition]:
    """Registers a pool under a name that `create_model`, configs, sweeps and reports may use.

    Args:
        name: letters, digits and underscores; it becomes part of folders' names.

    Returns:
        A decorator for a function ``[B, H, W, C] -> [B, C]``, or for a `flax.linen.Module` class
        that maps the same shapes. A module takes part in Eq. 2 if it has a parameter ``w_fp`` of
        shape ``[H, W, C]``, of length 1 along the axes that share a weight. If it has a method
        ``effective_weights(w_fp, shape)``, the function `effective_weights` calls this method. A
        module that wraps a pool with a constraint needs a field ``constraint`` with the same value.

    Raises:
        ValueError: the name holds other characters, has another meaning in a variant, or is taken
            by another pool; or the decorated object is neither a function of one argument nor a
            module class whose fields have defaults. The same definition may be registered again, as
            when a notebook's cell is run twice.

    Example:
        >>> import jax.numpy as jnp
        >>> @register_pool("centre")
        ... def centre_pool(x):
        ...     return x[:, x.shape[1] // 2, x.shape[2] // 2]
        >>> create_pool("centre").apply({}, jnp.ones((2, 8, 8, 64))).shape
        (2, 64)
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name, re.ASCII):
        raise ValueError(f"a pool cannot be named {name!r}; allowed: letters, digits and _")
    if name in VARIANT_WORDS:
        raise ValueError(
            f"a pool cannot be named {name!r}, which in a variant sets {VARIANT_WORDS[name][0]}; "
            f"reserved: {', '.join(VARIANT_WORDS)}"
        )

    def register(definition: Definition) -> Definition:
        entry: Callable[..., nn.Module] = functools.partial(GlobalPool, definition)
        reason = why_not_callable(definition, None)
        if isinstance(definition, type) and issubclass(definition, nn.Module):
            entry = definition
            reason = why_not_callable(entry) or why_not_callable(entry.__call__, None, None)
        elif isinstance(definition, type | nn.Module) or not callable(definition):
            raise ValueError(
                f"pool {name!r} is given as {definition!r}; allowed: a function "
                "[B, H, W, C] -> [B, C], or a class derived from flax.linen.Module"
            )
        if name in POOLS and not _is_same_pool(POOLS[name], entry):
            raise ValueError(f"a pool named {name!r} is registered already")
        if reason:
            raise ValueError(
                f"pool {name!r}: {reason}; allowed: a function of the feature map alone, or a "
                "module class whose fields have defaults and whose __call__ takes the map alone"
            )
        POOLS[name] = entry
        return definition

    return register


def _is_same_pool(one: Any, other: Any) -> bool:
    """Whether two entries of `POOLS` come from the same definition."""
    entries = (one, other)
    functions = [isinstance(e, functools.partial) and e.func is GlobalPool for e in entries]
    if all(functions):
        return is_same_definition(one.args[0], other.args[0])
    return not any(functions) and is_same_definition(one, other)


def create_pool(pool: str, **module_fields: Any) -> nn.Module:
    """Creates the global pool of a name, as a Flax module ``[B, H, W, C] -> [B, C]``.

    Args:
        pool: one of `POOLS`; only ``"flatten"`` returns ``[B, H·W·C]``.
        **module_fields: fields of the module, such as Flax's ``name``.

    Raises:
        UserError: unknown name.

    Example:
        >>> create_pool("flexpool_softmax").constraint
        'softmax'
    """
    if pool not in POOLS:
        raise unknown_name("pool", pool, POOLS)
    return POOLS[pool](**module_fields)


def constraint_of(pool: str) -> Literal["softmax"] | None:
    """The constraint on a pool's ``w_fp``; None if w_fp is used as it is stored.

    Raises:
        UserError: unknown pool.

    Example:
        >>> constraint_of("flexpool_softmax"), constraint_of("flexpool"), constraint_of("avg")
        ('softmax', None, None)
    """
    return getattr(create_pool(pool), "constraint", None)


def has_weights(pool: str) -> bool:
    """Whether a pool has a parameter ``w_fp`` anywhere in its tree of parameters.

    Raises:
        UserError: unknown pool.

    Example:
        >>> has_weights("flexpool_softmax"), has_weights("attention")
        (True, False)
    """
    # Traced only, so that nothing is computed on a device.
    variables = jax.eval_shape(
        lambda: create_pool(pool).init(jax.random.key(0), jnp.zeros((1, 8, 8, 64)))
    )
    return bool(named_w_fp(variables.get("params", {})))


def starts_as_average(pool: str) -> bool:
    """Whether a pool has a parameter ``w_fp`` that makes it average pooling before training.

    Raises:
        UserError: unknown pool.

    Example:
        >>> [starts_as_average(pool) for pool in ("flexpool", "flexpool_softmax", "gdconv")]
        [True, True, False]
    """
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 64))
    y, variables = create_pool(pool).init_with_output(jax.random.key(1), x)
    if not named_w_fp(variables.get("params", {})):
        return False
    average = x.mean(axis=(1, 2))
    return y.shape == average.shape and bool(jnp.allclose(y, average, atol=1e-5))


def regularizer_applies(pool: str) -> bool:
    """Whether Eq. 2 can constrain a pool: it has a ``w_fp``, and uses ``w_fp`` as it is stored.

    Raises:
        UserError: unknown pool.

    Example:
        >>> [regularizer_applies(pool) for pool in ("flexpool", "flexpool_softmax", "avg")]
        [True, False, False]
    """
    return has_weights(pool) and constraint_of(pool) is None


def effective_weights(
    pool: str, params: Mapping[str, Any], shape: tuple[int, int, int]
) -> Array | None:
    """The weights by which a pool with learned weights multiplies a feature map.

    The pool computes ``flex_pool(x, effective_weights(pool, params, x.shape[1:]))`` from x. The
    effective weights are w_fp itself, the softmax of w_fp, the one map repeated for all channels,
    or the factor of each channel divided by H·W.

    Args:
        pool: one of `POOLS`.
        params: parameters of that pool alone, such as ``{"w_fp": w}`` or, if it wraps a FlexPool,
            ``{"inner": {"w_fp": w}}``.
        shape: (H, W, C) of the feature map.

    Returns:
        ``[H, W, C]`` of w_fp's dtype; None for a pool that has no method ``effective_weights`` (see
        `register_pool`), such as a pool without learned weights.

    Raises:
        ValueError: the pool is unknown, the weights do not fit the shape, or the pool has such a
            method and not exactly one ``w_fp``.

    Example:
        >>> import jax.numpy as jnp
        >>> w = effective_weights("channel_scale", {"w_fp": jnp.ones((1, 1, 3))}, (2, 2, 3))
        >>> w.shape, float(w[0, 0, 0])
        ((2, 2, 3), 0.25)
        >>> effective_weights("avg", {}, (2, 2, 3)) is None
        True
    """
    module = create_pool(pool)
    # An inherited method does not count: a class derived from FlexPool may compute something else.
    if "effective_weights" not in vars(type(module)):
        return None
    found = [w for _, w in named_w_fp(params)]
    if len(found) != 1:
        raise UserError(
            f"pool {pool!r} has a method effective_weights(w_fp, shape), and {len(found)} "
            "parameters w_fp; allowed: one, or no such method"
        )
    return module.effective_weights(found[0], shape)


def pool_summary(params: Any, pool: str | None = None) -> dict[str, Array]:
    """Describes the weights of every FlexPool in a tree of parameters by a few numbers.

    For each parameter ``PATH/w_fp``, with weights w [H, W, C] and the sum s[k] of each channel k:

    - ``PATH/sum_mean`` and ``PATH/sum_sd``: mean and standard deviation of s. Eq. 2 pulls every
      s[k] to 1.
    - ``PATH/negative_share``: the share of weights below 0.
    - ``PATH/deviation_share``: ``Σ (w[i, j, k] − s[k] / (H · W))² / Σ w²``, the share of Σ w² that
      depends on the position; 0 for average pooling.

    Args:
        params: any pytree, as for `flexpool_regularizer`.
        pool: one of `POOLS`, whose `effective_weights` are described. None describes the parameters
            as they are stored.

    Returns:
        Float32 scalars by name; empty if there is no ``w_fp``. The function can be jitted.

    Raises:
        ValueError: a ``w_fp`` is not three-dimensional, or the pool is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> summary = pool_summary({"head": {"pool": {"w_fp": jnp.full((2, 2, 3), 0.25)}}})
        >>> sorted(summary)[-1], float(summary["head/pool/sum_mean"])
        ('head/pool/sum_sd', 1.0)
    """
    found: dict[str, Array] = {}
    for path, w in named_w_fp(params):
        height, width, channels = w.shape
        used = pool and effective_weights(pool, {"w_fp": w}, (height, width, channels))
        w = jnp.asarray(w if used is None else used, jnp.float32)
        sums = jnp.sum(w, axis=(0, 1))
        size = jnp.sum(w**2)
        deviation = jnp.sum((w - jnp.mean(w, axis=(0, 1))) ** 2)
        found |= {
            f"{path}sum_mean": jnp.mean(sums),
            f"{path}sum_sd": jnp.std(sums),
            f"{path}negative_share": jnp.mean((w < 0).astype(jnp.float32)),
            f"{path}deviation_share": deviation / jnp.where(size > 0, size, 1.0),
        }
    return found
