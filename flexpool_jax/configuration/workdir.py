"""The config that a workdir stores, and the check whether a run may continue with a changed one."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flexpool_jax import files, layout
from flexpool_jax.configuration.fields import FIELDS, definition, field_names, get_field
from flexpool_jax.errors import UserError, one_line

# Endings of the names of files that a run and the modes write into its workdir.
_FILE_SUFFIXES = (".json", ".jsonl", ".npz")


@dataclasses.dataclass(frozen=True)
class Change:
    """A field whose value differs between the given config and the config of the workdir."""

    field: str
    saved: Any
    given: Any

    def __str__(self) -> str:
        """Describes the change for a log line."""
        return f"config.{self.field} is {self.given!r} (was {self.saved!r})"


def config_path(workdir: str | os.PathLike[str]) -> Path:
    """Returns the path of a workdir's config.json."""
    return Path(workdir) / layout.CONFIG_FILE


def has_checkpoint(workdir: str | os.PathLike[str]) -> bool:
    """Whether a workdir holds a complete checkpoint, a folder that Orbax names by its step."""
    checkpoints = Path(workdir) / layout.CHECKPOINTS_FOLDER
    return checkpoints.is_dir() and any(entry.name.isdigit() for entry in checkpoints.iterdir())


def has_any_checkpoint(workdir: str | os.PathLike[str]) -> bool:
    """Whether a workdir holds a checkpoint, also a damaged or superseded one."""
    names = (layout.DAMAGED_FOLDER, layout.SUPERSEDED_FOLDER)
    moved = (Path(workdir) / name for name in names)
    return has_checkpoint(workdir) or any(
        folder.is_dir() and any(folder.iterdir()) for folder in moved
    )


def has_saved_state(workdir: str | os.PathLike[str]) -> bool:
    """Whether a workdir holds a checkpoint, also a damaged or superseded one, or a result.json.

    Without these, training starts at step 0, and nothing is lost if it has another config.
    """
    return has_any_checkpoint(workdir) or (Path(workdir) / layout.RESULT_FILE).exists()


def phases_begun(config: ConfigDict, workdir: str | os.PathLike[str]) -> tuple[bool, bool]:
    """Whether a run's phase on superclasses and its phase on classes have saved state."""
    first = Path(workdir) / layout.SUPERCLASS_FOLDER
    return config.superclass.epochs > 0 and has_saved_state(first), has_saved_state(workdir)


def check_workdir(workdir: str) -> None:
    """Checks that a run can write to a folder or create it, without writing anything.

    Raises:
        UserError: The path is not valid for a folder, a file is in its place, a permission is
            missing, or the folder contains a link to a file, or a file and a folder exchanged.
    """
    if "://" in workdir or "\0" in workdir or not workdir.strip():
        raise UserError(f"--workdir={workdir!r}; allowed: the path of a folder on this machine")
    try:
        workdir.encode()
    except UnicodeEncodeError:
        raise UserError(f"--workdir={workdir!a} is not UTF-8; allowed: a name that is") from None
    given = folder = files.expanded(workdir).absolute()
    while not _exists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"--workdir={workdir}: {folder} is a file; allowed: a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={workdir}: no permission to write to {folder}")
    if folder == given and os.access(folder, os.R_OK):
        _check_contents(folder)


def check_saving(workdir: str | os.PathLike[str]) -> None:
    """Checks that checkpoints which are saved in a folder can be read again.

    Orbax puts the path of a checkpoint into a glob to find the checkpoint's parts. In a glob,
    brackets match a single character, so Orbax finds no parts and raises no error; with * or ? it
    may find those of other checkpoints.

    Raises:
        UserError: The absolute path of the folder contains an opening bracket, a * or a ?.
    """
    path = Path(workdir).absolute()
    for character in "[*?":
        if character in str(path):
            raise UserError(
                f"{path} has a {character} in its path, and checkpoints that are saved there could "
                "not be read; allowed: a folder whose path has none, or a link to this folder "
                "whose path has none"
            )


