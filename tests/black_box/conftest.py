"""Runs launch.py as a user does and reads what it leaves; nothing here knows the code behind it."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from absl import app, flags
from absl import logging as absl_logging

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "launch.py")

# The real network and data of `make train`, small enough for two epochs in a second; at this rate
# rounding hardly moves the numbers that come out.
RESNET = (
    "--config=configs/digits.py:flexpool,reg",
    "--config.dataset.image_size=8",
    "--config.num_epochs=2",
    "--config.learning_rate=1e-3",
    "--config.tensorboard=False",
)

# A user's config file with a backbone of its own, which trains in a fraction of a second.
SMALL_CONFIG = '''\
"""Three small convolutions on the digits at 8x8."""

from flax import linen as nn

from configs import digits
from flexpool_jax import register_model


class ThreeConvs(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        maps, x = {}, images
        for stage, width in enumerate((8, 16, 32), start=1):
            x = nn.relu(nn.Conv(width, (3, 3), strides=min(stage, 2))(x))
            maps[f"stage{stage}"] = x
        return maps


@register_model("three_convs", num_stages=3)
def three_convs(*, dtype, norm_axis_name):
    return ThreeConvs()


def get_config(variant=""):
    config = digits.get_config(variant)
    config.model = "three_convs"
    config.dataset.image_size = 8
    config.batch_size = 128
    config.num_epochs = 3
    config.augment.scale = (1.0, 1.0)
    config.tensorboard = False
    return config
'''


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command ended: its exit status, and all that it wrote."""

    status: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def last_line(self) -> str:
        """The last line of standard error, where a failed command says why."""
        return (self.stderr.splitlines() or [""])[-1]


# One pair for the whole session: loggers keep the stream that was there when they were made.
_STDOUT, _STDERR = io.StringIO(), io.StringIO()
# The root logger's handlers while a command runs: pytest's would keep its warnings from it.
_LOG_HANDLERS: list[logging.Handler] = []


def run_in_process(*arguments: object) -> Done:
    """Runs `python launch.py ARGUMENTS` in this process, which spares the imports."""
    for stream in (_STDOUT, _STDERR):
        stream.seek(0)
        stream.truncate()
    status: object = 0
    with (
        _flags_as_before(),
        _signals_as_before(),
        # The restart for huge pages is asked for already, and would continue here.
        mock.patch.dict(os.environ, GLIBC_TUNABLES="glibc.malloc.hugetlb=1"),
        mock.patch.multiple(os, execv=_pass_over, execve=_pass_over, _exit=sys.exit),
        mock.patch.object(logging.root, "handlers", _LOG_HANDLERS),
        mock.patch.object(absl_logging.get_absl_handler().python_handler, "stream", _STDERR),
        mock.patch.object(sys, "argv", [SCRIPT, *map(str, arguments)]),
        contextlib.redirect_stdout(_STDOUT),
        contextlib.redirect_stderr(_STDERR),
    ):
        try:
            runpy.run_path(SCRIPT, run_name="__main__")
        except SystemExit as end:
            status = end.code
        except Exception:  # As Python itself ends a program.
            traceback.print_exc()
            status = 1
    if status is None:
        status = 0
    if not isinstance(status, int):
        _STDERR.write(f"{status}\n")
        status = 1
    return Done(status, _STDOUT.getvalue(), _STDERR.getvalue())


def _pass_over(*arguments: object) -> None:
    """In the place of os.execv: the program that would be started is the one that runs."""


@contextlib.contextmanager
def _flags_as_before() -> Iterator[None]:
    """Removes what the script defines, since running it again will define it again."""
    app.define_help_flags()  # absl defines these once a process.
    before = set(flags.FLAGS)
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - before:
            # The fields of a config, and the flags of a script: modules define theirs once.
            if "." in name or flags.FLAGS.find_module_defining_flag(name) not in sys.modules:
                delattr(flags.FLAGS, name)
            else:
                flags.FLAGS[name].unparse()


