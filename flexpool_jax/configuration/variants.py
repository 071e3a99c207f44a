"""The words of a config's variant and of a sweep's columns, and the fields that they set.

`configs/digits.py:flexpool,reg,dropout` and the column `flexpool+reg+dropout` say the same. A word
is the name of a pool, one of `pooling.VARIANT_WORDS`, or FIELD=VALUE as on the command line;
`reg=V` is short for `pool_reg=V`. They may stand in any order. A value holds neither of the
separators.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from flexpool_jax.configuration.overrides import apply_overrides
from flexpool_jax.errors import UserError, closest_name

# What the words set that have no value of their own, by field; `reg` and `dropout` have the
# defaults of a config file.
_VALUES: Mapping[str, Any] = {"pool": "flexpool_softmax", "sac.enabled": True}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one word sets.

    Attributes:
        word: As it was written, e.g. "reg=0.01".
        field: The dotted name of the field, e.g. "pool_reg".
        value: As text; None for a word whose value the config file chooses.
    """

    word: str
    field: str
    value: str | None


def known_words() -> tuple[str, ...]:
    """Every word but FIELD=VALUE: the names of all pools, and what may go with them."""
    # Imported where a word is read, since it imports JAX.
    from flexpool_jax.pooling import POOLS, VARIANT_WORDS

    return (*POOLS, *VARIANT_WORDS)


def split_variant(variant: str, separator: str = ",") -> list[str]:
    """The words of a variant, blanks around them removed; an empty variant has none.

    Example:
        >>> split_variant("gem, dropout"), split_variant("gem+dropout", "+"), split_variant(" ")
        (['gem', 'dropout'], ['gem', 'dropout'], [])
    """
    return [word.strip() for word in variant.split(separator)] if variant.strip() else []


def check_word(word: str, also: Iterable[str] = ()) -> None:
    """Refuses a word that sets nothing.

    Args:
        word: One word of a variant.
        also: Others that are allowed where it stands.

    Raises:
        UserError: Names the closest word, and all that there are.
    """
    allowed = (*also, *known_words())
    if word in allowed or "=" in word:
        return
    match = closest_name(word, allowed)
    hint = f" did you mean {match!r}?" if match else ""
    raise UserError(
        f"unknown variant {word!r};{hint} allowed: {', '.join(allowed)}, or FIELD=VALUE with "
        "neither + nor comma in the value"
    )


def read_variant(variant: str, separator: str = ",", kind: str = "variant") -> list[Setting]:
    """Reads what a variant, or a sweep's column, sets.

    Args:
        variant: Words with the separator between them.
        separator: "," after a config's colon, "+" in a sweep's column.
        kind: What the text is, for messages.

    Raises:
        UserError: For an unknown word, a field that is set twice, or two pools; and for `reg`
            beside a pool whose weights Eq. 2 cannot constrain.

    Example:
        >>> [(setting.field, setting.value) for setting in read_variant("gem+dropout+seed=3", "+")]
        [('pool', 'gem'), ('dropout_rate', None), ('seed', '3')]
    """
    words = split_variant(variant, separator)
    if not words:
        return []
    from flexpool_jax.pooling import POOLS, VARIANT_WORDS

    settings: list[Setting] = []
    for word in words:
        check_word(word)
        name, equals, text = word.partition("=")
        if equals:
            field = VARIANT_WORDS["reg"] if name == "reg" else name
            settings.append(Setting(word, field, text))
        elif word in POOLS:
            settings.append(Setting(word, "pool", word))
        else:
            field = VARIANT_WORDS[word]
            value = _VALUES.get(field)
            settings.append(Setting(word, field, None if value is None else str(value)))
    _check_once(settings, f"{kind} {variant!r}")
    for setting in settings:
        if setting.field == "pool" and setting.value in POOLS:
            _check_reg(settings, setting.value, f"{kind} {variant!r}")
    return settings


def apply_variant(config: ConfigDict, variant: str, defaults: Mapping[str, Any]) -> ConfigDict:
    """Changes a config as the argument after the colon says, and returns it.

    Args:
        config: The config to change in place.
        variant: Words separated by commas; empty changes nothing.
        defaults: What `reg` and `dropout` set, by field: `pool_reg` and `dropout_rate`.

    Raises:
        UserError: As `read_variant`, and for a field or value that the command line would refuse.
    """
    what = f"variant {variant!r}"
    settings = read_variant(variant)
    for setting in settings:
        value = defaults[setting.field] if setting.value is None else setting.value
        try:
            apply_overrides(config, [f"--config.{setting.field}={value}"])
        except UserError as error:
            if setting.word.startswith("reg="):
                raise UserError(f"{what} has {setting.word!r}; allowed: e.g. reg=0.01") from error
            raise UserError(f"{what} has {setting.word!r}: {error}") from error
    if settings:
        _check_reg(settings, config.pool, what)
    return config


def _check_once(settings: list[Setting], what: str) -> None:
    words = [setting.word for setting in settings]
    for word in words:
        if words.count(word) > 1:
            raise UserError(f"{what} names {word!r} twice")
    for field in dict.fromkeys(setting.field for setting in settings):
        same = [setting.word for setting in settings if setting.field == field]
        if len(same) > 1 and field == "pool":
            raise UserError(f"{what} names {len(same)} pools; allowed: one of {', '.join(same)}")
        if len(same) > 1:
            names = {word.partition("=")[0] for word in same}
            said = f"names {names.pop()!r} twice" if len(names) == 1 else f"sets {field} twice"
            raise UserError(f"{what} {said}: {', '.join(same)}")


def _check_reg(settings: list[Setting], pool: str, what: str) -> None:
    from flexpool_jax.pooling import POOLS, regularizer_applies

    given = any(setting.word.partition("=")[0] == "reg" for setting in settings)
    # A name that there is not is for `configuration.resolve` to tell.
    if given and pool in POOLS and not regularizer_applies(pool):
        raise UserError(
            f"{what}: 'reg' (Eq. 2) constrains the weights of FlexPool and cannot go "
            f"with pool {pool!r}; leave it out, or name 'flexpool' as the pool"
        )
