"""The command line as a user meets it: a mistake costs one line and exit status 2."""

import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flexpool_jax
import launch
from configs import digits
from flexpool_jax import command_line
from flexpool_jax.configuration import write_config
from flexpool_jax.errors import Interrupted, TrainingDiverged

ROOT = Path(__file__).parents[1]
DIGITS = "--config=configs/digits.py:flexpool,reg"
PEER = ("--coordinator_address=localhost:1234", "--num_processes=2")


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def run_workdir(tmp_path):
    """A workdir as a run leaves it, but with an empty checkpoint."""
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "21").mkdir(parents=True)
    write_config(digits.get_config("flexpool,reg"), workdir)
    return workdir


# The common ones stand in tests/black_box.
MISTAKES = [
    ([DIGITS, "--workdir=s3://bucket/run"], ["s3://bucket/run"]),
    ([DIGITS, "--workdir={new}", "--config.seed", "--mode=train", "5"], ["seed has no value"]),
    (["--mode=prepare", "--config=configs/digits.py", "--config.dataset.name=x/y"], ["'x/y'"]),
    (["--mode=eval", "--workdir={run}", "--config=configs/cifar10.py"], ["dataset.name"]),
    (["--workdir={run}", "--config=configs/digits.py:avg"], ["config.pool is 'avg'"]),
    (["--mode=predict", "--workdir={run}", "--images=x", f"--top_k={'9' * 5000}"], ["--top_k=99"]),
    (["--mode=eval", "--workdir={run}", f"--step={'9' * 5000}"], ["--step=99"]),
    (["--config.seed", "3", "--workdir={new}"], ["needs --config=FILE"]),
    (["--mode=sweep", "--workdir={new}"], ["--config=configs/paper_tables.py, also to continue"]),
    ([DIGITS, "--workdir={new}", "--config.dataset.raw_dir=M\udcfc"], ["a path in UTF-8"]),
    ([DIGITS, "--workdir=~nosuchuser/run"], ["~nosuchuser/run", "give the whole path"]),
    ([DIGITS, "--workdir={new}", "--config.dataset.data_dir=~nosuchuser/d"], ["~nosuchuser/d"]),
    (["--mode=report", DIGITS, "--workdir={run}"], ["--mode=report needs no --config"]),
    ([DIGITS, "--workdir={new}", "--num_processes=2"], ["--process_id=I", "--distributed"]),
    ([DIGITS, "--workdir={new}", "--distributed", "--process_id=0"], ["give only one of them"]),
    ([DIGITS, "--workdir={new}", *PEER, "--process_id=2"], ["--process_id=2", "0 to N - 1"]),
    ([DIGITS, "--workdir={new}", "--coordinator_address=node1", *PEER[1:]], ["--process_id=I"]),
    (["--mode=report", "--workdir={new}", *PEER, "--process_id=0"], ["the mode is report\n"]),
    ([DIGITS, "--workdir={new}", "--resize=40"], ["--mode=eval; the mode is train, the default"]),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_mistake_costs_one_line_and_nothing_is_written(
    arguments, words, tmp_path, run_workdir, capsys
):
    (tmp_path / "file").write_text("")
    names = {"new": tmp_path / "new", "file": tmp_path / "file", "run": run_workdir}
    before = files_under(tmp_path)
    status = launch.main([argument.format(**names) for argument in arguments])
    output = capsys.readouterr()
    assert status == 2
    assert output.out == ""
    assert re.fullmatch(r"launch\.py: .+\n", output.err)
    for word in words:
        assert word in output.err
    assert files_under(tmp_path) == before


# What srun and mpirun tell each of two tasks.
TASKS = [
    {"SLURM_STEP_NUM_TASKS": "2"},
    {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "node[1-2]"},
    {"OMPI_COMM_WORLD_SIZE": "2"},
]


@pytest.mark.parametrize("variables", TASKS)
@pytest.mark.parametrize("arguments", [[DIGITS, "--workdir={new}"], ["--workdir={run}"]])
def test_tasks_started_together_without_saying_so_are_refused(
    variables, arguments, tmp_path, run_workdir, monkeypatch, capsys
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    names = {"new": tmp_path / "new", "run": run_workdir}
    mode = "--mode=eval" if "{run}" in arguments[0] else "--mode=train"
    assert launch.main([mode, *(argument.format(**names) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"launch\.py: 2 tasks .*--distributed.*--num_processes=1.*\n", error)
    assert not (tmp_path / "new").exists()


def test_one_task_of_a_batch_script_is_not_several(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")  # What sbatch's own shell has.
    assert command_line.task_count() == 1


def test_the_shell_of_an_allocation_is_one_task(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert command_line.task_count() == 1


@pytest.mark.parametrize(
    ("flag", "field"),
    [
        *((name, name) for name in ("batch_size", "num_epochs", "seed", "pool", "optimizer.name")),
        ("epochs", "num_epochs"),
        ("num_epoch", "num_epochs"),
        ("weight_decay", "optimizer.weight_decay"),
        ("data_dir", "dataset.data_dir"),
        ("scale", "augment.scale"),
        ("image_size", "dataset.image_size"),
    ],
)
def test_a_field_given_as_a_flag_is_recognised(flag, field, capsys):
    assert launch.main([DIGITS, "--workdir=x", f"--{flag}=1"]) == 2
    assert f"unknown flag '--{flag}'; did you mean '--config.{field}'?" in capsys.readouterr().err


@pytest.mark.parametrize("variables", TASKS)
def test_the_runs_of_a_sweep_are_of_one_task_each(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert command_line.task_count() == 2
    command_line.forget_tasks()
    assert command_line.task_count() == 1


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (("--mode=predict", "--images=x.png"), "x.png: there is no such file"),
        (("--mode=export",), "cannot use .*step 21 cannot be read"),
        (("--mode=eval",), "config.dataset.name: unknown data set 'holiday_photos'"),
    ],
)
def test_only_modes_that_read_the_data_ask_for_them(mode, words, run_workdir, capsys):
    config = digits.get_config("flexpool,reg")
    config.dataset.name = "holiday_photos"  # A name that another config file registers.
    write_config(config, run_workdir)
    assert launch.main([f"--workdir={run_workdir}", *mode]) == 2
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize("mode", ["train", "eval", "export"])
@pytest.mark.parametrize(
    ("field", "name"), [("model", "my_model"), ("pool", "my_pool"), ("dataset.name", "my_data")]
)
def test_a_name_that_a_config_file_registers_is_answered_with_a_hint(
    field, name, mode, run_workdir, capsys
):
    config = digits.get_config("flexpool")
    config.update_from_flattened_dict({field: name})
    write_config(config, run_workdir)
    hint = "; if a config file registers it, give its --config too"
    assert launch.main([f"--workdir={run_workdir}", f"--mode={mode}"]) == 2
    error = capsys.readouterr().err
    if (field, mode) != ("dataset.name", "export"):  # Which does not need the data.
        assert f"{name!r}" in error
        assert error.endswith(f"{hint}\n")
    arguments = [DIGITS, f"--config.{field}={name}", f"--mode={mode}"]
    assert launch.main([f"--workdir={run_workdir}", *arguments]) == 2
    assert hint not in capsys.readouterr().err


def test_the_command_that_trained_on_initial_weights_evaluates_them_too(run_workdir, capsys):
    config = digits.get_config("flexpool,reg,init_from=weights.safetensors")
    config.dataset.mean, config.dataset.std = (0.5,), (0.25,)  # As read from the file.
    write_config(config, run_workdir)
    (run_workdir / "checkpoints" / "21").rmdir()
    command = [f"{DIGITS},init_from=weights.safetensors", f"--workdir={run_workdir}"]
    assert launch.main([*command, "--mode=eval"]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_mistakes_are_answered_before_jax_is_imported(tmp_path):
    script = (
        "import sys, launch\n"
        "status = launch.main(sys.argv[1:])\n"
        "heavy = {'jax', 'flax', 'tensorflow_datasets', 'orbax'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else status)\n"
    )
    arguments = [
        "--config=configs/digits.py",
        f"--workdir={tmp_path / 'new'}",
        "--config.batch_size=-1",
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "launch.py: config.batch_size is -1; allowed: a whole number from 1 to 10000000\n"
    )


@pytest.mark.parametrize("flag", ["--help", "-h", "-help", "--helpfull", "--helpshort"])
def test_help_is_one_screen(flag, capsys):
    assert launch.main([DIGITS, flag]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 50
    assert max(map(len, text.splitlines())) <= 80
    for mode in launch.MODES:
        assert re.search(rf"^  {mode} ", text, re.MULTILINE)
    for name in (*command_line.FLAGS, "configs/default.py", "digits.py", "he_recipe.py"):
        assert name in text


def test_command_of_a_new_run():
    command = command_line.read(
        ["--config.seed=3", DIGITS, "--workdir=~/run", "--config.tensorboard", "False"],
        launch.MODES,
        launch.CONFIGS_DIR,
    )
    assert (command.mode, command.step, command.config_given) == ("train", None, True)
    assert command.workdir == os.path.expanduser("~/run")  # noqa: PTH111
    assert command.config.seed == 3
    assert command.config.tensorboard is False
    assert command.config.pool_reg > 0


def test_version_is_printed(capsys):
    assert launch.main(["--version"]) == 0
    assert capsys.readouterr().out == f"flexpool_jax {flexpool_jax.__version__}\n"


def test_run_that_has_begun_continues_with_its_own_config(run_workdir):
    command = command_line.read(["--workdir", str(run_workdir)], launch.MODES, launch.CONFIGS_DIR)
    assert command.config.to_dict() == digits.get_config("flexpool,reg").to_dict()
    assert not command.config_given
    command = command_line.read(
        [f"--workdir={run_workdir}", "--config.num_epochs=1e2"], launch.MODES, launch.CONFIGS_DIR
    )
    assert command.config.num_epochs == 100
    assert command.config_given


def stops_with(error):
    def run(command):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TrainingDiverged("the loss is NaN\nat step 3"), 1),
        (Interrupted("stopped at step 3"), 75),
        (KeyboardInterrupt(), 130),
        (PermissionError(errno.EACCES, "Permission denied", "/run/config.json"), 2),
        (OSError(errno.EROFS, "Read-only file system", "/run/config.json"), 2),
        (OSError(errno.ENOSPC, "No space left on device", "/run/metrics.jsonl"), 1),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."), 1),
    ],
)
def test_how_a_run_ends_is_its_exit_status(error, status, monkeypatch, capsys):
    modes = types.MappingProxyType({"train": launch.Mode(stops_with(error), "")})
    monkeypatch.setattr(launch, "MODES", modes)
    assert launch.main([]) == status
    assert re.fullmatch(r"launch\.py: .+\n", capsys.readouterr().err)


def test_a_mistake_of_the_programs_own_keeps_its_traceback(monkeypatch):
    for error in (
        ZeroDivisionError(),
        FileNotFoundError(errno.ENOENT, "gone", "/run/x"),
        RuntimeError("out of range"),
    ):
        monkeypatch.setattr(launch, "MODES", {"train": launch.Mode(stops_with(error), "")})
        with pytest.raises(type(error)):
            launch.main([])


@given(st.lists(st.text(max_size=12) | st.text(max_size=8).map("--{}".format), max_size=4))
def test_no_argument_causes_a_traceback(arguments):
    assert launch.main(["--mode=eval", *arguments]) in (0, 2)


REGISTERS_ITS_MODEL = """
from flax import linen as nn
import flexpool_jax
from configs import digits

class OneConv(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return {"stage1": nn.relu(nn.Conv(4, (3, 3), strides=2)(images))}

@flexpool_jax.register_model("one_conv_of_a_file", num_stages=1)
def one_conv(*, dtype, norm_axis_name):
    return OneConv()

def get_config():
    config = digits.get_config("flexpool,dataset.image_size=8,batch_size=128,tensorboard=False")
    config.model = "one_conv_of_a_file"
    return config
"""


def test_the_command_that_training_prints_evaluates_the_run(tmp_path, capsys):
    folder = tmp_path / "it's mine"
    folder.mkdir()
    (folder / "one conv.py").write_text(REGISTERS_ITS_MODEL)
    fields = {"num_epochs": "1", "seed": "3", "dataset.data_dir": folder / "data"}
    arguments = [f"--config={folder / 'one conv.py'}", f"--workdir={folder / 'run'}"]
    for name, value in fields.items():
        arguments += [f"--config.{name}", str(value)]
    assert launch.main(arguments) == 0
    ended, _, evaluation = capsys.readouterr().out.partition("evaluate with: ")
    assert re.match(r"final test accuracy \S+ %, best \S+ % \(1 epoch, ", ended)
    program, script, *again = shlex.split(evaluation)
    assert (program, script) == ("python", "launch.py")
    assert launch.main(again) == 0
    assert re.match(r"test accuracy \S+ %, loss ", capsys.readouterr().out)


def run_process(*arguments, **options):
    command = [sys.executable, str(ROOT / "launch.py"), *arguments]
    return subprocess.run(command, check=False, text=True, stderr=subprocess.PIPE, **options)


def test_a_reader_that_has_ended_ends_the_command_without_a_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    done = run_process("--help", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (launch.EXIT_BROKEN_PIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk_costs_one_line():
    with Path("/dev/full").open("w") as full:
        done = run_process("--version", stdout=full)
    assert done.returncode == launch.EXIT_FAILED
    assert done.stderr.startswith("launch.py: output: No space left on device")
    assert done.stderr.count("\n") == 1


def test_an_interrupt_while_it_imports_ends_it_without_a_traceback(tmp_path):
    (tmp_path / "absl").mkdir()
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "absl" / "__init__.py").write_text(interrupt)
    done = run_process("--help", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_report_leaves_nothing_outside_the_cache_folder(tmp_path):
    shutil.copytree(ROOT / "results" / "digits" / "avg", tmp_path / "runs" / "avg")
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if name[:3] not in ("MPL", "XDG")
    }
    done = run_process(
        "--mode=report", f"--workdir={tmp_path / 'runs'}", env=environment | {"HOME": str(home)}
    )
    assert done.returncode == 0, done.stderr
    assert [str(path.relative_to(home)) for path in home.glob("*/*")] == [".cache/flexpool_jax"]


@pytest.mark.parametrize("encoding", ["latin-1", "latin-1:surrogateescape"])
def test_a_name_outside_the_encoding_of_the_output_is_escaped(encoding, tmp_path):
    shutil.copytree(ROOT / "results" / "digits" / "avg", tmp_path / "śr" / "avg")
    done = run_process(
        "--mode=report",
        f"--workdir={tmp_path / 'śr'}",
        env=os.environ | {"PYTHONIOENCODING": encoding},
        stdout=subprocess.PIPE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"see {tmp_path}/\\u015br/report" in done.stdout


LONG = "a" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        [f"--config={LONG}.py"],
        [DIGITS, f"--config.init_from={LONG}"],
        [DIGITS, f"--config.dataset.data_dir={LONG}"],
        [DIGITS, "--config.superclass.epochs=1", f"--config.superclass.mapping={LONG}"],
        ["--config=configs/npz.py", f"--config.dataset.raw_dir={LONG}"],
        ["--config=configs/image_folder.py", f"--config.dataset.raw_dir={LONG}"],
    ],
)
def test_names_that_are_too_long_are_a_mistake(arguments, tmp_path, capsys):
    assert launch.main([*arguments, f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("launch.py: ")
    assert LONG in error
