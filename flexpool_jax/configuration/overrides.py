"""Reads overrides such as `--config.batch_size=1e3`, and sets the fields of a config.

ml_collections' config_flags is not used, because it misreads some overrides without an error. It
reads `--config.flag False` as True and an unused argument, and `--config.names=x,y` as one string.
If a value is missing, it takes the next flag as the value, and it joins the values of a tuple that
is given twice. It also rejects `1e3` for a whole number, and an override before `--config`.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from flexpool_jax.configuration.fields import FIELDS, KWARGS, field_names, get_field
from flexpool_jax.errors import UserError, closest_name

_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<field>[^=]*)(?:=(?P<value>.*))?", re.DOTALL)
_BOOLEANS = {
    **dict.fromkeys(("true", "t", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "f", "0", "no", "off"), False),
}
_KIND_IN_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    tuple: "values separated by commas",
    str: "a text",
}


def is_override(argument: str) -> bool:
    """Whether a command-line argument is an override, which sets a field of the config.

    Example:
        >>> is_override("--config.seed=1"), is_override("--config=configs/digits.py")
        (True, False)
    """
    return _OVERRIDE.fullmatch(argument) is not None


def apply_overrides(config: ConfigDict, arguments: Sequence[str]) -> list[str]:
    """Applies the overrides of a command line to a config, in place.

    If a field is given twice, the last value is used, as for every absl flag; a field that holds a
    tuple must be given only once.

    Args:
        config: The config to change. A value is read as the type of the field: that in `FIELDS`, or
            that of the present value. In the group `KWARGS`, new names are added.
        arguments: The command line without the program's name.

    Returns:
        The arguments that are not overrides, in the given order.

    Raises:
        UserError: A field is unknown, a group of fields or a tuple given twice, or a value is
            missing or of the wrong type.

    Example:
        >>> config = ConfigDict({"batch_size": 64, "sac": {"weights": (0.1, 0.2, 0.7)}})
        >>> arguments = ["--config.sac.weights=0.05,0.1,0.85", "--config.batch_size", "1e3"]
        >>> apply_overrides(config, [*arguments, "--mode=eval"])
        ['--mode=eval']
        >>> config.batch_size, config.sac.weights
        (1000, (0.05, 0.1, 0.85))
    """
    values: dict[str, Any] = {}
    others: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            others.append(argument)
            continue
        field = match["field"]
        current = None if _is_kwarg(field, config) else _lookup(field, config)
        if field in values and isinstance(current, tuple):
            # In absl the last value is used, and ml_collections joins both: an error is safer.
            raise UserError(
                f"--config.{field} is given twice; write its values once, separated by commas"
            )
        values[field] = _parse(field, _value_text(match, remaining, current), current)
    with config.unlocked(), config.ignore_type():
        for field, value in values.items():
            group, _, name = field.rpartition(".")
            if _is_kwarg(field, config):
                # The group is replaced: in a new group, a keyword may have another type.
                config.optimizer.kwargs = {**config.optimizer.get("kwargs", {}), name: value}
            else:
                parent = get_field(config, group) if group else config
                parent[name] = value
    return others


def overrides_of(config: ConfigDict, arguments: Sequence[str]) -> list[str]:
    """Writes the overrides that a command line has applied to a config, each as one argument.

    Example:
        >>> config = ConfigDict({"seed": 0, "sac": {"weights": (0.1, 0.9)}})
        >>> arguments = ["--config.seed", "3", "--mode=eval", "--config.sac.weights=[.5, .5]"]
        >>> _ = apply_overrides(config, arguments)
        >>> overrides_of(config, arguments)
        ['--config.seed=3', '--config.sac.weights=0.5,0.5']
    """
    fields = dict.fromkeys(match["field"] for match in map(_OVERRIDE.fullmatch, arguments) if match)
    return [f"--config.{field}={_as_text(get_field(config, field))}" for field in fields]


def _as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _is_kwarg(field: str, config: ConfigDict) -> bool:
    """Whether a field is a keyword of the optimizer, which may have any name and type."""
    group, _, name = field.rpartition(".")
    has_optimizer = isinstance(config.get("optimizer"), ConfigDict)
    return group == KWARGS and name.isidentifier() and has_optimizer


def _value_text(match: re.Match[str], remaining: list[str], current: Any) -> str:
    """Returns the value of an override as text.

    Args:
        match: The match of `_OVERRIDE` in a command-line argument.
        remaining: The command-line arguments after it. If the value is the next argument, it is
            removed from this list.
        current: The present value of the field. A field that holds True or False needs no value.
    """
    argument, text = match[0], match["value"]
    is_switch = isinstance(current, bool)
    if match["no"]:
        if not is_switch or text is not None:
            raise UserError(f"{argument}: only True-or-False fields take a 'no', and no value")
        return "False"
    if text is not None:
        return text
    following = remaining[0] if remaining else None
    if is_switch:
        is_value = following is not None and following.lower() in _BOOLEANS
        return remaining.pop(0) if is_value else "True"
    if following is None or following.startswith("--"):
        raise UserError(f"{argument} has no value; write {argument}=VALUE")
    return remaining.pop(0)


def _lookup(field: str, config: ConfigDict) -> Any:
    """Returns the present value of a field; raises UserError if it cannot be overridden."""
    try:
        node = get_field(config, field)
    except (KeyError, TypeError):
        raise _unknown_field(field, config) from None
    if isinstance(node, ConfigDict):
        names = [f"--config.{field}.{name}" for name in [*field_names(node)] or ["NAME=VALUE"]]
        raise UserError(f"--config.{field} is a group of fields; allowed: {', '.join(names)}")
    if type(node) not in _KIND_IN_WORDS:
        raise UserError(
            f"--config.{field} is a {type(node).__name__} and cannot be set on the command line; "
            "allowed: fields that hold True or False, a number, a text or a tuple"
        )
    return node


def _unknown_field(field: str, config: ConfigDict) -> UserError:
    names = list(field_names(config))
    match = closest_name(field, names) or _by_last_part(field, names)
    if match is None and "overrides" in config and field in FIELDS:
        return UserError(
            f"--config.{field} is a field of a sweep's runs, not of the sweep; write "
            f'--config.overrides="{field}=VALUE"'
        )
    hint = f"did you mean --config.{match}?" if match else f"allowed: {', '.join(names)};"
    return UserError(f"unknown field --config.{field}; {hint} configs/default.py explains each")


def _by_last_part(field: str, names: Sequence[str]) -> str | None:
    """Returns the name with the closest last part, for a field without its group: `flip`."""
    full_name = {name.rpartition(".")[2]: name for name in names}
    match = closest_name(field.rpartition(".")[2], full_name)
    return full_name[match] if match else None


def _parse(field: str, text: str, current: Any) -> Any:
    """Reads a value as the type of its field; for an optimizer's keyword, the text decides it."""
    if current is None:
        return _parse_any(text)
    # A config file may hold 1 in a field whose values are floats.
    kind = FIELDS[field].type if field in FIELDS else type(current)
    if kind is str and text == "None":  # It would be the name of a folder, for example.
        raise UserError(
            f"--config.{field}='None': expected a text; for an empty one, write --config.{field}="
        )
    try:
        if kind is tuple:
            # A training config's tuples hold floats, but may be empty or written as (1, 1).
            return _parse_tuple(text, (0.0,) if field in FIELDS else current)
        return _parse_scalar(text, kind)
    except ValueError:
        expected = _KIND_IN_WORDS[kind]
        if kind is tuple and current:
            expected = f"{expected}, e.g. {','.join(map(str, current))}"
        raise UserError(f"--config.{field}={text!r}: expected {expected}") from None


