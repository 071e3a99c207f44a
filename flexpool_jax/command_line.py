"""Reads launch.py's command line: its flags, the config and the config's overrides.

absl parses the flags. `configuration` loads the config and then applies the overrides, because the
type of a field determines how its override is read. ml_collections' `DEFINE_config_file` is not
used: it reads Python files only, but a run that has begun has its config in config.json; for an
error in a config file it shows the whole traceback; and it misreads some overrides.
"""

import dataclasses
import os
from collections.abc import Collection, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from flexpool_jax import configuration, files
from flexpool_jax.configuration.overrides import is_override
from flexpool_jax.errors import UserError, closest_name, one_line, unknown_name

# Flag and meaning, in the order in which --help shows them.
FLAGS = {
    "config": "a file of configs/, with a variant after a colon; a run that has begun "
    "continues with its own if none is given",
    "workdir": "the run's folder: checkpoints, metrics and results",
    "mode": "what to do",
    "step": "which checkpoint to use: best, latest (default) or a step's number",
    "resize": "side in pixels to which the test images are resized",
    "images": "what to predict: an image file, a folder of them or a glob",
    "top_k": "how many classes to give for each image",
    "profile": "traces a few steps for TensorBoard",
    "debug_nans": "names the operation behind the first NaN; slower",
    "shard": "I/N: part I of N of a sweep, I from 0; auto: from a SLURM array",
    "distributed": "all tasks of srun, mpirun, ... train one run",
    "coordinator_address": "HOST:PORT where process 0 of a run listens",
    "num_processes": "processes of this run; 1: a run for each task",
    "process_id": "number of this process, from 0",
}
# Flags without a value.
_SWITCHES = ("profile", "debug_nans", "distributed")
DEFAULT_MODE = "train"
DEFAULT_STEP = "latest"

# Environment variables in which launchers state the number of tasks. SLURM_NTASKS is used only if
# SLURM_STEP_NODELIST is set as well: outside of srun there is a single task.
_TASK_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_SLURM_TASK_COUNT, _SLURM_STEP = "SLURM_NTASKS", "SLURM_STEP_NODELIST"


@dataclasses.dataclass(frozen=True)
class Command:
    """What a command line asks for: the values of `FLAGS`; None for a flag that is not given.

    Numbers are ints in the allowed range, and switches are False if not given.

    Attributes:
        workdir: Absolute path of the run's folder; empty if none was given.
        step: "best", "latest" or a number, as text.
        config: The config of `--config`, otherwise that of the workdir, with the overrides
            applied; None if there is neither.
        config_given: Whether there was a `--config` or an override, so that the config may differ
            from the workdir's.
        config_flags: The flags that give `config` again, if there was a `--config`, whose file may
            register parts of the run; otherwise empty.
    """

    mode: str
    workdir: str
    step: str | None
    resize: int | None
    images: str | None
    top_k: int | None
    profile: bool
    debug_nans: bool
    shard: str | None
    distributed: bool
    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None
    config: ConfigDict | None
    config_given: bool
    config_flags: tuple[str, ...]


def read(
    arguments: Sequence[str], modes: Collection[str], configs_dir: str | os.PathLike[str]
) -> Command:
    """Reads a command line; it may be called many times in one process.

    Args:
        arguments: The command line without the program's name.
        modes: The names that `--mode` may have.
        configs_dir: The folder with the project's own config files.

    Raises:
        UserError: For any argument that cannot be understood.
    """
    # ml_collections' documentation writes `launch.py -- --config=...`; the dashes are ignored here.
    arguments = [argument for argument in arguments if argument != "--"]
    values, _ = _parse(arguments)
    if values["mode"] not in modes:
        raise unknown_name("mode", values["mode"], modes)
    step = values["step"]
    if step not in (None, "best", "latest") and _whole(step) < 0:
        raise UserError(f"--step={step[:40]}; allowed: best, latest or a step's number")
    _read_number(values, "resize", 8, 1024)
    _read_number(values, "top_k", 1)
    _check_processes(values)
    workdir = values["workdir"] = _expand(values["workdir"] or "")
    file = values["config"]
    overridden = any(map(is_override, arguments))
    config: ConfigDict | None = None
    config_flags: list[str] = []
    if file is not None:
        config = configuration.load_config(file, configs_dir)
    elif workdir and configuration.config_path(workdir).is_file():
        config = configuration.read_config(workdir)
    elif overridden:
        raise UserError(
            "--config.FIELD=VALUE needs --config=FILE, e.g. --config=configs/digits.py, "
            "or the --workdir of a run that has begun"
        )
    rest = arguments
    if config is not None:
        rest = configuration.apply_overrides(config, arguments)
        if file is not None:
            config_flags = [f"--config={file}", *configuration.overrides_of(config, arguments)]
    _, others = _parse(rest)
    if others:
        raise _unexpected(others[0], modes)
    values["config"] = config
    return Command(
        **values,
        config_given=file is not None or overridden,
        config_flags=tuple(config_flags),
    )


