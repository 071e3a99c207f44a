"""Reads launch.py's command line: its flags, the config and the config's overrides.

The config may come from a file, or from the workdir of a run that has begun; its fields tell how
the overrides are to be read. absl and ml_collections do the parsing; what is here looks at the
arguments first, so that a mistake costs one line with the closest valid name.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from flexpool_jax import configuration
from flexpool_jax.configuration.overrides import is_override
from flexpool_jax.errors import UserError, unknown_name

# Flag and meaning, in the order in which --help shows them.
FLAGS = {
    "config": "a file of configs/, with a variant after a colon",
    "workdir": "the run's folder: checkpoints, metrics and results",
    "mode": "what to do",
    "step": "which checkpoint to use: best, latest or a step's number",
    "images": "what to predict: an image file, a folder of them or a glob",
    "top_k": "how many classes to give for each image, most probable first",
}
DEFAULT_MODE = "train"
DEFAULT_STEP = "latest"

_HELP = ("-h", "-?", "--h", "-help", "--help", "--helpshort", "--helpfull")


@dataclasses.dataclass(frozen=True)
class Command:
    """What a command line asks for.

    Attributes:
        mode: One of the modes that exist.
        workdir: Absolute path of the run's folder; empty if none was given.
        step: "best", "latest" or a number, as text; None if not given.
        images: The value of `--images`; None if not given.
        top_k: A number from 1; None if not given.
        config: The config of `--config`, else of the workdir, overrides applied; None if neither
            is there.
        config_given: Whether `--config` or an override was given, so that the config may be another
            than the workdir's.
    """

    mode: str
    workdir: str
    step: str | None
    images: str | None
    top_k: int | None
    config: ConfigDict | None
    config_given: bool

    def require_workdir(self) -> str:
        """Returns the workdir, or raises a UserError if none was given."""
        if not self.workdir:
            raise UserError(f"--mode={self.mode} needs --workdir=FOLDER; see --help")
        return self.workdir

    def require_config(self) -> ConfigDict:
        """Returns the config, or raises a UserError if there is none."""
        if self.config is None:
            raise UserError(
                f"--mode={self.mode} needs --config=FILE, e.g. --config=configs/digits.py, "
                "or the --workdir of a run that has begun; see --help"
            )
        return self.config


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether one of the arguments is a request for help."""
    return any(argument in _HELP for argument in arguments)


def read(
    arguments: Sequence[str], modes: Iterable[str], configs_dir: str | os.PathLike[str]
) -> Command:
    """Reads a command line.

    Args:
        arguments: The command line without the program's name.
        modes: The names that `--mode` may have.
        configs_dir: The folder with the project's own config files.

    Raises:
        UserError: For any argument that cannot be understood.
    """
    # ml_collections' own pages write `launch.py -- --config=...`; nothing here needs the dashes.
    arguments = [argument for argument in arguments if argument != "--"]
    config_argument = _last_value(arguments, "config")
    workdir = _expand(_last_value(arguments, "workdir"))
    config: ConfigDict | None = None
    if config_argument is not None:
        config = configuration.load_config(config_argument, configs_dir)
    elif workdir and configuration.config_path(workdir).is_file():
        config = configuration.read_config(workdir)
    if config is None:
        others = [argument for argument in arguments if not is_override(argument)]
    else:
        others = configuration.apply_overrides(config, arguments)
    overridden = len(others) < len(arguments)
    flag_values = _parse_flags(others, modes)
    if overridden and config is None:
        raise UserError(
            "--config.FIELD=VALUE needs --config=FILE, e.g. --config=configs/digits.py, "
            "or the --workdir of a run that has begun"
        )
    return Command(
        mode=str(flag_values["mode"].value),
        workdir=workdir,
        step=flag_values["step"].value,
        images=flag_values["images"].value,
        top_k=None if flag_values["top_k"].value is None else int(flag_values["top_k"].value),
        config=config,
        config_given=config_argument is not None or overridden,
    )


def _last_value(arguments: Sequence[str], name: str) -> str | None:
    """Returns the value of a flag, written with `=` or a space; of several the last, as absl does.

    The config has to be known before absl parses the rest.
    """
    value = None
    for i, argument in enumerate(arguments):
        flag, equals, text = argument.partition("=")
        if flag not in (f"--{name}", f"-{name}"):
            continue
        if not equals:
            following = arguments[i + 1 : i + 2]
            if not following or following[0].startswith("--"):
                raise UserError(f"--{name} has no value; write --{name}=VALUE")
            text = following[0]
        if not text:
            raise UserError(f"--{name} is empty; allowed: {FLAGS[name]}")
        value = text
    return value


def _expand(workdir: str | None) -> str:
    """Returns an absolute path: a shell leaves the `~` of `--workdir=~/run` to the program."""
    if workdir is None:
        return ""
    if "://" in workdir:
        return workdir
    return str(Path(os.path.expanduser(workdir)).absolute())  # noqa: PTH111 (~name may be unknown)


def _parse_flags(arguments: Sequence[str], modes: Iterable[str]) -> flags.FlagValues:
    """Parses what is not an override, and checks the values."""
    flag_values = flags.FlagValues()
    defaults = {"mode": DEFAULT_MODE}
    for name, meaning in FLAGS.items():
        flags.DEFINE_string(name, defaults.get(name), meaning, flag_values=flag_values)
    for argument in arguments:
        # absl takes these two without their being defined; one of them hides misspelt flags.
        name = argument.partition("=")[0]
        if name.startswith("-") and name.lstrip("-") in ("flagfile", "undefok"):
            raise unknown_name("flag", name, _flag_names())
    # Flags may stand before and after what turns out not to be one.
    flag_values.set_gnu_getopt(True)
    try:
        positional = flag_values(["launch.py", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        raise unknown_name("flag", f"--{error.flagname}", _flag_names()) from error
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    modes = list(modes)
    if positional:
        raise _unexpected(positional[0], modes)
    mode, step = flag_values["mode"].value, flag_values["step"].value
    if mode not in modes:
        raise unknown_name("mode", mode, modes)
    if step is not None and step not in ("best", "latest") and not _is_number(step):
        raise UserError(f"--step={step}; allowed: best, latest or a step's number")
    top_k = flag_values["top_k"].value
    if top_k is not None and (not _is_number(top_k) or int(top_k) < 1):
        raise UserError(f"--top_k={top_k}; allowed: a whole number from 1")
    return flag_values


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _flag_names() -> list[str]:
    return [*(f"--{name}" for name in FLAGS), "--config.FIELD", "--help"]


def _unexpected(argument: str, modes: Sequence[str]) -> UserError:
    """Explains an argument that belongs to no flag."""
    if argument in modes:
        hint = f"did you mean --mode={argument}?"
    elif argument.partition(":")[0].endswith(".py"):
        hint = f"did you mean --config={argument}?"
    else:
        hint = "values with spaces want quotes, and lists commas;"
    return UserError(
        f"unexpected argument {argument!r}; {hint} allowed: {', '.join(_flag_names())}"
    )
