"""What this project says of a data set that it can prepare: its files, its classes, its reader."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from flexpool_jax.errors import UserError

_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Digest:
    """Size in bytes and SHA-256 (hexadecimal) of some bytes."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file that upstream publishes.

    Attributes:
        url: Where it is published.
        digest: Size and SHA-256 of the file itself; a download is checked by it.
        content: Of what is inside a gzipped file. With it, a copy that was compressed again, or
            not at all, is as good as upstream's.
        unpacked: The name of the folder that the archive unpacks to, if that too is accepted.
    """

    url: str
    digest: Digest
    content: Digest | None = None
    unpacked: str = ""

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.url).name


@dataclasses.dataclass(frozen=True)
class RawFile:
    """A copy of a remote file on disk, or the folder that it unpacks to."""

    path: Path
    remote: RemoteFile

    def check(self) -> None:
        """Compares size and digest of the file itself.

        Raises:
            UserError: They differ from upstream's.
        """
        expected, sha256 = self.remote.digest, hashlib.sha256()
        size = self.path.stat().st_size
        if size != expected.size:
            raise _differs(self.path, f"{size:,} bytes", f"{expected.size:,}")
        with self.path.open("rb") as file:
            while block := file.read(_BLOCK):
                sha256.update(block)
        if sha256.hexdigest() != expected.sha256:
            raise _differs(self.path, f"SHA-256 {sha256.hexdigest()}", expected.sha256)

    def read_content(self) -> bytes:
        """Reads what is inside, gzipped or not, and compares it with the content's digest.

        Raises:
            UserError: The file is no whole gzip file, or its content is not upstream's.
        """
        expected = self.remote.content
        assert expected is not None, f"{self.remote.name} has no content digest"
        try:
            with self.path.open("rb") as file:
                is_gzip = file.read(2) == b"\x1f\x8b"
                file.seek(0)
                opened = gzip.GzipFile(fileobj=file) if is_gzip else file
                # One byte more than there should be shows a longer file without reading it all.
                content = opened.read(expected.size + 1)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(
                f"{self.path} is damaged ({error or 'it ends too early'}); get it again from "
                f"{self.remote.url}"
            ) from error
        if len(content) != expected.size:
            more = "more than " if len(content) > expected.size else ""
            size = min(len(content), expected.size)
            raise _differs(self.path, f"{more}{size:,} bytes inside", f"{expected.size:,}")
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != expected.sha256:
            raise _differs(self.path, f"content with SHA-256 {sha256}", expected.sha256)
        return content


def _differs(path: Path, has: str, expected: str) -> UserError:
    return UserError(
        f"{path} is not the published file: it has {has}, upstream's has {expected}; "
        "get it again, or leave dataset.raw_dir empty to download it"
    )


@dataclasses.dataclass(frozen=True)
class Example:
    """One image on its way to disk.

    Attributes:
        image: The encoded image, PNG or JPEG.
        label: Index of its class.
        superclass: Index of its superclass, where the data set has superclasses of its own.
    """

    image: bytes
    label: int
    superclass: int | None = None


@dataclasses.dataclass(frozen=True)
class Contents:
    """What the raw files of a source hold.

    Attributes:
        train: The training examples; they are read once, before those of the test split.
        test: The test examples; None if a part of the training split is to serve.
        class_names: The name of each class.
        superclass_names: The name of each superclass; empty if there are none.
    """

    train: Iterable[Example]
    test: Iterable[Example] | None
    class_names: Sequence[str]
    superclass_names: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that this project can prepare.

    Attributes:
        name: The name to load it by, and its folder under data_dir.
        description: A sentence on what it is.
        homepage: Where it comes from.
        image_shape: Height, width and channels of the images as they are stored.
        num_classes: How many classes there are.
        num_examples: How many examples each split, "train" and "test", must turn out to have.
        read: Reads the raw files, which come in the order of `files`.
        files: What upstream publishes.
        default_image_size: The side that images are resized to on loading if no other is asked
            for; 0 leaves them as they are stored.
        num_superclasses: How many superclasses there are; 0 if the data set has none of its own.
        variant: A folder level between the name and the version, for sources that are made from
            a folder of the user's.
    """

    name: str
    description: str
    homepage: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_examples: Mapping[str, int]
    read: Callable[[tuple[RawFile, ...]], Contents]
    files: tuple[RemoteFile, ...] = ()
    default_image_size: int = 0
    num_superclasses: int = 0
    variant: str = ""
