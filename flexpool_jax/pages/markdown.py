"""Parts of texts in Markdown: tables, and names that are shown as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# An underscore between letters or digits, as in "num_epochs", is not markup.
_MARKUP = re.compile(r"[\\`*<\[]|(?<![^\W_])_|_(?![^\W_])")


def escaped(text: str) -> str:
    """Escapes a name, such as that of a class or a folder, so that Markdown shows it as it is.

    Example:
        >>> print(escaped("<b> *cats* [1](2) _unknown_ num_epochs"))
        \\<b> \\*cats\\* \\[1](2) \\_unknown\\_ num_epochs
    """
    return _MARKUP.sub(r"\\\g<0>", text.replace("\n", " "))


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown.

    Example:
        >>> print(markdown_table(["a", "b"], [["1", "x|y"]]))
        | a | b |
        | --- | --- |
        | 1 | x\\|y |
    """
    # A title can hold the path of a folder, which can hold any character.
    lines = [
        [cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [heads, *rows]
    ]
    lines.insert(1, ["---"] * len(heads))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
