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
from flexpool_jax.errors import UserError, unknown_name


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
    # Imported where a word is read, since it imports JAX.
    from flexpool_jax.pooling import POOLS, VARIANT_WORDS

    names = (*also, *POOLS, *VARIANT_WORDS)
    if word not in names and "=" not in word:
        field = "FIELD=VALUE with neither + nor comma in the value"
        raise unknown_name("variant", word, (*names, field))


def read_variant(variant: str, separator: str = ",", kind: str = "variant") -> list[Setting]:
    """Reads what a variant, or a sweep's column, sets.

    Args:
        variant: Words with the separator between them.
        separator: "," after a config's colon, "+" in a sweep's column.
        kind: What the text is, for messages.

    Raises:
        UserError: For an unknown word, or a field that is set more than once.

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
            field = VARIANT_WORDS["reg"][0] if name == "reg" else name
            settings.append(Setting(word, field, text))
        elif word in POOLS:
            settings.append(Setting(word, "pool", word))
        else:
            settings.append(Setting(word, *VARIANT_WORDS[word]))
    for setting in settings:
        same = [other.word for other in settings if other.field == setting.field]
        if len(same) > 1:
            raise UserError(
                f"{kind} {variant!r} sets {setting.field} more than once: {', '.join(same)}"
            )
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
    for setting in read_variant(variant):
        value = defaults[setting.field] if setting.value is None else setting.value
        try:
            apply_overrides(config, [f"--config.{setting.field}={value}"])
        except UserError as error:
            raise UserError(f"variant {variant!r} has {setting.word!r}: {error}") from error
    return config
