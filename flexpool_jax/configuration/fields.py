"""The type and range of every field of a training config, in one table.

What the fields mean, and why their defaults are what they are, stands in configs/default.py; a
test holds the two to the same names.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from flexpool_jax.errors import UserError, unknown_name
from flexpool_jax.models import registry


@dataclasses.dataclass(frozen=True)
class Field:
    """What a field may hold.

    Attributes:
        type: bool, int, float, str or tuple. An int is also a float, but a bool is not an int.
        allowed: The allowed values in words, for messages.
        accepts: Whether a value of that type is in range.
        names: For a field that holds one of several names: a function that lists them.
        imports_jax: Whether that function does.
    """

    type: type
    allowed: str
    accepts: Callable[[Any], bool] = lambda value: True
    names: Callable[[], Iterable[str]] | None = None
    imports_jax: bool = False


# A group that may hold any names, with plain values: bools, numbers and texts.
KWARGS = "optimizer.kwargs"


def has_type(value: Any, kind: type) -> bool:
    """Whether a value is of the kind, where an int counts as a float and a bool only as a bool."""
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, (int, float) if kind is float else kind)


def field_names(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the dotted name of every field of a nested config, in its order.

    Example:
        >>> list(field_names({"seed": 0, "sac": {"enabled": False}}))
        ['seed', 'sac.enabled']
    """
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from field_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def get_field(config: ConfigDict, name: str) -> Any:
    """Returns the value of a field by its dotted name."""
    node: Any = config
    for part in name.split("."):
        node = node[part]
    return node


def check_field(name: str, value: Any) -> None:
    """Checks one field by itself.

    Args:
        name: Its dotted name, e.g. "sac.weights"; one of `FIELDS`, or of the group `KWARGS`.
        value: What it holds.

    Raises:
        UserError: When the value is of another type or outside the range.
    """
    field = FIELDS.get(name, _PLAIN_VALUE)
    if not has_type(value, field.type):
        raise UserError(
            f"config.{name} is {value!r} ({type(value).__name__}); allowed: {field.allowed}"
        )
    if field.names is not None:
        names = list(field.names())
        if value not in names:
            raise unknown_name(f"config.{name}", value, names)
    if not field.accepts(value):
        raise UserError(f"config.{name} is {value!r}; allowed: {field.allowed}")


def _switch() -> Field:
    return Field(bool, "True or False")


def _whole(low: int, high: int = 10**9) -> Field:
    return Field(int, f"a whole number from {low} to {high}", lambda value: low <= value <= high)


def _number(low: float, high: float, *, above: bool = False, below: bool = False) -> Field:
    """A finite number of a range whose ends belong to it, save where `above` or `below` says no."""
    first = f"above {low:g}" if above else f"at least {low:g}"
    last = f"below {high:g}" if below else f"at most {high:g}"

    def accepts(value: float) -> bool:
        # NaN fails every comparison, so that no case of its own is needed.
        return (low < value if above else low <= value) and (
            value < high if below else value <= high
        )

    return Field(float, f"a number {first} and {last}", accepts)


def _one_of(names: Callable[[], Iterable[str]], *, imports_jax: bool = False) -> Field:
    return Field(str, "a name", names=names, imports_jax=imports_jax)


def _registry(module: str, name: str) -> Field:
    """A name of a registry, whose module is imported for the check only, since it imports JAX."""
    return _one_of(
        lambda: getattr(importlib.import_module(f"flexpool_jax.{module}"), name), imports_jax=True
    )


def _folder(*, may_be_empty: bool) -> Field:
    def accepts(path: str) -> bool:
        return "\0" not in path and "\n" not in path and (may_be_empty or bool(path.strip()))

    return Field(str, "a path" + (", or empty" if may_be_empty else ""), accepts)


