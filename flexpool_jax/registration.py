"""What the registries of models, data sets and metrics share."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def resolve(entry: str | Callable[..., Any], package: str) -> Callable[..., Any]:
    """Returns a function or class; imports it if it is given as ``"module:name"`` of the package.

    Example:
        >>> resolve("registry:default_sac_weights", "flexpool_jax.models")(3)
        (0.1, 0.2, 0.7)
    """
    if not isinstance(entry, str):
        return entry
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(f"{package}.{module}"), name)


def is_same_definition(one: Any, other: Any) -> bool:
    """Calls `flexpool_jax.pooling.is_same_definition`, whose module imports JAX."""
    from flexpool_jax import pooling

    return pooling.is_same_definition(one, other)
