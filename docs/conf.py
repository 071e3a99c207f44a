"""The documentation site, built by `make docs`: the pages, the first hour, and the docstrings.

Sphinx reads the repository from its root, so that links between README.md, docs/ and benchmarks/
are the same here and on GitHub. README.md is the first page.
"""

import contextlib
import inspect
import re
import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext import autosummary

import flexpool_jax

ROOT = Path(__file__).parents[1]

project = "flexpool_jax"
copyright = "the flexpool_jax developers"  # noqa: A001
release = flexpool_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "README"
include_patterns = [
    "*.md",
    "benchmarks/*.md",
    "docs/*.md",
    "docs/*.ipynb",
    "docs/modules/*.rst",
    "results/*/report/report.md",
    "results/models/README.md",
]
templates_path = [str(ROOT / "docs/_templates")]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True

default_role = "py:obj"
nitpicky = True
# A docstring's names of this package have to exist, see `check_name`; types in signatures, and
# names of other packages, are shown without a link where there is none.
nitpick_ignore_regex = [("py:(?!obj).*", ".*"), ("py:obj", r"(?!flexpool_jax\.).*")]
# Otherwise a summary ends after "Eq.".
autosummary.WELL_KNOWN_ABBREVIATIONS += ("Eq.",)
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 100
autodoc_default_options = {"members": True, "no-value": True}
# As a list; otherwise each attribute becomes an entry, and those of a NamedTuple appear twice.
napoleon_custom_sections = [("Attributes", "params_style")]

html_theme = "furo"
html_title = "flexpool_jax"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_dark_style = "github-dark"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app: Sphinx) -> None:
    """Adds this project's own steps to the build."""
    app.connect("source-read", adapt_source)
    app.connect("missing-reference", check_name)
    app.connect("autodoc-process-signature", without_flax_fields)
    app.connect("autodoc-skip-member", is_field_of_tuple)
    app.connect("build-finished", write_index)


def adapt_source(app: Sphinx, page: str, source: list[str]) -> None:
    """Turns what GitHub alone understands into what Sphinx does.

    A link to a folder becomes its text, since a site has no page for it, and a link that shows the
    name of a page shows its title. The pages that README.md lists become the site's contents.
    """

    def adapt_link(match: re.Match[str]) -> str:
        text, target = match.groups()
        if (ROOT / page).parent.joinpath(target).is_dir():
            return text
        return f"[]({target})" if text.endswith((".md", ".ipynb")) else match[0]

    if page == root_doc:
        contents = source[0].partition("## Where to read on")[2].partition("\n## ")[0]
        pages = [*re.findall(r"\]\(([\w/]+)\.(?:md|ipynb)\)", contents), "docs/api"]
        source[0] += "\n".join(["\n```{toctree}", ":hidden:", *pages, "```\n"])
    elif page.startswith("results/"):
        source[0] = f"---\norphan: true\n---\n{source[0]}"
    source[0] = re.sub(r"\[([^\]]*)\]\(([^)#:]+)\)", adapt_link, source[0])


def check_name(app: Sphinx, env: Any, node: Any, text: Any) -> Any:
    """Shows a name that exists but has no page without a link; the others are warned about."""
    if node["reftype"] == "obj" and node["reftarget"].startswith("flexpool_jax."):
        with contextlib.suppress(autosummary.ImportExceptionGroup):
            autosummary.import_by_name(node["reftarget"])
            return text
    return None


def without_flax_fields(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str | None, Any]:
    """Leaves out the arguments that Flax gives to every module: its parent and its name."""
    return signature and re.sub(r"(, )?\bparent: .*\)$", ")", signature), returns


def is_field_of_tuple(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Skips a NamedTuple's fields, which its docstring describes."""
    return True if inspect.isdatadescriptor(obj) and type(obj).__name__ == "_tuplegetter" else None


def write_index(app: Sphinx, error: Exception | None) -> None:
    """Makes the first page the one that a browser opens."""
    if error is None:
        shutil.copyfile(app.outdir / f"{root_doc}.html", app.outdir / "index.html")
