"""The table of all fields of a training config: type, allowed values, and role in a run.

configs/default.py explains the meaning of the fields and the reasons for their defaults. A test
checks that both files have the same fields.
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
    """The allowed values of a field, and its role in a run.

    Attributes:
        type: bool, int, float, str, tuple or, for any type, object. An int is also a float, but a
            bool is not an int.
        allowed: Description of the allowed values, for messages.
        accepts: Function that returns whether a value of this type is allowed.
        names: For a field that holds one of several names, a function that returns all names.
        imports_jax: Whether the function ``names`` imports JAX.
        fixed: Whether the field defines the model, the data or the order of examples. It cannot be
            changed after a run has started, because the checkpoints would no longer fit.
        has_effect: Whether the field changes the results of a run. False if it changes only where
            the run computes or what it logs. The digest of a config leaves out fields without
            effect, so that the same experiment has the same digest on every machine.
        before: For a field added after release 0.1, the value with which a run behaves as in that
            release; None for other fields. If a config.json lacks the field, it is read with this
            value. The digest leaves out a field with this value, so that the digests of old results
            stay the same.
    """

    type: type
    allowed: str
    accepts: Callable[[Any], bool] = lambda value: True
    names: Callable[[], Iterable[str]] | None = None
    imports_jax: bool = False
    fixed: bool = False
    has_effect: bool = True
    before: Any = None


# The group of fields that may have any names; their values are bools, numbers and texts.
KWARGS = "optimizer.kwargs"


def has_type(value: Any, kind: type) -> bool:
    """Whether a value has the type ``kind``; an int is also a float, but a bool is not an int."""
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, (int, float) if kind is float else kind)


def field_names(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the dotted name of every field of a nested config, in the config's order.

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


def dataset_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `flexpool_jax.data.load_dataset` that a config determines."""
    dataset = config.dataset
    return {
        "name": dataset.name,
        "data_dir": dataset.data_dir,
        "raw_dir": dataset.raw_dir,
        "image_size": dataset.image_size,
        "resize": dataset.resize,
        "center_crop": dataset.center_crop,
        "crop_training": not config.augment.random_resized_crop,
        "holdout": dataset.holdout,
        "seed": config.seed,
    }


def definition(name: str) -> Field:
    """Returns the entry of a field by its dotted name; other names are optimizer keywords."""
    return FIELDS.get(name, _KEYWORD)


def check_field(name: str, value: Any) -> None:
    """Checks the value of one field, without regard to other fields.

    Args:
        name: Dotted name of the field, e.g. "sac.weights"; in `FIELDS` or in the group `KWARGS`.
        value: The value of the field.

    Raises:
        UserError: The value has another type or is not allowed.
    """
    field = definition(name)
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


def _switch(**meaning: Any) -> Field:
    return Field(bool, "True or False", **meaning)


def _whole(low: int, high: int = 10**9, **meaning: Any) -> Field:
    allowed = f"a whole number from {low} to {high}"
    return Field(int, allowed, lambda value: low <= value <= high, **meaning)


def _side(zero: str, **meaning: Any) -> Field:
    """An entry for a number of pixels, where ``zero`` describes what 0 means."""
    allowed = f"0 ({zero}) or a whole number from 8 to 1024"
    return Field(int, allowed, lambda value: value == 0 or 8 <= value <= 1024, **meaning)


def _number(
    low: float, high: float, *, above: bool = False, below: bool = False, **meaning: Any
) -> Field:
    """An entry for a number in a range; `above` excludes `low`, and `below` excludes `high`."""
    first = f"above {low:g}" if above else f"at least {low:g}"
    last = f"below {high:g}" if below else f"at most {high:g}"

    def accepts(value: float) -> bool:
        # NaN fails every comparison, so that it needs no separate check.
        return (low < value if above else low <= value) and (
            value < high if below else value <= high
        )

    return Field(float, f"a number {first} and {last}", accepts, **meaning)


def _one_of(names: Callable[[], Iterable[str]], **meaning: Any) -> Field:
    return Field(str, "a name", names=names, **meaning)


def _registry(module: str, name: str, **meaning: Any) -> Field:
    """An entry for a name in the table `name` of a module, which is imported only for the check."""
    return _one_of(
        lambda: getattr(importlib.import_module(f"flexpool_jax.{module}"), name),
        imports_jax=True,
        **meaning,
    )


def _folder(*, may_be_empty: bool, **meaning: Any) -> Field:
    def accepts(path: str) -> bool:
        # The bytes of a path that are not UTF-8 could not be written to result.json.
        is_utf8 = path == path.encode(errors="replace").decode()
        return is_utf8 and not {"\0", "\n"} & set(path) and (may_be_empty or bool(path.strip()))

    return Field(
        str, "a path in UTF-8" + (", or empty" if may_be_empty else ""), accepts, **meaning
    )


def _numbers(allowed: str, accepts: Callable[[tuple[float, ...]], bool], **meaning: Any) -> Field:
    """An entry for a tuple of finite numbers for which `accepts` returns True."""
    return Field(tuple, allowed, lambda values: _are_finite(values) and accepts(values), **meaning)