def _exists(path: Path) -> bool:
    """Whether a path exists; a link exists even if its target does not."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # For example: the name is too long, or links form a cycle.
        raise UserError(f"--workdir: {path}: {error.strerror}") from error
    return True


def _check_contents(workdir: Path) -> None:
    """Raises UserError for a link to a file, and for a folder or file where a run needs the other.

    Through a link, a run would write outside the workdir.
    """
    for path in sorted(workdir.iterdir()):
        is_folder = path.is_dir()
        if path.is_symlink() and not is_folder:
            raise UserError(f"{path} is a link to a file; put the file itself there, or remove it")
        if is_folder and (path.suffix in _FILE_SUFFIXES or path.name == layout.LOCK_FILE):
            raise UserError(f"{path} is a folder where a file belongs; move it away")
        if not is_folder and path.name in layout.FOLDERS:
            raise UserError(f"{path} is a file where a folder belongs; move it away")


def write_config(config: ConfigDict, workdir: str | os.PathLike[str]) -> None:
    """Writes a workdir's config.json, which is never incomplete, even if the process is killed.

    Args:
        config: The config to write.
        workdir: An existing folder.

    Raises:
        OSError: The folder cannot be written to. An existing config.json is then unchanged.
    """
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"
    files.write_whole(config_path(workdir), text.encode())


def read_config(workdir: str | os.PathLike[str]) -> ConfigDict:
    """Reads the config from a workdir's config.json.

    Returns:
        The locked config, see `config_from_json`.

    Raises:
        UserError: The file is missing or damaged.
    """
    path = config_path(workdir)
    values = files.read_json(path)
    if values is None:
        raise UserError(f"{workdir} is not a workdir of a run: it has no config.json")
    if "pretrained_cfg" in values:
        raise UserError(
            f"{workdir} is an exported network and not a workdir of a run; use it by "
            "flexpool_jax.load_exported"
        )
    try:
        return config_from_json(values)
    # For example, a name that no field can have, or a group in place of a field.
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {one_line(error, limit=None)}") from error


def config_from_json(values: Mapping[str, Any]) -> ConfigDict:
    """Makes a config from the values that were read from config.json or result.json.

    Returns:
        The locked config. Lists become tuples, and fields that were added after the file was
        written get their values from `Field.before`.
    """
    config = ConfigDict(_with_tuples(values))
    names = set(field_names(config))
    # A field is not added if its group is missing: `resolve` then reports the missing fields.
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
    """Whether a field changes the results of a run, see `Field.has_effect`.

    For the data sets image_folder and npz, `dataset.raw_dir` has an effect, because this path
    selects the images.

    Example:
        >>> from configs import default
        >>> config = default.get_config()
        >>> has_effect("learning_rate", config), has_effect("tensorboard", config)
        (True, False)
    """
    is_dataset = name == "dataset.raw_dir" and config.dataset.name in ("image_folder", "npz")
    return is_dataset or definition(name).has_effect


def digest(config: ConfigDict) -> str:
    """Returns a hash of the fields that have an effect: 16 hexadecimal digits of a SHA-256.

    Fields without effect (`has_effect`), such as folders and intervals of logging, are left out.

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
        # A field with the value `before` is left out, so that old results keep their digests.
        if has_effect(name, config) and value != definition(name).before
    }
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compare_with_workdir(config: ConfigDict, saved: ConfigDict) -> list[Change]:
    """Checks that a run may continue with a config that differs from the config of its workdir.

    Args:
        config: The config that is now given.
        saved: The config of the workdir, from `read_config`.

    Returns:
        The allowed differences, for the log: rates, schedule, epochs, intervals or folders.

    Raises:
        UserError: Fields differ that define the model, the data or the order of examples. The
            message contains all of these fields, with both values.

    Example:
        >>> from configs import digits
        >>> config, saved = digits.get_config(), digits.get_config()
        >>> config.num_epochs = 20
        >>> [str(change) for change in compare_with_workdir(config, saved)]
        ['config.num_epochs is 20 (was 12)']
    """
    changes = _changes(config, saved)
    refused = [change for change in changes if definition(change.field).fixed]
    if refused:
        listed = "; ".join(map(str, refused))
        raise UserError(
            f"fields that cannot change during a run: {listed}; give the old values again, or "
            "another workdir"
        )
    return changes


def _changes(config: ConfigDict, saved: ConfigDict) -> list[Change]:
    given_values, saved_values = _flat(config), _flat(saved)
    return [
        Change(name, saved_values.get(name), given_values.get(name))
        for name in sorted(given_values.keys() | saved_values.keys())
        if given_values.get(name) != saved_values.get(name)
    ]


def check_resume(config: ConfigDict, workdir: str | os.PathLike[str]) -> list[Change]:
    """Checks that a run in this workdir may begin or continue with this config.

    Another process may train in the workdir and save its first checkpoint at any time. Before
    config.json is overwritten, call this function while the workdir is locked.

    Returns:
        The differences from the config of the workdir; empty if no run has begun in the workdir. If
        `has_saved_state` is False, any field may differ; otherwise see `compare_with_workdir`.

    Raises:
        UserError: The config defines another model or data than the saved state of the workdir, or
            the workdir has checkpoints but no config.json.
    """
    if config_path(workdir).is_file():
        saved = read_config(workdir)
        compare = compare_with_workdir if has_saved_state(workdir) else _changes
        return compare(config, saved)
    if has_checkpoint(workdir):
        raise UserError(
            f"{workdir} holds checkpoints, but no config.json that says of which model and data; "
            "put it back, or give another --workdir"
        )
    return []


def _flat(config: ConfigDict) -> dict[str, Any]:
    """Returns the value of every field by its dotted name."""
    return {name: _canonical(name, get_field(config, name)) for name in field_names(config)}


def _canonical(name: str, value: Any) -> Any:
    """Makes equal numbers equal in JSON, which tells 1 from 1.0 and 0.0 from -0.0."""
    if isinstance(value, tuple):
        return tuple(value + 0.0 if isinstance(value, int | float) else value for value in value)
    if definition(name).type is float and isinstance(value, int | float):
        return value + 0.0
    return value


def _with_tuples(value: Any) -> Any:
    """Converts lists from JSON to tuples, because a config holds no lists."""
    if isinstance(value, Mapping):
        return {name: _with_tuples(item) for name, item in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    return value
