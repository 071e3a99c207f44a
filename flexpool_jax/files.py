"""Writes files whole or not at all, and reads JSON files and users' paths."""

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
    """A path with `~` and `~name` read as a shell reads them; an unknown name stays as it is.

    Example:
        >>> expanded("~no_such_user/run").as_posix()
        '~no_such_user/run'
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path's raises where the name is unknown)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a reader meets the old content or the new one, never a part.

    Args:
        path: in an existing folder.
        content: all of it.

    Raises:
        OSError: it cannot be written, and names the path; the old file stays.

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
    """Opens a file for `write_whole` piece by piece; an error in the block keeps the old content.

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
    """Writes a JSON file whole or not at all; see `to_json`."""
    write_whole(path, (to_json(value, indent=2) + "\n").encode())


def read_json(path: Path, names: Collection[str] = ()) -> dict[str, Any] | None:
    """Reads a JSON file that holds an object, such as one of a workdir's.

    Args:
        path: of the file.
        names: that the object must have.

    Returns:
        The object; None where there is no such file.

    Raises:
        UserError: it cannot be read, or does not hold such an object.

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
    """Reads a JSON file as `read_json` does; empty where there is none that can be read."""
    try:
        return read_json(path) or {}
    except UserError:
        return {}


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Adds ``sha256``, a digest of all the rest, to what is to be written as JSON.

    Example:
        >>> seal_holds(sealed({"accuracy": 0.9})), seal_holds({**sealed({"a": 1}), "a": 2})
        (True, False)
    """
    return {**value, "sha256": _digest(value)}


def seal_holds(value: Mapping[str, Any]) -> bool:
    """Whether what was read is what `sealed` was given; true where there is no ``sha256``."""
    rest = {name: part for name, part in value.items() if name != "sha256"}
    return value.get("sha256", _digest(rest)) == _digest(rest)


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def to_json(value: Any, indent: int | None = None) -> str:
    """Converts a value to JSON. Numbers that are not finite become null, which JSON has.

    Args:
        value: mappings and sequences of strings and numbers, those of NumPy and JAX included.
        indent: of nested values; None writes one line.

    Example:
        >>> to_json({"loss": float("nan"), "weights": (0.1, 0.9)})
        '{"loss": null, "weights": [0.1, 0.9]}'
    """
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def _plain(value: Any) -> Any:
    """A value in the types that JSON has."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if not isinstance(value, str | bytes) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError the name of the file that it is about; errors of open files have none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
