"""The README does not promise what is not there: its programs run, and what it names exists."""

import importlib
import re
from pathlib import Path

import pytest

from configs import default

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def section(title):
    (text,) = re.findall(rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", README, re.M | re.S)
    return text


def test_there_are_programs_to_run():
    assert len(PYTHON_BLOCKS) >= 2


@pytest.mark.parametrize("program", PYTHON_BLOCKS, ids=lambda text: text.splitlines()[-1][:40])
def test_each_program_runs_on_its_own(program):
    exec(compile(program, "README.md", "exec"), {"__name__": "readme"})


def test_functions_of_the_formulas_exist():
    names = re.findall(
        r"`(flexpool_jax(?:\.\w+)+)\.(\w+)`", section("The paper's formulas, and where they are")
    )
    assert len(names) >= 7
    for module, function in names:
        assert callable(getattr(importlib.import_module(module), function))


def test_fields_of_the_choices_exist():
    rows = re.findall(r"^\|.*\|$", section("What the paper leaves open"), re.M)[2:]
    fields = [name for row in rows for name in re.findall(r"`([\w.]+)`", row.split("|")[3])]
    assert len(fields) >= 9
    config = default.get_config()
    for field in fields:
        value = config
        for part in field.split("."):
            assert part in value, f"config.{field}"
            value = value[part]


def test_commands_name_targets_and_configs_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M))
    assert {"train", "test"} <= named <= targets
    configs = re.findall(r"configs/\w+\.py", README)
    assert configs
    assert all((ROOT / config).is_file() for config in configs)


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert "docs/method.svg" in links
    assert all((ROOT / link).is_file() for link in links)
