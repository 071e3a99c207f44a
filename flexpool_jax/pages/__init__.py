"""Self-contained HTML pages: one template, one style, and the parts that every page is built of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from flexpool_jax import files


def render(title: str, data: Mapping[str, Any], program: str) -> str:
    """Fills the template.

    Args:
        title: of the page.
        data: what the program shows, in types that JSON has.
        program: JavaScript that runs after blocks.js, which has the parts and reads the data.

    Returns:
        An HTML document that loads nothing.

    Example:
        >>> render("a title", {"name": "moths"}, "").count("moths")
        1
    """
    folder = resources.files("flexpool_jax.pages")
    template, style, blocks = (
        (folder / name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "blocks.js")
    )
    parts = {
        "title": title.replace("&", "&amp;").replace("<", "&lt;"),
        "style": style,
        "program": f"{blocks}\n{program}",
        # A class may be called </script>.
        "data": files.to_json(data).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
