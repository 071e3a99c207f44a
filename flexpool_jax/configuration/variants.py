"""The words of a config's variant and of a sweep's columns, and the fields that they set.

`configs/digits.py:flexpool,reg,dropout` and the column `flexpool+reg+dropout` set the same fields.
A word is the name of a pool, one of `pools.VARIANT_WORDS`, or FIELD=VALUE as on the command line;
`reg=V` is short for `pool_reg=V`. The words may be in any order. A value cannot contain a
comma or a plus sign, because these separate the words.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from flexpool_jax.configuration.overrides import apply_overrides
from flexpool_jax.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True)
class FieldSetting:
    """The field that one word sets, and its value.

    Attributes:
        word: The word as the user wrote it, e.g. "reg=0.01".
        field: Dotted name of the field, e.g. "pool_reg".
        value: Value of the field as text; None if the config file chooses the value.
    """

    word: str
    field: str
    value: str | None


def split_variant(variant: str, separator: str = ",") -> list[str]:
    """Splits a variant into words and strips spaces around them; an empty variant has no words.

    Example:
        >>> split_variant("gem, dropout"), split_variant("gem+dropout", "+"), split_variant(" ")
        (['gem', 'dropout'], ['gem', 'dropout'], [])
    """
    return [word.strip() for word in variant.split(separator)] if variant.strip() else []


def check_word(word: str, also: Iterable[str] = ()) -> None:
    """Checks that a word of a variant is known or has the form FIELD=VALUE.

    Args:
        word: One word of a variant.
        also: Further words that are allowed.

    Raises:
        UserError: The word is unknown. The message contains the closest match and all known words.
    """
    # Imported only if there is a word to read, because it imports JAX.
    from flexpool_jax.pools import POOLS, VARIANT_WORDS

    names = (*also, *POOLS, *VARIANT_WORDS)
    if word not in names and "=" not in word:
        field = "FIELD=VALUE with neither + nor comma in the value"
        raise unknown_name("variant", word, (*names, field))


def read_variant(variant: str, separator: str = ",", kind: str = "variant") -> list[FieldSetting]:
    """Reads a variant, or a column of a sweep, as the fields that it sets.

    Args:
        variant: Words with the separator between them.
        separator: "," for the variant of a config, "+" for a column of a sweep.
        kind: Name of the text in error messages: "variant" or "column".

    Raises:
        UserError: A word is unknown, or a field is set more than once.

    Example:
        >>> [(setting.field, setting.value) for setting in read_variant("gem+dropout+seed=3", "+")]
        [('pool', 'gem'), ('dropout_rate', None), ('seed', '3')]
    """
    words = split_variant(variant, separator)
    if not words:
        return []
    from flexpool_jax.pools import POOLS, VARIANT_WORDS

    settings: list[FieldSetting] = []
    for word in words:
        check_word(word)
        name, equals, text = word.partition("=")
        if equals:
            field = VARIANT_WORDS["reg"][0] if name == "reg" else name
            settings.append(FieldSetting(word, field, text))
        elif word in POOLS:
            settings.append(FieldSetting(word, "pool", word))
        else:
            settings.append(FieldSetting(word, *VARIANT_WORDS[word]))
    for setting in settings:
        same = [other.word for other in settings if other.field == setting.field]
        if len(same) > 1:
            raise UserError(
                f"{kind} {variant!r} sets {setting.field} more than once: {', '.join(same)}"
            )
    return settings


def apply_variant(config: ConfigDict, variant: str, defaults: Mapping[str, Any]) -> ConfigDict:
    """Applies a variant to a config, in place, and returns the config.

    Args:
        config: The config to change.
        variant: Words separated by commas; empty changes nothing.
        defaults: Values that the words `reg` and `dropout` set, by field: `pool_reg` and
            `dropout_rate`.

    Raises:
        UserError: A word is unknown, a field is unknown or set more than once, or a value has the
            wrong type.
    """
    for setting in read_variant(variant):
        value = defaults[setting.field] if setting.value is None else setting.value
        try:
            apply_overrides(config, [f"--config.{setting.field}={value}"])
        except UserError as error:
            raise UserError(f"variant {variant!r} has {setting.word!r}: {error}") from error
    return config