@contextlib.contextmanager
def _signals_as_before() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def start_process(*arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Starts `python launch.py ARGUMENTS` as a process; output and errors share one pipe."""
    return subprocess.Popen(
        [*before, sys.executable, SCRIPT, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def catches(process: subprocess.Popen[str], number: int) -> bool:
    """Whether the program has begun to handle a signal; Python at its start is killed by it."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def run_process(*arguments: object, before: tuple[str, ...] = ()) -> tuple[int, str]:
    """Runs a command to its end; returns its exit status and what it wrote."""
    process = start_process(*arguments, before=before)
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, output


class Launcher:
    """Starts commands that find prepared digits, with the small network unless told otherwise."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "data"
        self.config = folder / "three_convs.py"
        self.config.write_text(SMALL_CONFIG)

    def small(self, *arguments: object, variant: str = "flexpool,reg,dropout,sac") -> list[str]:
        """The arguments of a command that trains the small network, but for --workdir."""
        data_dir = f"--config.dataset.data_dir={self.data_dir}"
        return [f"--config={self.config}:{variant}", data_dir, *map(str, arguments)]

    def resnet(self, *arguments: object) -> list[str]:
        """The arguments of a command that trains ResNet20, but for --workdir."""
        return [*RESNET, f"--config.dataset.data_dir={self.data_dir}", *map(str, arguments)]

    def train(self, workdir: Path, *arguments: object, variant: str = "flexpool,reg") -> Path:
        """Trains the small network to its end and returns the workdir."""
        done = run_in_process(*self.small(f"--workdir={workdir}", *arguments, variant=variant))
        assert done.status == 0, done.output
        return workdir


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """Starts commands; the digits are prepared by the first that needs them."""
    return Launcher(tmp_path_factory.mktemp("black_box"))


@pytest.fixture(scope="session")
def small_run(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of the small network after three epochs of 11 steps; not to be changed."""
    workdir = tmp_path_factory.mktemp("runs") / "small"
    arguments = launcher.small(f"--workdir={workdir}", "--config.tensorboard=True")
    done = run_in_process(*arguments)
    assert done.status == 0, done.output
    return workdir


@pytest.fixture(scope="session")
def resnet_run(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of ResNet20 after two epochs of 22 steps; not to be changed."""
    workdir = tmp_path_factory.mktemp("runs") / "resnet"
    done = run_in_process(*launcher.resnet(f"--workdir={workdir}"))
    assert done.status == 0, done.output
    return workdir


@pytest.fixture
def small_copy(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the small network's workdir, to be changed."""
    return shutil.copytree(small_run, tmp_path / "small")


@pytest.fixture
def resnet_copy(resnet_run: Path, tmp_path: Path) -> Path:
    """A copy of ResNet20's workdir, to be changed."""
    return shutil.copytree(resnet_run, tmp_path / "resnet")


@pytest.fixture
def old_workdir(tmp_path: Path) -> Path:
    """A copy of a workdir that release 0.1 wrote: ResNet20 with SAC, three epochs of 11 steps."""
    return shutil.copytree(ROOT / "tests/fixtures/workdir_0_1", tmp_path / "old")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    return json.loads(path.read_text())


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites a JSON file after a change of the object that it holds."""
    values = read_json(path)
    change(values)
    path.write_text(json.dumps(values))


def metrics(workdir: Path, split: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without the one value that the clock decides."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if split in (None, line["split"])]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def outcome(workdir: Path) -> tuple[float, float, float, int, int]:
    """The numbers of result.json that do not depend on the clock or the machine."""
    result = read_json(workdir / "result.json")
    names = ("final_test_accuracy", "final_test_loss", "best_test_accuracy", "step", "epochs")
    return tuple(result[name] for name in names)


def saved_steps(workdir: Path) -> list[int]:
    """The steps of the checkpoints in a workdir."""
    names = (path.name for path in (workdir / "checkpoints").iterdir())
    return sorted(int(name) for name in names if name.isdigit())


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time of change; locks may stay behind."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if not path.is_dir() and not path.name.endswith("lock")
    }


@pytest.fixture
def refuses(tmp_path: Path) -> Callable[..., Done]:
    """Runs a command that must be refused, without a change to any file of the test's."""

    def run(*arguments: object, words: Sequence[object] = ()) -> Done:
        before = snapshot(tmp_path)
        done = run_in_process(*arguments)
        assert_refused(done, *words)
        assert snapshot(tmp_path) == before
        return done

    return run


def assert_refused(done: Done, *words: object, status: int = 2) -> None:
    """A mistake of the user's: one line on standard error that holds the words, no traceback."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("preparing ")]
    assert done.status == status, done.output
    assert done.stdout == ""
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in lines[0]
    for word in words:
        assert str(word) in lines[0], done.stderr
