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
    """Whether two functions come from the same definition, as when a notebook's cell runs twice.

    Example:
        >>> def define():
        ...     def function(): ...
        ...     return function
        >>> is_same_definition(define(), define()), is_same_definition(define(), define)
        (True, False)
    """
    return _written_in(one) == _written_in(other)


def _written_in(function: Any) -> tuple[Any, Any]:
    return getattr(function, "__module__", None), getattr(function, "__qualname__", function)
