"""Self-contained HTML pages: one template, one style, and the parts that every page is built of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexpool_jax import files

_FOLDER = Path(__file__).parent


def write_page(path: Path, title: str, data: Mapping[str, Any], program: Path) -> None:
    """Fills the template and writes an HTML document that loads no other file.

    Args:
        path: path of the page.
        title: title of the page.
        data: content that the program shows, in types that JSON has.
        program: path of JavaScript that runs after blocks.js, which defines the parts of pages and
            reads the data.

    Raises:
        OSError: the page cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_page(folder / "page.html", "a title", {"name": "moths"}, _FOLDER / "blocks.js")
        >>> (folder / "page.html").read_text(encoding="utf-8").count("moths")
        1
    """
    template, style, blocks = (
        (_FOLDER / name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "blocks.js")
    )
    parts = {
        "title": title.replace("&", "&amp;").replace("<", "&lt;"),
        "style": style,
        "program": f"{blocks}\n{program.read_text(encoding='utf-8')}",
        # A class may be called </script>.
        "data": files.to_json(data).replace("<", "\\u003c"),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    files.write_whole(path, page.encode())
