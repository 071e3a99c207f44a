"""What README and the pages name exists: programs run, fields, targets and links are real."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import flexpool_jax
from configs import default
from flexpool_jax import scoring

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"))
}
README = PAGES["README.md"]
PAGES_WITH_PROGRAMS = ("README.md", "docs/extending.md", "docs/layer.md", "docs/scaling.md")
PROGRAMS = [
    (page, program)
    for page in PAGES_WITH_PROGRAMS
    for program in re.findall(r"```python\n(.*?)```", PAGES[page], flags=re.DOTALL)
]


def section(page, title):
    pattern = rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)"
    (text,) = re.findall(pattern, PAGES[page], re.M | re.S)
    return text


def test_there_are_programs_to_run():
    assert {page for page, _ in PROGRAMS} == set(PAGES_WITH_PROGRAMS)


@pytest.mark.parametrize(("page", "program"), PROGRAMS)
def test_each_program_runs_on_its_own(page, program, monkeypatch):
    monkeypatch.setattr(scoring, "METRICS", dict(scoring.METRICS))
    exec(compile(program, page, "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("page", [*PAGES, "results/models/README.md"])
def test_programs_use_public_names(page):
    text = (ROOT / page).read_text()
    for program in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flexpool_jax"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "flexpool_jax":
                assert hasattr(flexpool_jax, node.attr)


def test_functions_of_the_formulas_exist():
    names = re.findall(
        r"`(flexpool_jax(?:\.\w+)+)\.(\w+)`",
        section("docs/paper.md", "The paper's formulas, and where they are"),
    )
    assert len(names) >= 7
    for module, function in names:
        assert callable(getattr(importlib.import_module(module), function))


def test_fields_of_the_choices_exist():
    rows = re.findall(r"^\|.*\|$", section("docs/paper.md", "What the paper leaves open"), re.M)[2:]
    fields = [name for row in rows for name in re.findall(r"`([\w.]+)`", row.split("|")[3])]
    assert len(fields) >= 9
    config = default.get_config()
    for field in fields:
        value = config
        for part in field.split("."):
            assert part in value, f"config.{field}"
            value = value[part]


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_targets_and_configs_that_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", PAGES[page], re.M)) <= targets
    assert all((ROOT / config).is_file() for config in re.findall(r"configs/\w+\.py", PAGES[page]))


def test_the_two_commands_are_there():
    assert {"train", "test"} <= set(re.findall(r"^make ([a-z-]+)", README, re.M))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)", PAGES[page]) if "://" not in link]
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_the_readme_shows_the_method():
    assert "](docs/method.svg)" in README
