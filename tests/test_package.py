"""Importing the package costs nothing; its names are there when they are asked for."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flexpool_jax


def test_import_does_not_start_jax():
    script = (
        "import sys, flexpool_jax, flexpool_jax.configuration, flexpool_jax.command_line\n"
        "from flexpool_jax.cpu import prepare_process\n"
        "sys.exit(sorted({'jax', 'flax', 'numpy', 'tensorflow'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_name_is_there():
    for name in flexpool_jax.__all__:
        assert callable(getattr(flexpool_jax, name))
        assert name in dir(flexpool_jax)


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="no attribute 'FlexPol'"):
        flexpool_jax.FlexPol  # noqa: B018


def test_an_installed_copy_has_every_file():
    package = Path(flexpool_jax.__file__).parent
    setuptools = tomllib.loads((package.parent / "pyproject.toml").read_text())["tool"][
        "setuptools"
    ]
    patterns = setuptools["package-data"]["flexpool_jax"]
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    others = {path for path in files if path.suffix != ".py"}
    assert others == {path for pattern in patterns for path in package.glob(pattern)}
    assert all((path.parent / "__init__.py").exists() for path in files - others)
