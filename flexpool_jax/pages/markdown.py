"""Escapes names that stand in Markdown."""

import re

# An underscore between letters or digits, as in "num_epochs", is not markup.
_MARKUP = re.compile(r"[\\`*<\[]|(?<![^\W_])_|_(?![^\W_])")


def escaped(text: str) -> str:
    """Escapes a name, such as that of a class or a folder, so that Markdown shows it as it is.

    Example:
        >>> print(escaped("<b> *cats* [1](2) _unknown_ num_epochs"))
        \\<b> \\*cats\\* \\[1](2) \\_unknown\\_ num_epochs
    """
    return _MARKUP.sub(r"\\\g<0>", text.replace("\n", " "))