def _are_finite(values: tuple[Any, ...]) -> bool:
    return all(has_type(value, float) and math.isfinite(value) for value in values)


def _is_dataset_name(name: str) -> bool:
    """Whether a name is valid for a data set; a TFDS name may add `/CONFIG` and `:VERSION`."""
    # The name is also that of a folder: a name such as ".." would lead out of data_dir.
    return name[:1].isalnum() and all(
        character.isalnum() or character in "_-/:.+" for character in name
    )


# The entry of every field in the group KWARGS.
_KEYWORD = Field(
    object,
    "True or False, a finite number or a text",
    lambda value: isinstance(value, bool | str) or _are_finite((value,)),
    fixed=True,
)

FIELDS: dict[str, Field] = {
    "seed": _whole(0, 2**32 - 1, fixed=True),
    "model": _one_of(lambda: registry.MODELS, fixed=True),
    "norm_after_relu": _switch(fixed=True),
    "projection_shortcuts": _switch(fixed=True, before=False),
    "pool": _registry("pools", "POOLS", fixed=True),
    "pool_reg": _number(0, 1e6),
    "pool_learning_rate_scale": _number(0, 1e3, above=True, before=1.0),
    "dropout_rate": _number(0, 1, below=True),
    "init_from": _folder(may_be_empty=True, fixed=True, before=""),
    "freeze": Field(
        str, "'backbone', or empty", lambda value: value in ("", "backbone"), before=""
    ),
    "sac.enabled": _switch(fixed=True),
    "sac.weights": _numbers("finite numbers, one for each stage", lambda values: len(values) > 0),
    "dataset.name": Field(str, "the name of a data set", _is_dataset_name, fixed=True),
    "dataset.data_dir": _folder(may_be_empty=False, has_effect=False),
    "dataset.raw_dir": _folder(may_be_empty=True, has_effect=False),
    "dataset.image_size": _side("the data set's own", fixed=True),
    "dataset.resize": _registry("data.images", "RESIZES", fixed=True, before="stretch"),
    "dataset.center_crop": _side("the whole image", fixed=True, before=0),
    "dataset.placement": _one_of(
        lambda: ("auto", "device", "stream"), has_effect=False, before="auto"
    ),
    "dataset.holdout": _number(0, 1, below=True, fixed=True),
    "dataset.mean": _numbers(
        "numbers from 0 to 1, one for each channel, or empty",
        lambda values: all(0 <= value <= 1 for value in values),
        fixed=True,
        before=(),
    ),
    "dataset.std": _numbers(
        "numbers above 0 and at most 1, one for each channel, or empty",
        lambda values: all(0 < value <= 1 for value in values),
        fixed=True,
        before=(),
    ),
    "batch_size": _whole(1, 10**7, fixed=True),
    "grad_accum_steps": _whole(1, 10**4, before=1),
    "num_epochs": _whole(1, 10**6),
    "eval_batch_size": _whole(1, 10**7, has_effect=False),
    "optimizer.name": _registry("optimizer", "OPTIMIZERS", fixed=True),
    "optimizer.momentum": _number(0, 1, below=True),
    "optimizer.weight_decay": _number(0, 1),
    "optimizer.weight_decay_kind": _registry("optimizer", "WEIGHT_DECAY_KINDS"),
    "optimizer.decay_pool": _switch(before=False),
    "optimizer.clip_norm": _number(0, 1e6, before=0.0),
    "learning_rate": _number(0, 1e3, above=True),
    "schedule": _registry("optimizer", "SCHEDULES"),
    "warmup_epochs": _whole(0, 10**6, before=0),
    "ema_decay": _number(0, 1, below=True, fixed=True, before=0.0),
    "label_smoothing": _number(0, 1, below=True, before=0.0),
    "dtype": _one_of(lambda: ("float32", "bfloat16"), fixed=True),
    "deterministic": _switch(before=False),
    "sync_batch_norm": _switch(),
    "augment.flip": _switch(fixed=True),
    "augment.scale": _numbers(
        "two numbers, the smaller first, both from 0.1 to 10",
        lambda values: len(values) == 2 and 0.1 <= values[0] <= values[1] <= 10,
        fixed=True,
    ),
    "augment.crop": _whole(0, 1024, fixed=True),
    "augment.random_resized_crop": _numbers(
        "two shares of the area above 0 and at most 1, the smaller first, or empty",
        lambda values: not values or (len(values) == 2 and 0 < values[0] <= values[1] <= 1),
        fixed=True,
        before=(),
    ),
    "superclass.epochs": _whole(0, 10**6, fixed=True),
    "superclass.mapping": _folder(may_be_empty=True, fixed=True),
    "eval_every_epochs": _whole(1, 10**6),
    "checkpoint_every_epochs": _whole(1, 10**6),
    "log_every_steps": _whole(1, has_effect=False),
    "steps_per_dispatch": _whole(0, 10**6, has_effect=False),
    "tensorboard": _switch(has_effect=False),
    "compilation_cache": _folder(may_be_empty=True, has_effect=False),
}
