"""Drives launch.py as a user does, in processes of its own, on a small real data set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).parents[2]

# Digits at 8x8, as they were scanned, make a ResNet20 quick enough to be started many times.
SMALL = (
    "--config=configs/digits.py:flexpool,reg,dropout,sac",
    "--config.dataset.image_size=8",
    "--config.batch_size=128",
    "--config.num_epochs=3",
    "--config.tensorboard=False",
)

# All-reduces between processes on a CPU take milliseconds, so the network is as small as can be.
TINY = """\
import os, time
from flax import linen as nn
import numpy as np
from configs import digits
from flexpool_jax import register_dataset, register_model

class Tiny(nn.Module):
    norm_axis_name: str | None
    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(4, (3, 3), strides=2, use_bias=False)(images)
        x = nn.BatchNorm(not train, momentum=0.9, axis_name=self.norm_axis_name)(x)
        first = nn.relu(x)
        return {"stage1": first, "stage2": nn.relu(nn.Conv(8, (3, 3))(first))}

@register_model("tiny", num_stages=2)
def tiny(*, dtype, norm_axis_name):
    return Tiny(norm_axis_name)

@register_dataset("stripes")
def load_stripes():
    if os.environ.get("KILLED") == os.environ.get("PROCESS", "none"):
        os.kill(os.getpid(), 9)
    random = np.random.default_rng(0)
    labels = np.arange(203) % 3
    images = random.integers(0, 120, (203, 8, 8, 1))
    images[np.arange(203), labels] += 100
    return {"train": (images[:160].astype(np.uint8), labels[:160]),
            "test": (images[160:].astype(np.uint8), labels[160:])}, ["a", "b", "c"]

def get_config(variant=""):
    config = digits.get_config(variant or "flexpool,reg,sac")
    config.model, config.dataset.name = "tiny", "stripes"
    config.sac.weights = (0.3, 0.7)
    config.batch_size, config.eval_batch_size, config.num_epochs = 16, 12, 2
    config.learning_rate, config.log_every_steps = 0.003, 1
    config.tensorboard = False
    return config
"""


@pytest.fixture
def tiny_config(tmp_path: Path) -> Path:
    """The config file of a run that takes no time."""
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of prepared data for all runs."""
    return tmp_path_factory.mktemp("data")


class Launcher:
    """Starts launch.py with the session's data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    def start(
        self, *arguments: str, devices: int = 1, before: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        """Starts a command and returns its process, output and errors in one pipe."""
        env = dict(os.environ)
        if devices > 1:
            env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        if any(argument.startswith("--config=") for argument in arguments):
            arguments = (f"--config.dataset.data_dir={self.data_dir}", *arguments)
        return subprocess.Popen(
            [*before, sys.executable, "launch.py", *arguments],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self,
        *arguments: str,
        devices: int = 1,
        before: tuple[str, ...] = (),
        status: int = 0,
    ) -> str:
        """Runs a command to its end, checks its exit status and returns what it printed."""
        process = self.start(*arguments, devices=devices, before=before)
        try:
            output, _ = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == status, output
        return output


@pytest.fixture(scope="session")
def launch(data_dir: Path) -> Launcher:
    """Starts launch.py."""
    return Launcher(data_dir)


@pytest.fixture(scope="session")
def finished_run(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of an uninterrupted small run."""
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    launch.run(*SMALL, f"--workdir={workdir}")
    return workdir


def read_metrics(workdir: Path, split: str | None = None) -> list[dict]:
    """The lines of metrics.jsonl, without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["images_per_second"]
        line.pop("data_wait", None)  # Of streamed data alone.
    return [line for line in lines if split in (None, line["split"])]


def saved_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of a workdir's latest checkpoint, by name, whatever the model."""
    items = ("model", "optimizer")
    with ocp.CheckpointManager(workdir / "checkpoints", item_names=items) as manager:
        restored = manager.restore(
            manager.latest_step(),
            args=ocp.args.Composite(**{name: ocp.args.StandardRestore() for name in items}),
        )
    leaves = jax.tree_util.tree_leaves_with_path({name: restored[name] for name in items})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_run(workdir: Path, other: Path) -> None:
    """Compares two runs bit by bit: every array saved last, line logged and prediction."""
    assert_same_arrays(workdir, other)
    assert read_metrics(workdir) == read_metrics(other)
    assert (workdir / "predictions.npz").read_bytes() == (other / "predictions.npz").read_bytes()


def assert_same_arrays(workdir: Path, other: Path) -> None:
    """Compares every array that two runs saved last, bit by bit."""
    arrays, others = saved_arrays(workdir), saved_arrays(other)
    assert len(arrays) > 20
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
