"""Runs a config file and returns the ConfigDict that its `get_config` builds.

A config file is executed as Python code. An exception inside the file becomes an error of one line
that names the file and the line; a wrong path or argument also becomes an error of one line.
"""

import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict, FrozenConfigDict

from flexpool_jax import files
from flexpool_jax.errors import UserError, closest_name, one_line

# Module name of every config file, so that a config file cannot replace an installed module.
_MODULE_NAME = "flexpool_jax_config_file"


def load_config(argument: str, configs_dir: str | os.PathLike[str]) -> ConfigDict:
    """Runs the config file that a `--config` argument names.

    Args:
        argument: `PATH.py`, or `PATH.py:VARIANT` to pass VARIANT to `get_config`. A relative path
            is looked up in the current folder, then in the parent folder of `configs_dir`.
        configs_dir: The folder whose files the error message suggests if the path does not exist.

    Returns:
        The config, locked, so that no new field can be added by accident.

    Raises:
        UserError: The file does not exist or raises an exception, or `get_config` is missing, does
            not take the argument or does not return a ConfigDict.
    """
    path_text, *arguments = _split(argument)
    path = _find(path_text, Path(configs_dir))
    get_config = _get_config_function(path, path_text)
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        what = (
            "takes no argument after the colon" if arguments else "needs an argument after a colon"
        )
        raise UserError(f"--config={argument}: the get_config of this file {what}") from None
    config = _run(lambda: get_config(*arguments), path, path_text)
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config={argument}: get_config returned {type(config).__name__}; "
            "it must return an ml_collections.ConfigDict"
        )
    if isinstance(config, FrozenConfigDict):
        config = ConfigDict(config)
    # Fails, for example, if a required_placeholder has no value.
    _run(config.lock, path, path_text)
    return config


def config_files(configs_dir: str | os.PathLike[str]) -> list[str]:
    """Lists the names of the files in a folder that define `get_config`, in alphabetical order."""
    files = sorted(Path(configs_dir).glob("*.py"))
    return [file.name for file in files if b"\ndef get_config(" in file.read_bytes()]


def _split(argument: str) -> list[str]:
    """Splits PATH.py:VARIANT into the path and the variant, if there is one.

    A colon in the name of a folder belongs to the path.

    Example:
        >>> _split("a:b/mine.py:flexpool,reg"), _split("a:b/mine.py"), _split("mine:flexpool")
        (['a:b/mine.py', 'flexpool,reg'], ['a:b/mine.py'], ['mine', 'flexpool'])
    """
    stem, ending, variant = argument.partition(".py:")
    if ending:
        return [f"{stem}.py", variant]
    return [argument] if argument.endswith(".py") else argument.split(":", 1)


def _find(path_text: str, configs_dir: Path) -> Path:
    """Returns the absolute path of a config file, or raises UserError with the closest match."""
    for path in (files.expanded(path_text), configs_dir.parent / path_text):
        if path.is_file():
            # Absolute, because `_run` compares it with the paths in tracebacks.
            return path.absolute()
    given = Path(path_text)
    shown = configs_dir.name
    names = config_files(configs_dir)
    if given.parent.is_dir() and given.parent.name not in ("", shown):
        names, shown = config_files(given.parent), str(given.parent)
    match = closest_name(given.name, names)
    hint = f" did you mean {shown}/{match}?" if match else ""
    listed = f" allowed: {', '.join(names)} in {shown}/, or" if names else " allowed:"
    kind = "is a folder" if given.is_dir() else "does not exist"
    raise UserError(
        f"config file {path_text!r} {kind};{hint}{listed} a Python file that defines get_config"
    )


def _get_config_function(path: Path, shown: str) -> Callable[..., object]:
    """Executes the file and returns its `get_config`."""
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {shown!r} is not a Python file; its name must end in .py")
    module: ModuleType = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling look up their module by name while the file is executed.
    sys.modules[_MODULE_NAME] = module
    loader = spec.loader
    _run(lambda: loader.exec_module(module), path, shown)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(f"config file {shown!r} defines no function get_config")
    return get_config


def _run(step: Callable[[], object], path: Path, shown: str) -> object:
    """Calls `step`, and converts its exceptions to a UserError of one line with file and line.

    Args:
        step: Executes the config file or calls its `get_config`.
        path: Absolute path of the config file.
        shown: Path of the config file as the user wrote it.
    """
    try:
        return step()
    except UserError:
        raise
    except SyntaxError as error:
        where = f"{error.filename or shown}:{error.lineno}"
        raise UserError(f"{where}: {type(error).__name__}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        # The innermost line in the user's file helps more than a line inside a library.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{shown}:{lines[-1]}" if lines else shown
        message = one_line(error, limit=None)
        # A locked ConfigDict lists all of its fields before it names the closest.
        if unknown := re.match(r"""'Key "(.*?)" does not exist and cannot be added""", message):
            closest = re.search(r'Did you mean "(.*?)"', message)
            hint = f" did you mean {closest[1]!r}?" if closest else ""
            message = f"unknown field {unknown[1]!r};{hint} configs/default.py explains all fields"
            raise UserError(f"{where}: {message}") from error
        raise UserError(f"{where}: {type(error).__name__}: {message}") from error
