"""Writes files completely or not at all, reads JSON files, and expands users' paths."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from flexpool_jax.errors import UserError, one_line


def expanded(path: str | os.PathLike[str]) -> Path:
    """Expands `~` and `~name` at the beginning of a path as a shell does.

    Raises:
        UserError: there is no user of that name, or the home folder is not known.

    Example:
        >>> expanded("~no_such_user/run")
        Traceback (most recent call last):
        ...
        flexpool_jax.errors.UserError: '~no_such_user/run': there is no user of that name, or no \
home folder; give the whole path, or ./~ for a name that begins with ~
    """
    text = os.fspath(path)
    found = os.path.expanduser(text)  # noqa: PTH111 (Path's method raises a RuntimeError)
    if found == text and text.startswith("~"):
        raise UserError(
            f"{text!r}: there is no user of that name, or no home folder; give the whole path, or "
            "./~ for a name that begins with ~"
        )
    return Path(found)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees either the old or the new content, never a part.

    Args:
        path: path of the file, in an existing folder.
        content: whole content of the file.

    Raises:
        OSError: the file cannot be written; the error names the path, and the old file stays.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> write_whole(path, b"1 2 3")
        >>> path.read_bytes(), [entry.name for entry in path.parent.iterdir()]
        (b'1 2 3', ['numbers.txt'])
    """
    with writing_whole(path) as file:
        file.write(content)


@contextlib.contextmanager
def writing_whole(path: Path) -> Iterator[BinaryIO]:
    """Opens a file to be written piece by piece, with the guarantee of `write_whole`.

    If the block raises an error, the old file stays.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with writing_whole(path) as file:
        ...     _ = file.write(b"1 2 3")
        ...     path.exists()
        False
        >>> path.read_bytes()
        b'1 2 3'
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file completely or not at all; see `to_json`."""
    write_whole(path, (to_json(value, indent=2) + "\n").encode())


def read_json(path: Path, names: Collection[str] = ()) -> dict[str, Any] | None:
    """Reads a JSON file that holds an object, such as a workdir's config.json.

    Args:
        path: path of the file.
        names: names of the fields that the object must have.

    Returns:
        The object; None if there is no such file.

    Raises:
        UserError: the file cannot be read, is not a JSON object, or lacks a field of ``names``.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "result.json"
        >>> write_json(path, {"accuracy": 0.9})
        >>> read_json(path), read_json(path.with_name("data.json"))
        ({'accuracy': 0.9}, None)
    """
    try:
        if path.exists() and not path.is_file():
            # Reading a named pipe would wait without end.
            raise OSError(errno.EINVAL, "it is not a file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it does not hold a JSON object")
    missing = [name for name in names if name not in value]
    if missing:
        raise UserError(f"{path} is damaged: it lacks {', '.join(missing)}")
    return value


def read_json_if_whole(path: Path) -> dict[str, Any]:
    """Reads a JSON file as `read_json` does; returns {} if the file is missing or damaged."""
    try:
        return read_json(path) or {}
    except UserError:
        return {}


def with_digest(value: Mapping[str, Any]) -> dict[str, Any]:
    """Adds ``sha256``, a digest of all other fields, to the fields of a JSON object.

    Example:
        >>> result = with_digest({"accuracy": 0.9})
        >>> digest_matches(result), digest_matches({**result, "accuracy": 1.0})
        (True, False)
    """
    return {**value, "sha256": _digest(value)}


def digest_matches(value: Mapping[str, Any]) -> bool:
    """Whether the other fields still match ``sha256``; True if there is no such field."""
    rest = {name: part for name, part in value.items() if name != "sha256"}
    try:
        return value.get("sha256", _digest(rest)) == _digest(rest)
    except RecursionError:  # No run has written an object of such a depth.
        return False


def measures_same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two reports on a run, such as result.json and probe.json, are on the same weights.

    They are if ``step`` and ``model_digest`` agree. Older reports have no digest.

    Example:
        >>> report = {"step": 9, "model_digest": "ab"}
        >>> measures_same_model(report, {"step": 9}), measures_same_model(report, {"step": 8})
        (True, False)
    """
    digests = {one.get("model_digest"), other.get("model_digest")} - {None}
    return one.get("step") == other.get("step") and len(digests) < 2


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def to_json(value: Any, indent: int | None = None) -> str:
    """Converts a value to JSON. NaN and infinity, which JSON does not have, become null.

    Args:
        value: mappings and sequences of strings and numbers, including those of NumPy and JAX.
        indent: number of spaces before nested values; None writes one line.

    Example:
        >>> to_json({"loss": float("nan"), "weights": (0.1, 0.9)})
        '{"loss": null, "weights": [0.1, 0.9]}'
    """
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def _plain(value: Any) -> Any:
    """Converts a value to the types that JSON has."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if not isinstance(value, str | bytes) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds a file's name to each OSError; errors from writing to an open file have no name."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
