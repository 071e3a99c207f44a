"""What a workdir remembers of its run's config, and whether a run may continue with another one."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flexpool_jax import files
from flexpool_jax.configuration.fields import FIELDS, definition, field_names, get_field
from flexpool_jax.errors import UserError

# What a run writes into its workdir: files by their endings, and these folders.
_FILE_SUFFIXES = (".json", ".jsonl", ".npz")
_FOLDERS = (
    "checkpoints",
    "checkpoints_damaged",
    "checkpoints_superseded",
    "superclass",
    "tensorboard",
)


@dataclasses.dataclass(frozen=True)
class Change:
    """A field in which a config differs from the one a workdir was begun with."""

    field: str
    saved: Any
    given: Any

    def __str__(self) -> str:
        """Says it in the words of a log line."""
        return f"config.{self.field} is {self.given!r} (was {self.saved!r})"


def config_path(workdir: str | os.PathLike[str]) -> Path:
    """Returns where a workdir keeps its config."""
    return Path(workdir) / "config.json"


def has_checkpoint(workdir: str | os.PathLike[str]) -> bool:
    """Whether a workdir holds a finished checkpoint; Orbax names each folder after its step."""
    checkpoints = Path(workdir) / "checkpoints"
    return checkpoints.is_dir() and any(entry.name.isdigit() for entry in checkpoints.iterdir())


def check_workdir(workdir: str) -> None:
    """Checks that a run can write to a folder, or create it. Nothing is written.

    Raises:
        UserError: When the path cannot be a folder's, a file is in the way, a permission is
            missing, or something in the folder is not what a run writes there.
    """
    if "://" in workdir or "\0" in workdir or not workdir.strip():
        raise UserError(f"--workdir={workdir!r}; allowed: the path of a folder on this machine")
    try:
        workdir.encode()
    except UnicodeEncodeError:
        raise UserError(f"--workdir={workdir!a} is not UTF-8; allowed: a name that is") from None
    folder = Path(workdir).absolute()
    if folder.parts[-1].startswith("~"):
        raise UserError(f"--workdir={workdir}: there is no user of that name; give the whole path")
    while not _exists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"--workdir={workdir}: {folder} is a file; allowed: a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={workdir}: no permission to write to {folder}")
    if folder == Path(workdir).absolute() and os.access(folder, os.R_OK):
        _check_contents(folder)


def _exists(path: Path) -> bool:
    """Whether a path exists; a link counts even if what it points to is missing."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # A name that is too long, or links that lead in a circle.
        raise UserError(f"--workdir: {path}: {error.strerror}") from error
    return True


def _check_contents(workdir: Path) -> None:
    """Refuses links to files, through which a run would write elsewhere, and misplaced folders."""
    for path in sorted(workdir.iterdir()):
        is_folder = path.is_dir()
        if path.is_symlink() and not is_folder:
            raise UserError(f"{path} is a link to a file; put the file itself there, or remove it")
        if is_folder and (path.suffix in _FILE_SUFFIXES or path.name == ".lock"):
            raise UserError(f"{path} is a folder where a file belongs; move it away")
        if not is_folder and path.name in _FOLDERS:
            raise UserError(f"{path} is a file where a folder belongs; move it away")


def write_config(config: ConfigDict, workdir: str | os.PathLike[str]) -> None:
    """Writes a workdir's config.json, which is whole or absent at every moment.

    Args:
        config: The config to write.
        workdir: An existing folder.

    Raises:
        OSError: When the folder cannot be written to; a config that was there stays as it was.
    """
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"
    files.write_whole(config_path(workdir), text.encode())


def read_config(workdir: str | os.PathLike[str]) -> ConfigDict:
    """Reads a workdir's config.json back into the config that was written.

    Returns:
        The config, locked, its tuples tuples again.

    Raises:
        UserError: When the file is missing or damaged.
    """
    path = config_path(workdir)
    values = files.read_json(path)
    if values is None:
        raise UserError(f"{workdir} is not a workdir of a run: it has no config.json")
    try:
        return config_from_json(values)
    # A name that no field can have, say, or a group where a field should be.
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def config_from_json(values: Mapping[str, Any]) -> ConfigDict:
    """Makes a config of what JSON kept of one, in config.json or in result.json.

    Returns:
        The config, locked, its tuples tuples again, with the fields that came since it was written.
    """
    config = ConfigDict(_with_tuples(values))
    names = set(field_names(config))
    # Without the group it is not a config of any release, which its checks will say.
    groups = {"", *(name.rpartition(".")[0] for name in names)}
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                name: field.before
                for name, field in FIELDS.items()
                if field.before is not None
                and name not in names
                and name.rpartition(".")[0] in groups
            }
        )
    config.lock()
    return config


