"""Escapes names that stand in Markdown."""

from __future__ import annotations

import re

# Characters that Markdown or GitHub reads as markup where they stand. Those of "p < 0.05" and of
# "num_epochs" are left alone.
_MARKUP = re.compile(
    r"[`$]|[*~<&](?=\S)|(?<=\S)[*~]|(?<![^\W_])_|_(?![^\W_])|\](?=\()|\\(?=[!-/:-@[-`{-~])"
)


def escaped(text: str) -> str:
    """Escapes text, such as the name of a class or a folder, so that Markdown shows it as it is.

    Example:
        >>> print(escaped("<b> *cats* & num_epochs [1](2) __init__"))
        \\<b> \\*cats\\* & num_epochs [1\\](2) \\_\\_init\\_\\_
    """
    return _MARKUP.sub(r"\\\g<0>", text.replace("\n", " "))
