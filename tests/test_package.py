"""Importing the package costs nothing; its names are there when they are asked for."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flexpool_jax

ROOT = Path(__file__).parents[1]


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


# Top-level modules of the extra `train` that no package of the base install needs.
TRAIN_MODULES = (
    *("array_record", "filelock", "grain", "matplotlib", "ml_collections", "pandas", "PIL"),
    *("requests", "safetensors", "sklearn", "statsmodels", "tensorboardX", "tensorflow_datasets"),
    "tqdm",
)


def test_the_base_install_is_enough_for_all_but_training_and_files_of_weights():
    # None in the place of a module makes importing it an error.
    script = f"""
import sys
for name in {TRAIN_MODULES}:
    sys.modules[name] = None

import jax, jax.numpy as jnp, numpy as np
import flexpool_jax

classify = flexpool_jax.load_exported("results/models/flexpool/export")
print(classify(np.zeros((2, 28, 28, 1), np.uint8)).shape)
model = flexpool_jax.create_model("resnet20", sac=True)
params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
print(jax.eval_shape(flexpool_jax.flexpool_regularizer, params).shape)

needs_more = []
for name in flexpool_jax.__all__:
    try:
        getattr(flexpool_jax, name)
    except ModuleNotFoundError as error:
        assert 'pip install ".[train]"' in str(error) and error.name in str(error), error
        needs_more.append(name)
print(*needs_more)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "(2, 10)",
        "()",
        "load_weights register_dataset evaluate load_trained train",
    ]
