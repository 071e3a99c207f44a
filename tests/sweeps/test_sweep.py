"""Finished cells are passed over, failed ones stop no other, and a stopped sweep continues."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from flexpool_jax import configuration
from flexpool_jax.errors import Interrupted, SweepFailed, UserError
from flexpool_jax.lock import hold
from flexpool_jax.sweeps import grid
from flexpool_jax.sweeps.sweep import run_sweep
from flexpool_jax.training.interrupts import stop_on_signals
from tests.sweeps import trainer
from tests.sweeps.conftest import CONFIGS_DIR, small_sweep

TRAINER = Path(trainer.__file__)


class Sweeps:
    """Runs sweeps in one folder with the program of trainer.py."""

    def __init__(self, folder):
        self.workdir, self.log = folder / "sweep", folder / "log"
        self.log.touch()

    def run(self, seeds, *, probe=False, columns=("avg",), **fields):
        sweep = small_sweep(seeds=seeds, columns=columns, **fields)
        cells = grid.expand(sweep, CONFIGS_DIR, self.workdir)
        run_sweep(cells, self.workdir, (sys.executable, str(TRAINER), str(self.log)), probe=probe)

    def trained(self):
        """The seeds of the runs that were started, in order, since the last call."""
        started = self.started()
        assert all(flags == "" for _, flags in started)
        return [seed for seed, _ in started]

    def started(self):
        """The seeds and flags of all commands since the last call, in order."""
        lines = self.log.read_text().splitlines()
        self.log.write_text("")
        commands = [line.partition(" ") for line in lines]
        return [(int(folder.rpartition("-")[2]), flags) for folder, _, flags in commands]


@pytest.fixture
def sweeps(tmp_path, request, monkeypatch):
    # The program imports the package, installed or not.
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
    return Sweeps(tmp_path)


def test_finished_cells_are_passed_over(sweeps, capsys):
    sweeps.run((0, 1))
    assert sweeps.trained() == [0, 1]
    sweeps.run((0, 1, 2))
    assert sweeps.trained() == [2]
    assert "cell 3 of 3: digits/avg/seed-2 (about 0 h 01 min left)" in capsys.readouterr().err


def test_a_cell_that_another_process_runs_is_passed_over(sweeps, capsys):
    folder = sweeps.workdir / "digits" / "avg" / "seed-0"
    folder.mkdir(parents=True)
    with hold(folder / ".sweep.lock", "running it too"):
        sweeps.run((0, 1))
    assert sweeps.trained() == [1]
    assert "1 now, 0 failed, 1 being run by other processes" in capsys.readouterr().err
    sweeps.run((0, 1))
    assert sweeps.trained() == [0]
    assert not list(sweeps.workdir.rglob(".sweep.lock"))


def test_a_cell_that_another_process_has_finished_meanwhile_is_passed_over(sweeps, capsys):
    sweeps.run((trainer.FINISHES_THE_NEXT, trainer.FINISHES_THE_NEXT + 1))
    assert sweeps.trained() == [trainer.FINISHES_THE_NEXT]
    assert "2 cells: 1 finished before, 1 now, 0 failed\n" in capsys.readouterr().err


def test_failed_cells_stop_no_other_and_are_told_at_the_end(sweeps, capsys):
    bad = (trainer.DIVERGES, trainer.IS_KILLED, trainer.LEAVES_NOTHING)
    with pytest.raises(SweepFailed) as error:
        sweeps.run((*bad, 0))
    assert sweeps.trained() == [*bad, 0]
    assert str(error.value) == (
        "3 of 4 cells failed: digits/avg/seed-101 (the loss is nan at step 3); "
        "digits/avg/seed-102 (ended by SIGKILL); digits/avg/seed-103 (it ended without a result)"
    )
    assert "4 cells: 0 finished before, 1 now, 3 failed" in capsys.readouterr().err
    with pytest.raises(SweepFailed):
        sweeps.run((*bad, 0))
    assert sweeps.trained() == list(bad)


def test_another_config_in_a_cells_folder_is_refused_before_anything_runs(sweeps):
    sweeps.run((1,), num_epochs=5)
    sweeps.trained()
    with pytest.raises(UserError, match=r"seed-1 holds .*config.num_epochs is 6 \(was 5\)"):
        sweeps.run((0, 1), num_epochs=6)
    with pytest.raises(UserError, match=r"seed-1 holds .*config.batch_size is 32 \(was 64\)"):
        sweeps.run((0, 1), num_epochs=5, overrides="batch_size=32")
    assert sweeps.trained() == []


def test_a_cell_whose_checkpoints_could_not_be_read_is_refused_before_anything_runs(sweeps):
    columns = ("avg", "max+dataset.mean=[0.5]+dataset.std=[0.25]")
    with pytest.raises(UserError, match=r"digits/max\+dataset.mean=\[0.5\].*/seed-0 has a \["):
        sweeps.run((0,), columns=columns)
    assert sweeps.trained() == []
    assert not sweeps.workdir.exists()


def test_a_cell_that_failed_before_it_saved_anything_takes_the_corrected_config(sweeps):
    failing = (trainer.LEAVES_NOTHING,)
    with pytest.raises(SweepFailed, match="ended without a result"):
        sweeps.run(failing, overrides="batch_size=999")
    folder = sweeps.workdir / f"digits/avg/seed-{trainer.LEAVES_NOTHING}"
    assert configuration.read_config(folder).batch_size == 999
    with pytest.raises(SweepFailed, match="ended without a result"):
        sweeps.run(failing)
    assert configuration.read_config(folder).batch_size == 64
    (folder / "superclass/checkpoints/11").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds .*config.batch_size is 32 \(was 64\)"):
        sweeps.run(failing, overrides="batch_size=32")


@pytest.mark.parametrize(
    ("lock", "reason"),
    [(".sweep.lock", "holds a run of another config"), (".lock", "in use by another process")],
)
def test_the_config_of_a_cell_that_another_process_runs_is_kept(sweeps, lock, reason):
    (cell,) = grid.expand(small_sweep(columns=("avg",), seeds=(1,)), CONFIGS_DIR)
    folder = sweeps.workdir / cell.name
    folder.mkdir(parents=True)
    configuration.write_config(cell.config, folder)
    with (
        hold(folder / lock, "running it too"),
        pytest.raises(SweepFailed, match=f"1 of 1 cells failed: .*{reason}"),
    ):
        sweeps.run((1,), overrides="batch_size=32")
    assert configuration.read_config(folder).batch_size == 64
    assert sweeps.trained() == []


def test_folders_and_cadences_may_change(sweeps):
    sweeps.run((1,))
    sweeps.run((1,), overrides="log_every_steps=7 dataset.data_dir=/elsewhere")
    assert sweeps.trained() == [1]


def test_cells_that_have_begun_do_not_need_the_weights_they_began_with(sweeps, tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file(
        {"params.w": np.zeros(1, np.float32)}, weights, metadata={"mean": "0.5", "std": "0.25"}
    )
    sweeps.run((1,), overrides=f"init_from={weights}")
    sweeps.trained()
    weights.unlink()
    with pytest.raises(UserError, match=r"seed-0: config.init_from: .*: there is no such file"):
        sweeps.run((1, 0), overrides=f"init_from={weights}")
    assert sweeps.trained() == []
    folder = sweeps.workdir / "digits/avg/seed-1"
    sweeps.run((1,), overrides=f"init_from={weights}")
    assert sweeps.trained() == []
    (folder / "result.json").unlink()
    (folder / "checkpoints/11").mkdir(parents=True)
    sweeps.run((1,), overrides=f"init_from={weights}")
    assert sweeps.trained() == [1]
    assert configuration.read_config(folder).dataset.mean == (0.5,)


def test_damaged_config_fails_its_cell_alone(sweeps):
    folder = sweeps.workdir / "digits/avg/seed-1"
    folder.mkdir(parents=True)
    configuration.config_path(folder).write_text("{")
    with pytest.raises(SweepFailed, match=r"1 of 2 cells failed: .*config.json is damaged"):
        sweeps.run((1, 0))
    assert sweeps.trained() == [0]
    assert configuration.config_path(folder).read_text() == "{"


@pytest.mark.parametrize("content", ["", "[]", '{"config_digest": "0"}'])
def test_damaged_result_is_no_result(sweeps, content):
    sweeps.run((0,))
    (sweeps.workdir / "digits/avg/seed-0/result.json").write_text(content)
    sweeps.run((0,))
    sweeps.run((0,))
    assert sweeps.trained() == [0, 0]


def tell_to_stop(waiting, number=signal.SIGTERM):
    """Sends this process a signal as soon as a cell's process says that it waits for one."""

    def tell():
        deadline = time.monotonic() + 60
        while not waiting.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        if waiting.exists():
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def hangup():
    """SIGHUP has its default effect; under nohup, it would be ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_stop_it_waits_for_the_cell_and_goes_on_the_next_time(sweeps, number):
    thread = tell_to_stop(sweeps.workdir / f"digits/avg/seed-{trainer.WAITS}/waiting", number)
    # As in launch.py, whose own way of stopping must not leave the run behind.
    with stop_on_signals(), pytest.raises(Interrupted, match="1 of 3 cells are finished"):
        sweeps.run((0, trainer.WAITS, 1))
    thread.join()
    assert sweeps.trained() == [0, trainer.WAITS]


TRAINING, PROBING = "", "--mode=probe"


def test_each_cell_is_probed_once_it_is_trained(sweeps):
    sweeps.run((0, 1), probe=True)
    assert sweeps.started() == [(0, TRAINING), (0, PROBING), (1, TRAINING), (1, PROBING)]
    sweeps.run((0, 1), probe=True)
    assert sweeps.started() == []


def test_finished_cells_without_a_probe_of_their_own_are_probed_alone(sweeps, capsys):
    sweeps.run((0, 1))
    (sweeps.workdir / "digits/avg/seed-1/probe.json").write_text('{"config_digest": "0"}')
    assert sweeps.trained() == [0, 1]
    sweeps.run((0, 1), probe=True)
    assert sweeps.started() == [(0, PROBING), (1, PROBING)]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cell ")]
    # The time of a probe is known once there is one, and does not count what is trained already.
    assert lines[-2:] == [
        "cell 1 of 2: digits/avg/seed-0 (time left not known yet)",
        "cell 2 of 2: digits/avg/seed-1 (about 0 h 01 min left)",
    ]


def test_probe_of_another_step_is_not_that_of_the_run(sweeps):
    sweeps.run((0,), probe=True)
    path = sweeps.workdir / "digits/avg/seed-0/probe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 2}))
    sweeps.started()
    sweeps.run((0,), probe=True)
    assert sweeps.started() == [(0, PROBING)]


def test_failed_probe_is_its_cells_failure_and_costs_no_second_training(sweeps):
    reason = r"seed-105 \(--mode=probe: the checkpoint is damaged\)$"
    with pytest.raises(SweepFailed, match=rf"1 of 2 cells failed: .*{reason}"):
        sweeps.run((trainer.PROBE_FAILS, 0), probe=True)
    assert sweeps.started() == [(105, TRAINING), (105, PROBING), (0, TRAINING), (0, PROBING)]
    with pytest.raises(SweepFailed):
        sweeps.run((trainer.PROBE_FAILS, 0), probe=True)
    assert sweeps.started() == [(105, PROBING)]


def test_told_to_stop_while_it_probes_it_probes_again_the_next_time(sweeps):
    seed = trainer.PROBE_WAITS_ONCE
    thread = tell_to_stop(sweeps.workdir / f"digits/avg/seed-{seed}/waiting")
    with stop_on_signals(), pytest.raises(Interrupted, match="0 of 2 cells are finished"):
        sweeps.run((seed, 0), probe=True)
    thread.join()
    assert sweeps.started() == [(seed, TRAINING), (seed, PROBING)]
    sweeps.run((seed, 0), probe=True)
    assert sweeps.started() == [(seed, PROBING), (0, TRAINING), (0, PROBING)]


MINE = """\
import jax.numpy as jnp
from flax import linen as nn

