"""Data sets that TFDS itself has prepared, found by name under data_dir."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from flexpool_jax.errors import UserError, closest_name

_NAME = re.compile(r"(?P<name>\w+)(?:/(?P<config>[\w.+-]+))?(?::(?P<version>[\w.*]+))?")
# The formats that can be read without TensorFlow.
_FORMAT = "array_record"


def find_prepared(name: str, data_dir: Path) -> Path | None:
    """Finds a data set prepared as ArrayRecord: DATA_DIR/NAME[/CONFIG]/VERSION.

    Args:
        name: NAME, NAME/CONFIG or either with :VERSION. Of several versions the newest is taken.
        data_dir: The folder of prepared data sets.

    Returns:
        The folder, or None if there is none.

    Raises:
        UserError: Several configs are prepared and none is named.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    root = data_dir / match["name"]
    if match["config"]:
        folders = _versions(root / match["config"], match["version"])
        return folders[-1] if folders else None
    folders = _versions(root, match["version"])
    if folders:
        return folders[-1]
    configs = {
        config.name: versions[-1]
        for config in _subfolders(root)
        if (versions := _versions(config, match["version"]))
    }
    if len(configs) > 1:
        names = ", ".join(f"{match['name']}/{config}" for config in configs)
        raise UserError(f"{root} holds several configs of {name!r}; name one of: {names}")
    return next(iter(configs.values()), None)


def _versions(folder: Path, version: str | None) -> list[Path]:
    """Returns the ArrayRecord versions in a folder, oldest first."""
    found = [
        path
        for path in _subfolders(folder)
        if version in (None, path.name) and _file_format(path) == _FORMAT
    ]
    return sorted(found, key=lambda path: [int(part) for part in path.name.split(".")])


def _subfolders(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        return ()
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _file_format(folder: Path) -> str | None:
    """Returns the format that a version's records are in, None if it is no prepared version."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", folder.name):
        return None
    try:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        return info.get("fileFormat")
    except (OSError, ValueError, AttributeError):
        return None


def unknown_dataset(name: str, data_dir: Path, allowed: Iterable[str]) -> UserError:
    """Builds the error for a name that is no data set of ours and not prepared under data_dir.

    Where TFDS knows the name, it says how to prepare it; otherwise it names the closest match.
    """
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    names = ", ".join(allowed)
    base = name.partition("/")[0].partition(":")[0]
    if base in known:
        return UserError(
            f"{name!r} is not prepared as ArrayRecord under {data_dir}, and its preparation needs "
            f"TensorFlow; in an environment that has it, run: tfds build {name} "
            f"--file_format=array_record --data_dir={data_dir} (without TensorFlow: {names})"
        )
    match = closest_name(base, [*allowed, *known])
    hint = f" did you mean {match!r}?" if match else ""
    return UserError(
        f"unknown data set {name!r};{hint} allowed: {names}, or a TFDS data set prepared as "
        f"ArrayRecord under {data_dir}"
    )
