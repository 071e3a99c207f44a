"""Identifies the code of a run: a hash of its source, the commit and the packages' versions."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

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


def run_source_hash(config: ConfigDict) -> str:
    """Hashes the code of a run: that of `source_hash`, and that of a user's own pool and model.

    A pool or model of one's own counts with the functions and classes of the same module that its
    source names, but not with the rest of its file, which may list the seeds. Code whose source
    Python does not find, such as a class that was defined in a notebook, does not count.

    Returns:
        The `source_hash` if the config's pool and model are part of this package; otherwise another
        SHA-256.
    """
    from flexpool_jax.models.registry import MODELS
    from flexpool_jax.pools import POOLS

    sources: dict[Any, str] = {}
    for definition in (POOLS[config.pool], MODELS[config.model].build):
        _add_sources(definition, sources)
    if not sources:
        return source_hash()
    return hashlib.sha256("\0".join((source_hash(), *sources.values())).encode()).hexdigest()


def _add_sources(definition: Any, sources: dict[Any, str]) -> None:
    """Adds the source of a definition outside this package, and of what it uses of its module."""
    if isinstance(definition, functools.partial):
        for part in (definition.func, *definition.args, *definition.keywords.values()):
            _add_sources(part, sources)
        return
    module = getattr(definition, "__module__", None) or ""
    try:
        if module.split(".")[0] == flexpool_jax.__name__ or definition in sources:
            return
        sources[definition] = _source(definition)
    except (TypeError, OSError):  # Not a function or class, or its file is not there.
        return
    others = getattr(sys.modules.get(module), "__dict__", {})
    for name in dict.fromkeys(re.findall(r"\w+", sources[definition])):
        if name in others and getattr(others[name], "__module__", None) == module:
            _add_sources(others[name], sources)


@functools.cache
def _source(definition: Any) -> str:
    """The source as it was when it was first asked for; an edit of the file comes too late."""
    return inspect.getsource(definition)


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
