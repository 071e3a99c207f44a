"""Identifies the code of a run: a hash of its files, the commit and the packages' versions."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import flexpool_jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")

_PACKAGE = Path(__file__).resolve().parent
# A copied or installed package may lie without the project's configs beside it.
_FOLDERS = (_PACKAGE, _PACKAGE.parent / "configs")


@functools.cache
def source_hash() -> str:
    """Hashes the files of flexpool_jax/ and configs/, wherever they lie on this machine.

    Returns:
        The SHA-256 over every file's name and content, as 64 hexadecimal digits. Compiled files
        (``__pycache__``) and hidden files do not count.

    Example:
        >>> len(source_hash())
        64
    """
    sha = hashlib.sha256()
    for folder in _FOLDERS:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder.parent)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
            if path.is_file() and not hidden:
                content = path.read_bytes()
                sha.update(f"{name.as_posix()}\0{len(content)}\0".encode())
                sha.update(content)
    return sha.hexdigest()


@functools.cache
def commit() -> str | None:
    """The checked-out commit; None if the package is not in its own git repository."""
    command = ["git", "-C", str(_PACKAGE.parent), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    top, head = answer.stdout.split("\n")[:2]
    # An installed package may lie inside somebody else's repository.
    return head if Path(top) == _PACKAGE.parent else None


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of the packages that may affect a result.

    Example:
        >>> list(versions())[:3]
        ['python', 'flexpool_jax', 'jax']
    """
    found = {"python": platform.python_version(), "flexpool_jax": flexpool_jax.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
