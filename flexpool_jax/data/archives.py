"""A folder, a zip archive or a gzipped tar archive, each seen as files that are read one by one.

An archive is never unpacked to disk. Its entries are checked all the same, because one that climbs
out of its folder or is a link says that the archive is not what it claims to be.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath
from typing import IO

from flexpool_jax.errors import UserError

# No image and no part of a published archive is as large; nothing larger is read into memory.
MAX_FILE_BYTES = 512 * 2**20
# Of what an archive says it holds; fifty times ImageNet's size.
_MAX_TOTAL_BYTES = 2**43
# What macOS and Windows leave behind, besides hidden files, which begin with a dot.
_LEFTOVERS = {"__macosx", "thumbs.db", "desktop.ini"}
# What reading a damaged folder or archive may raise; zipfile decodes the name of an entry again
# when it opens it.
DAMAGE = (
    OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError, NotImplementedError,
    UnicodeDecodeError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FileTree:
    """Files by their path inside a folder or an archive, with `/` between the parts.

    Attributes:
        path: The folder or archive.
        files: Size in bytes and time of change of each file, in alphabetical order.
        folders: Every folder inside, empty ones too.
        open: Opens a file for reading.
    """

    path: Path
    files: dict[str, tuple[int, int]]
    folders: set[str]
    open: Callable[[str], IO[bytes]]


def open_tree(path: Path) -> FileTree:
    """Opens a folder or a zip archive and lists it, leaving out what is hidden or left behind.

    Raises:
        UserError: It is neither, cannot be read, or has entries that no honest archive has, or
            folders whose names differ by letter case alone.
    """
    try:
        # A named pipe is neither; opening it would wait without end.
        if not path.is_dir() and not path.is_file():
            raise UserError(f"there is no folder or zip archive {path}")
        tree = _list_folder(path) if path.is_dir() else _list_zip(path)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}") from error
    seen: dict[str, str] = {}
    for name in sorted(tree.folders):
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise UserError(
                f"{path} has the folders {other!r} and {name!r}, which differ by letter case "
                "alone; rename or merge them"
            )
    return tree


def read_file(tree: FileTree, name: str) -> bytes:
    """Reads a whole file of a tree.

    Raises:
        UserError: It is missing or cannot be read, or an archive's entry is damaged.
    """
    if name not in tree.files:
        raise UserError(f"{tree.path} has no {name}")
    try:
        with tree.open(name) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except DAMAGE as error:
        raise UserError(f"cannot read {tree.path / name}: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise _too_large(tree.path / name, len(content))
    return content


def read_tar(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    """Reads some files of a gzipped tar archive into memory.

    Raises:
        UserError: The archive is damaged, has an entry that leads out of it, or lacks a file.
    """
    contents = {}
    try:
        with gzip.open(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as tar:
            for entry in tar:
                is_plain = entry.isreg() or entry.isdir()
                # Even what is passed over has to be decompressed.
                _check_entry(archive, entry.name, is_plain, entry.size)
                file = tar.extractfile(entry) if entry.name in names else None
                if file is not None:
                    contents[entry.name] = file.read()
            # The tar archive ends before the gzip file, whose checksum comes last.
            if len(unpacked.read(MAX_FILE_BYTES)) == MAX_FILE_BYTES:
                raise UserError(f"{archive} does not stop at its end")
    except DAMAGE as error:
        raise UserError(f"{archive} is a damaged archive ({error})") from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise UserError(f"{archive} has no {missing[0]}")
    return contents


def _check_entry(archive: Path, name: str, is_plain: bool, size: int) -> None:
    """Refuses an archive's entry that is not a file or folder inside it of a sensible size."""
    shown = f"{archive}: entry {name[:200]!r}"
    if name.startswith("/") or re.match("[A-Za-z]:", name) or "\\" in name or "\0" in name:
        raise UserError(f"{shown} is not a path inside the archive")
    if ".." in PurePosixPath(name).parts:
        raise UserError(f"{shown} climbs out of its folder")
    if not is_plain:
        raise UserError(f"{shown} is a link or another special file")
    if size > MAX_FILE_BYTES:
        raise _too_large(f"{shown}, unpacked,", size)


def _too_large(name: object, size: int) -> UserError:
    return UserError(f"{name} has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read")


def _is_leftover(name: str) -> bool:
    return any(
        part.startswith(".") or part.lower() in _LEFTOVERS for part in PurePosixPath(name).parts
    )


def _list_folder(path: Path) -> FileTree:
    """Lists a folder on disk; links are followed, as it is the user's own."""
    files: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()

    def walk(folder: Path, prefix: str, above: frozenset[str]) -> None:
        above |= {os.path.realpath(folder)}
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if _is_leftover(entry.name):
                    continue
                if entry.is_dir():
                    if os.path.realpath(entry) in above:
                        raise UserError(f"{path / name} links to a folder that it is in")
                    folders.add(name)
                    walk(Path(entry), f"{name}/", above)
                    continue
                status = entry.stat()
                # A named pipe would be waited for without end.
                if not stat.S_ISREG(status.st_mode):
                    raise UserError(f"{path / name} is not a regular file")
                if status.st_size > MAX_FILE_BYTES:
                    raise _too_large(path / name, status.st_size)
                files[name] = (status.st_size, status.st_mtime_ns)

    def open_file(name: str) -> IO[bytes]:
        return (path / name).open("rb")

    walk(path, "", frozenset())
    return FileTree(path, dict(sorted(files.items())), folders, open_file)


def _list_zip(path: Path) -> FileTree:
    """Lists a zip archive, which is then read in place."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is not a whole zip archive ({error})") from error
    files: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    # One time for all: entries carry no more than local time, in steps of two seconds.
    changed = path.stat().st_mtime_ns
    for entry in archive.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)
        is_plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
        # The name as the archive has it: zipfile cuts it at a zero byte.
        _check_entry(path, entry.orig_filename, is_plain, entry.file_size)
        if entry.flag_bits & 0x1:
            raise UserError(f"{path}: entry {entry.filename!r} is encrypted")
        name = entry.filename.rstrip("/")
        if _is_leftover(name):
            continue
        folders.update(str(parent) for parent in list(PurePosixPath(name).parents)[:-1])
        if entry.is_dir():
            folders.add(name)
        elif name in files:
            raise UserError(f"{path} has two entries {name!r}")
        else:
            files[name] = (entry.file_size, changed)
    if sum(size for size, _ in files.values()) > _MAX_TOTAL_BYTES:
        raise UserError(f"{path} says it holds more than {_MAX_TOTAL_BYTES:,} bytes")
    return FileTree(path, dict(sorted(files.items())), folders, archive.open)