def _parse(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns the flags' values, the last one if a flag is repeated, and all other arguments."""
    flag_values = flags.FlagValues()
    for name, meaning in FLAGS.items():
        if name in _SWITCHES:
            flags.DEFINE_boolean(name, False, meaning, flag_values=flag_values)
            continue
        default = DEFAULT_MODE if name == "mode" else None
        flags.DEFINE_string(name, default, meaning, flag_values=flag_values)
    for argument in arguments:
        # absl accepts these two flags although they are not defined; undefok hides misspelt flags.
        name = argument.partition("=")[0]
        if name.startswith("-") and name.lstrip("-") in ("flagfile", "undefok"):
            raise _unexpected(name, ())
    # Flags may stand before and after arguments that are not flags.
    flag_values.set_gnu_getopt(True)
    try:
        others = flag_values(["launch.py", *arguments], known_only=True)[1:]
    except flags.Error as error:
        raise UserError(one_line(error, limit=None)) from error
    values = flag_values.flag_values_dict()
    for name, value in values.items():
        if value == "" or (isinstance(value, str) and value.startswith("--")):
            raise UserError(f"--{name} has no value; write --{name}=VALUE: {FLAGS[name]}")
    return values, others


def _read_number(values: dict[str, Any], name: str, low: int, high: int | None = None) -> None:
    """Replaces the text of a flag by a whole number from low to high, if the flag is given."""
    text = values[name]
    if text is None:
        return
    number = _whole(text)
    if number < low or (high is not None and number > high):
        allowed = f"a whole number from {low}" + (f" to {high}" if high is not None else "")
        raise UserError(f"--{name}={text[:40]}; allowed: {allowed}")
    values[name] = number


def _whole(text: str) -> int:
    """Returns a whole number from 0, of 15 digits at most; -1 for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else -1


def _check_processes(values: dict[str, Any]) -> None:
    """Checks the flags that describe a run of several processes, and converts their numbers."""
    names = ("coordinator_address", "num_processes", "process_id")
    given = " ".join(f"--{name}={values[name]}" for name in names if values[name] is not None)
    if values["distributed"] and given:
        raise UserError(f"--distributed detects what {given} says; give only one of them")
    if not given:
        return
    if given == "--num_processes=1":
        values["num_processes"] = 1
        return
    address, *numbers = (values[name] for name in names)
    if None in (address, *numbers):
        raise UserError(
            f"{given}; allowed: --coordinator_address=HOST:PORT --num_processes=N --process_id=I "
            "together, or --distributed"
        )
    host, _, port = address.rpartition(":")
    if not host or not 1 <= _whole(port) < 1 << 16:
        raise UserError(
            f"--coordinator_address={address}; allowed: HOST:PORT of process 0, e.g. node1:1234"
        )
    count, index = map(_whole, numbers)
    if not 0 <= index < count:
        raise UserError(f"{given}; allowed: N from 1, and process_id from 0 to N - 1")
    values["num_processes"], values["process_id"] = count, index


def task_count() -> int:
    """Returns how many tasks a launcher such as srun has started together with this one."""
    # In a shell of salloc, SLURM_NTASKS is the allocation's and not that of the shell's own step.
    is_old = _SLURM_STEP in os.environ and _TASK_COUNTS[0] not in os.environ
    names = [*_TASK_COUNTS, *([_SLURM_TASK_COUNT] if is_old else [])]
    counts = [os.environ.get(name, "") for name in names]
    return max((int(count) for count in counts if count.isdigit()), default=1)


def forget_tasks() -> None:
    """Deletes the launchers' variables: `task_count` returns 1 here and in child processes."""
    for name in (*_TASK_COUNTS, _SLURM_STEP):
        os.environ.pop(name, None)


def _expand(workdir: str) -> str:
    """Returns an absolute path; expands `~`, which a shell does not do in `--workdir=~/run`."""
    if not workdir.strip() or "://" in workdir:
        return workdir
    return str(files.expanded(workdir).absolute())


def _unexpected(argument: str, modes: Collection[str]) -> UserError:
    """Returns the error for an argument that belongs to no flag."""
    names = [*(f"--{name}" for name in FLAGS), "--config.FIELD", "--help", "--version"]
    if argument.startswith(("\u2013", "\u2014")):  # Some editors replace two hyphens by a dash.
        return UserError(f"{argument!r} begins with a dash; write two hyphens: --")
    if argument.startswith("-"):
        name = argument.lstrip("-").partition("=")[0]
        # Not "superclass.": --epochs means num_epochs.
        groups = ("", "dataset.", "optimizer.", "augment.")
        fields = [group + name for group in groups if group + name in configuration.FIELDS]
        match = fields[0] if fields else closest_name(name, [*FLAGS, *configuration.FIELDS])
        if match in configuration.FIELDS:
            return UserError(f"unknown flag '--{name}'; did you mean '--config.{match}'?")
        return unknown_name("flag", f"--{name}", names)
    if argument in modes:
        hint = f"did you mean --mode={argument}?"
    elif ".py:" in f"{argument}:":
        hint = f"did you mean --config={argument}?"
    else:
        hint = "a value with spaces needs quotes, and a list needs commas;"
    return UserError(f"unexpected argument {argument!r}; {hint} allowed: {', '.join(names)}")