def _parse_any(text: str) -> bool | int | float | str:
    """Reads a number, a switch or else a text; 1 and 0 are numbers."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return _BOOLEANS.get(text.lower(), text)


def _parse_scalar(text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(text)
        return _BOOLEANS[text.lower()]
    if kind is int:
        try:
            return int(text)
        except ValueError:
            # 1e3 and 64.0 are allowed as whole numbers; 1.5, nan and inf are not.
            number = float(text)
            if not math.isfinite(number) or number != int(number):
                raise
            return int(number)
    return float(text) if kind is float else text


def _parse_tuple(text: str, current: tuple[Any, ...]) -> tuple[Any, ...]:
    """Reads `1,2`, `(1, 2)` or `[1, 2]`; elements are read as the type of those in `current`."""
    kinds = {type(value) for value in current}
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1]
    parts = [part.strip() for part in inner.split(",")]
    if parts[-1] == "":
        # A trailing comma, as in `(1,)`, or an empty tuple.
        parts.pop()
    kind = kinds.pop() if len(kinds) == 1 else str
    if kind is str:
        return tuple(map(_unquote, parts))
    values = tuple(_parse_scalar(part, kind) for part in parts)
    if kind is float and not all(map(math.isfinite, values)):
        raise ValueError(text)
    return values


def _unquote(part: str) -> str:
    quoted = len(part) >= 2 and part[0] == part[-1] and part[0] in "'\""
    return part[1:-1] if quoted else part