from configs import default, digits
from flexpool_jax import register_model, register_pool


@register_pool("middle_value")
def middle_value(x):
    return jnp.median(x, axis=(1, 2))


class OneConv(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return {"stage1": nn.relu(nn.Conv(4, (3, 3), strides=2)(images))}


@register_model("one_conv_of_mine", num_stages=1)
def one_conv(*, dtype, norm_axis_name):
    return OneConv()


def get_config(variant=""):
    config = digits.get_config()
    config.model = "one_conv_of_mine"
    config.dataset.image_size = 8
    config.num_epochs = 1
    return default.apply_variant(config, variant)
"""


def test_what_a_config_file_registers_is_there_in_every_cell(tmp_path):
    configs, workdir = tmp_path / "configs", tmp_path / "sweep"
    configs.mkdir()
    (configs / "mine.py").write_text(MINE)
    sweep = small_sweep(
        datasets=("mine",),
        columns=("middle_value",),
        overrides=f"dataset.data_dir={tmp_path / 'data'} tensorboard=False",
    )
    cells = grid.expand(sweep, configs)
    run_sweep(cells, workdir, (sys.executable, "launch.py"))
    result = json.loads((workdir / "mine/middle_value/seed-0/result.json").read_text())
    assert (result["config"]["pool"], result["config"]["model"]) == (
        "middle_value",
        "one_conv_of_mine",
    )