def has_effect(name: str, config: ConfigDict) -> bool:
    """Whether a field says what a run computes, and not only where and how.

    An image folder's path does, for there it is the data set.

    Example:
        >>> from configs import default
        >>> config = default.get_config()
        >>> has_effect("learning_rate", config), has_effect("tensorboard", config)
        (True, False)
    """
    is_dataset = name == "dataset.raw_dir" and config.dataset.name == "image_folder"
    return is_dataset or definition(name).has_effect


def digest(config: ConfigDict) -> str:
    """Names a config by what it computes: sixteen hexadecimal digits of a SHA-256.

    Fields without effect (`has_effect`), such as folders and cadences of logging, do not count.

    Example:
        >>> from configs import default
        >>> one, other = default.get_config(), default.get_config()
        >>> other.tensorboard = False
        >>> digest(one) == digest(other)
        True
    """
    values = {
        name: value
        for name, value in _flat(config).items()
        # So that a config without the added fields has the digest that its result was saved with.
        if has_effect(name, config) and value != definition(name).before
    }
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compare_with_workdir(config: ConfigDict, saved: ConfigDict) -> list[Change]:
    """Checks that a run may continue with a config other than the one it was begun with.

    Args:
        config: The config now given.
        saved: The one its workdir holds, as `read_config` returns it.

    Returns:
        The differences that are allowed, to be logged: rates, schedule, epochs, cadences, folders.

    Raises:
        UserError: When fields differ that make the model or the data; names all, with both values.

    Example:
        >>> from configs import digits
        >>> config, saved = digits.get_config(), digits.get_config()
        >>> config.num_epochs = 20
        >>> [str(change) for change in compare_with_workdir(config, saved)]
        ['config.num_epochs is 20 (was 12)']
    """
    given_values, saved_values = _flat(config), _flat(saved)
    changes = [
        Change(name, saved_values.get(name), given_values.get(name))
        for name in sorted(given_values.keys() | saved_values.keys())
        if given_values.get(name) != saved_values.get(name)
    ]
    refused = [change for change in changes if definition(change.field).fixed]
    if refused:
        listed = "; ".join(map(str, refused))
        raise UserError(
            f"the workdir's run was begun with another model or data: {listed}; "
            "give these values again, or another --workdir"
        )
    return changes


def check_resume(config: ConfigDict, workdir: str | os.PathLike[str]) -> list[Change]:
    """Checks that a run in this workdir may begin or continue with this config.

    Returns:
        What `compare_with_workdir` returns; empty for a workdir in which no run has begun.

    Raises:
        UserError: As `compare_with_workdir`, or when there are checkpoints without a config.json
            that would say what they are checkpoints of.
    """
    if config_path(workdir).is_file():
        return compare_with_workdir(config, read_config(workdir))
    if has_checkpoint(workdir):
        raise UserError(
            f"{workdir} holds checkpoints, but no config.json that says of which model and data; "
            "put it back, or give another --workdir"
        )
    return []


def _flat(config: ConfigDict) -> dict[str, Any]:
    """The value of every field by its dotted name."""
    return {name: _canonical(name, get_field(config, name)) for name in field_names(config)}


def _canonical(name: str, value: Any) -> Any:
    """Makes 1 and 1.0 the same value in a field that holds numbers, as JSON does not."""
    if isinstance(value, tuple):
        return tuple(float(v) if isinstance(v, int | float) else v for v in value)
    if definition(name).type is float and isinstance(value, int):
        return float(value)
    return value


def _with_tuples(value: Any) -> Any:
    """Turns JSON's lists into tuples, the only sequences that a config holds."""
    if isinstance(value, Mapping):
        return {name: _with_tuples(item) for name, item in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    return value