def _is_dataset_name(name: str) -> bool:
    """Whether a name can be a data set's; a TFDS name may add `/CONFIG` and `:VERSION`."""
    # It names a folder too, and one that begins with dots would lie outside data_dir.
    return name[:1].isalnum() and all(
        character.isalnum() or character in "_-/:.+" for character in name
    )


def _are_finite(values: tuple[Any, ...]) -> bool:
    return bool(values) and all(has_type(v, float) and math.isfinite(v) for v in values)


def _is_scale_range(values: tuple[Any, ...]) -> bool:
    return len(values) == 2 and _are_finite(values) and 0.1 <= values[0] <= values[1] <= 10


_PLAIN_VALUE = Field(
    object,
    "True or False, a finite number or a text",
    lambda value: isinstance(value, bool | str) or _are_finite((value,)),
)

FIELDS: dict[str, Field] = {
    "seed": _whole(0, 2**32 - 1),
    "model": _one_of(lambda: registry.MODELS),
    "norm_after_relu": _switch(),
    "projection_shortcuts": _switch(),
    "pool": _registry("pooling", "POOLS"),
    "pool_reg": _number(0, 1e6),
    "pool_learning_rate_scale": _number(0, 1e3, above=True),
    "dropout_rate": _number(0, 1, below=True),
    "init_from": _folder(may_be_empty=True),
    "freeze": Field(str, "'backbone', or empty", lambda value: value in ("", "backbone")),
    "sac.enabled": _switch(),
    "sac.weights": Field(tuple, "finite numbers, one for each stage", _are_finite),
    "dataset.name": Field(str, "the name of a data set", _is_dataset_name),
    "dataset.data_dir": _folder(may_be_empty=False),
    "dataset.raw_dir": _folder(may_be_empty=True),
    "dataset.image_size": Field(
        int,
        "0 (the data set's own) or a whole number from 8 to 1024",
        lambda value: value == 0 or 8 <= value <= 1024,
    ),
    "dataset.holdout": _number(0, 1, below=True),
    "dataset.mean": Field(
        tuple,
        "numbers from 0 to 1, one for each channel, or empty",
        lambda values: not values or (_are_finite(values) and 0 <= min(values) <= max(values) <= 1),
    ),
    "dataset.std": Field(
        tuple,
        "numbers above 0 and at most 1, one for each channel, or empty",
        lambda values: not values or (_are_finite(values) and 0 < min(values) <= max(values) <= 1),
    ),
    "batch_size": _whole(1, 10**7),
    "num_epochs": _whole(1, 10**6),
    "eval_batch_size": _whole(1, 10**7),
    "optimizer.name": _registry("training.optimizer", "OPTIMIZERS"),
    "optimizer.momentum": _number(0, 1, below=True),
    "optimizer.weight_decay": _number(0, 1),
    "optimizer.weight_decay_kind": _registry("training.optimizer", "WEIGHT_DECAY_KINDS"),
    "optimizer.decay_pool": _switch(),
    "optimizer.clip_norm": _number(0, 1e6),
    "learning_rate": _number(0, 1e3, above=True),
    "schedule": _registry("training.optimizer", "SCHEDULES"),
    "warmup_epochs": _whole(0, 10**6),
    "ema_decay": _number(0, 1, below=True),
    "label_smoothing": _number(0, 1, below=True),
    "dtype": _one_of(lambda: ("float32", "bfloat16")),
    "sync_batch_norm": _switch(),
    "augment.flip": _switch(),
    "augment.scale": Field(
        tuple, "two numbers, the smaller first, both from 0.1 to 10", _is_scale_range
    ),
    "augment.crop": _whole(0, 1024),
    "superclass.epochs": _whole(0, 10**6),
    "superclass.mapping": _folder(may_be_empty=True),
    "eval_every_epochs": _whole(1, 10**6),
    "checkpoint_every_epochs": _whole(1, 10**6),
    "log_every_steps": _whole(1),
    "steps_per_dispatch": _whole(0, 10**6),
    "tensorboard": _switch(),
    "compilation_cache": _folder(may_be_empty=True),
}
