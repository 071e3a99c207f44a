"""Reading single files from a folder, a zip archive or a gzipped tar archive.

An archive is never unpacked to disk. Its entries are checked nevertheless: a path that leads out of
the archive, or a link, shows that the archive is not the expected one.
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

try:
    from lzma import LZMAError
except ImportError:  # A Python that was built without it does not read such archives.
    LZMAError = EOFError  # type: ignore[assignment, misc]

# Largest file that is read into memory; images and the parts of published archives are smaller.
MAX_FILE_BYTES = 512 * 2**20
# Files and folders that macOS and Windows create; hidden files, which begin with a dot, are also
# ignored.
_LEFTOVERS = {"__macosx", "thumbs.db", "desktop.ini"}
# Errors that reading a damaged folder or archive may raise. UnicodeDecodeError: zipfile decodes the
# name of an entry again when it opens the entry.
DAMAGE = (
    OSError, EOFError, zlib.error, LZMAError, zipfile.BadZipFile, tarfile.TarError,
    NotImplementedError, UnicodeDecodeError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FileTree:
    """The files in a folder or an archive.

    Attributes:
        path: The folder or archive.
        files: Size in bytes of each file, and its time of change (ns since 1970; of a file in an
            archive: its CRC-32). The keys are paths inside the folder or archive, with `/` between
            the parts, in alphabetical order.
        folders: Paths of all folders inside, empty folders included.
        open: Function that opens a file for reading, given a key of `files`.
    """

    path: Path
    files: dict[str, tuple[int, int]]
    folders: set[str]
    open: Callable[[str], IO[bytes]]


def open_tree(path: Path) -> FileTree:
    """Lists a folder or a zip archive, without hidden files and files made by the system.

    Raises:
        UserError: The path is neither a folder nor a zip archive, or cannot be read; the folder has
            a file that is too large or not regular, or a link to a folder that it is in; the
            archive has two entries of one name, or an entry that is encrypted, too large, a link or
            outside the archive; or the names of two folders differ only by letter case.
    """
    try:
        # A named pipe is neither a folder nor a file; opening it would block forever.
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
        UserError: The file is missing, damaged or too large, or cannot be read.
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
    """Reads the named files of a gzipped tar archive into memory.

    Returns:
        The bytes of each file, by its name.

    Raises:
        UserError: The archive is damaged, lacks a named file, or has an entry that is too large, a
            link or outside the archive.
    """
    contents = {}
    try:
        with gzip.open(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as tar:
            for entry in tar:
                is_plain = entry.isreg() or entry.isdir()
                # Every entry is checked: entries that are not wanted are decompressed as well.
                _check_entry(archive, entry.name, is_plain, entry.size)
                file = tar.extractfile(entry) if entry.name in names else None
                if file is not None:
                    contents[entry.name] = file.read()
            # Read to the end of the gzip file, where its checksum is; the tar archive ends earlier.
            if len(unpacked.read(MAX_FILE_BYTES)) == MAX_FILE_BYTES:
                raise UserError(f"{archive} does not stop at its end")
    except DAMAGE as error:
        raise UserError(f"{archive} is a damaged archive ({error})") from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise UserError(f"{archive} has no {missing[0]}")
    return contents


def _check_entry(archive: Path, name: str, is_plain: bool, size: int) -> None:
    """Raises UserError if an entry is outside the archive, too large, or not a file or folder."""
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
    """Lists a folder on disk. Links are followed, because the folder is the user's own."""
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
                # Opening a named pipe would block forever.
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
    """Returns the list of a zip archive's files, which are read without unpacking the archive."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is not a whole zip archive ({error})") from error
    files: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    for entry in archive.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)
        is_plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
        # The name as stored in the archive: zipfile cuts `filename` at a zero byte.
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
            files[name] = (entry.file_size, entry.CRC)
    return FileTree(path, dict(sorted(files.items())), folders, archive.open)
