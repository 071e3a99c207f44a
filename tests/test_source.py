"""The hash of the source names the code, wherever it lies."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs import digits
from flexpool_jax import configuration, pools, source
from flexpool_jax.models.registry import MODELS

ROOT = Path(__file__).parents[1]


def ask(folder, function):
    code = f"from flexpool_jax.source import {function}; print({function}())"
    return subprocess.check_output([sys.executable, "-c", code], cwd=folder, text=True).strip()


@pytest.fixture
def copy(tmp_path):
    for name in ("flexpool_jax", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def test_a_copy_elsewhere_has_the_same_hash_and_no_commit(copy):
    assert ask(copy, "source_hash") == source.source_hash()
    assert ask(copy, "commit") == "None"


@pytest.mark.parametrize("name", ["flexpool_jax/pooling.py", "configs/default.py"])
def test_any_change_of_the_code_or_the_configs_changes_it(copy, name):
    with (copy / name).open("a") as file:
        file.write("# changed\n")
    assert ask(copy, "source_hash") != source.source_hash()


def test_a_renamed_file_changes_it(copy):
    (copy / "configs/cifar10.py").rename(copy / "configs/cifar11.py")
    assert ask(copy, "source_hash") != source.source_hash()


def test_what_is_compiled_or_hidden_does_not_count(copy):
    (copy / "configs/.note").write_text("hidden")
    subprocess.check_call([sys.executable, "-m", "compileall", "-q", "flexpool_jax"], cwd=copy)
    assert ask(copy, "source_hash") == source.source_hash()


def test_a_package_inside_somebody_elses_repository_has_no_commit(copy):
    outer = copy / "venv"
    outer.mkdir()
    shutil.move(copy / "flexpool_jax", outer / "flexpool_jax")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(copy)]
    subprocess.check_call([*git, "init", "-q"])
    subprocess.check_call([*git, "commit", "-q", "--allow-empty", "-m", "outer"])
    assert ask(outer, "commit") == "None"


def test_the_commit_is_the_one_that_is_checked_out():
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode:
        pytest.skip("this copy of the project is not in git")
    assert source.commit() == head.stdout.strip()


OWN_CONFIG = """
import flax.linen as nn
from configs import digits
from flexpool_jax import register_model, register_pool

SEEDS = (0, 1)

def power(x):
    return x**2

@register_pool("power_mean")
def power_mean(x):
    return power(x).mean((1, 2))

class Net(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return {"stage1": nn.Conv(8, (3, 3))(images)}

@register_model("net_of_mine", num_stages=1)
def build(*, dtype, norm_axis_name):
    return Net()

def get_config():
    config = digits.get_config("power_mean")
    config.model = "net_of_mine"
    return config
"""


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("power(x).mean", "power(x).max", True),
        ("x**2", "x**3", True),
        ("nn.Conv(8", "nn.Conv(9", True),
        ("SEEDS = (0, 1)", "SEEDS = (2, 3)", False),
    ],
)
def test_a_pool_and_a_model_of_ones_own_count(tmp_path, monkeypatch, old, new, counts):
    monkeypatch.setattr(pools, "POOLS", dict(pools.POOLS))
    monkeypatch.setattr("flexpool_jax.models.registry.MODELS", dict(MODELS))
    hashes = []
    for name, text in (("one", OWN_CONFIG), ("other", OWN_CONFIG.replace(old, new))):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        hashes.append(source.run_source_hash(configuration.load_config(str(path), tmp_path)))
    assert (hashes[0] != hashes[1]) == counts
    assert source.source_hash() not in hashes


def test_without_code_of_ones_own_a_run_has_the_hash_of_the_package():
    assert source.run_source_hash(digits.get_config("flexpool_softmax")) == source.source_hash()
