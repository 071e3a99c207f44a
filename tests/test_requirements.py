"""The requirements: every version pinned, the two lists alike, and pyproject.toml in keeping."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILES = sorted(path.name for path in ROOT.glob("requirements*.txt"))


def requirements(file):
    """The requirements of a file without those it includes, and the names of the included ones."""
    lines = [line.partition(" #")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    included = [line.removeprefix("-r ") for line in lines if line.startswith("-r ")]
    return [Requirement(line) for line in lines if not line.startswith("-r ")], included


@pytest.mark.parametrize("file", FILES)
def test_every_version_is_pinned(file):
    for requirement in requirements(file)[0]:
        assert re.fullmatch(r"==[\w.+!]+", str(requirement.specifier)), str(requirement)


def test_the_gpus_list_is_the_cpus_list_and_cuda():
    added, included = requirements("requirements.txt")
    assert included == ["requirements-cpu.txt"]
    pins = {canonicalize_name(r.name): r.specifier for r in requirements("requirements-cpu.txt")[0]}
    for requirement in added:
        name = canonicalize_name(requirement.name)
        assert name == "jax" or name.startswith(("jax-cuda12", "nvidia-"))
        assert requirement.specifier == pins.get(name, requirement.specifier)
    assert "jax[cuda12]" in {f"{r.name}[{','.join(r.extras)}]" for r in added}


def test_pinned_versions_are_ones_that_the_package_accepts():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    accepted = [*project["dependencies"], *extras["train"], *extras["cpu"]]
    pins = {
        canonicalize_name(r.name): next(iter(r.specifier)).version
        for r in requirements("requirements-cpu.txt")[0]
    }
    for requirement in map(Requirement, accepted):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_no_package_is_listed_twice():
    names = [
        canonicalize_name(requirement.name)
        for file in FILES
        if file != "requirements.txt"
        for requirement in requirements(file)[0]
    ]
    assert len(names) == len(set(names))
