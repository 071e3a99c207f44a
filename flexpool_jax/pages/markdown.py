"""Escapes names that stand in Markdown."""

_MARKUP = str.maketrans({character: f"\\{character}" for character in "`*<["} | {"\n": " "})


def escaped(text: str) -> str:
    """Escapes a name, such as that of a class or a folder, so that Markdown shows it as it is.

    Example:
        >>> print(escaped("<b> *cats* [1](2)"))
        \\<b> \\*cats\\* \\[1](2)
    """
    return text.translate(_MARKUP)
