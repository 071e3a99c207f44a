"""Functions that the registries of pools, models, data sets and metrics share."""

from __future__ import annotations

import functools
import importlib
import inspect
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


def why_not_callable(function: Callable[..., Any], *arguments: Any) -> str | None:
    """Says why a function does not take these arguments; None if it does, or if it is not known.

    Example:
        >>> why_not_callable(lambda x, y: x, 1)
        "missing a required argument: 'y'"
    """
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        return str(error)
    except ValueError:  # Functions written in C may have no signature.
        pass
    return None


def is_same_definition(one: Any, other: Any) -> bool:
    """Whether two functions come from the same definition, as when a notebook's cell runs twice.

    Functions at the top of a module are compared by their names alone, so that a cell may be edited
    and run again. Lambdas and local functions must also agree in their code, default arguments and
    enclosed values, as far as these can be compared: a cell that runs twice makes its arrays anew.

    Example:
        >>> def define(number):
        ...     def function():
        ...         return number
        ...     return function
        >>> is_same_definition(define(1), define(1)), is_same_definition(define(1), define(2))
        (True, False)
    """
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        given, other_given = (one.args, one.keywords), (other.args, other.keywords)
        return is_same_definition(one.func, other.func) and _may_be_equal(given, other_given)
    if _written_in(one) != _written_in(other):
        return False
    if "<" not in str(getattr(one, "__qualname__", "")):
        return True
    values, others = _values(one), _values(other)
    return len(values) == len(others) and all(map(_may_be_equal, values, others))


def _written_in(function: Any) -> tuple[Any, Any]:
    return getattr(function, "__module__", None), getattr(function, "__qualname__", function)


def _values(function: Any) -> list[Any]:
    """What tells apart functions of one name: code, default arguments and enclosed values."""
    values = [getattr(function, "__code__", None)]
    values += getattr(function, "__defaults__", None) or ()
    values += (getattr(function, "__kwdefaults__", None) or {}).values()
    for cell in getattr(function, "__closure__", None) or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # The variable has no value yet.
            values.append(None)
    return values


def _may_be_equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if hasattr(one, "__qualname__"):  # A local class or function, which is made anew each time.
        return _written_in(one) == _written_in(other)
    try:
        return bool(one == other)
    except Exception:  # Such as arrays, whose comparison is not one bool.
        return True
