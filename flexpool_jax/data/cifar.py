"""`cifar10` and `cifar100`: 60,000 colour images, 32x32 (Krizhevsky 2009).

Both are read from the archives for C programs, which hold plain bytes: a record is one label byte
(CIFAR-100: a coarse and a fine one) and 3072 bytes of pixels, all red ones first, then green, then
blue, each row by row (https://www.cs.toronto.edu/~kriz/cifar.html). The archives for Python are
pickles, which can run any program, and are not read.
"""

from __future__ import annotations

import functools
import gzip
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from flexpool_jax.data.images import encode_png
from flexpool_jax.data.source import Contents, Digest, Example, RawFile, RemoteFile, Source
from flexpool_jax.errors import UserError

_UPSTREAM = "https://www.cs.toronto.edu/~kriz/"
_SIDE = 32
_PIXEL_BYTES = 3 * _SIDE * _SIDE
# Of one file in an archive: three times CIFAR-100's largest, so that no archive can fill memory.
_MAX_MEMBER_BYTES = 512 * 2**20


def read_cifar10(files: tuple[RawFile, ...]) -> Contents:
    """Reads five training batches, the test batch and the names of the classes."""
    archive = files[0].path
    folder = "cifar-10-batches-bin/"
    train_names = [f"{folder}data_batch_{number}.bin" for number in range(1, 6)]
    test_name, names_name = f"{folder}test_batch.bin", f"{folder}batches.meta.txt"
    members = read_tar_members(archive, (*train_names, test_name, names_name))
    class_names = _names(members[names_name], archive, names_name, 10)
    examples = functools.partial(_examples, members, archive, label_limits=(10,))
    return Contents(examples(train_names), examples([test_name]), class_names)


def read_cifar100(files: tuple[RawFile, ...]) -> Contents:
    """Reads the training and the test file, and the names of classes and superclasses."""
    archive = files[0].path
    folder = "cifar-100-binary/"
    train_name, test_name = f"{folder}train.bin", f"{folder}test.bin"
    fine_name, coarse_name = f"{folder}fine_label_names.txt", f"{folder}coarse_label_names.txt"
    members = read_tar_members(archive, (train_name, test_name, fine_name, coarse_name))
    class_names = _names(members[fine_name], archive, fine_name, 100)
    superclass_names = _names(members[coarse_name], archive, coarse_name, 20)
    examples = functools.partial(_examples, members, archive, label_limits=(20, 100))
    return Contents(examples([train_name]), examples([test_name]), class_names, superclass_names)


def read_tar_members(archive: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Reads some files of a gzipped tar archive into memory; nothing is unpacked to disk.

    Raises:
        UserError: The archive is damaged, has an entry that leads out of it, or lacks a file.
    """
    members = {}
    try:
        with gzip.open(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as tar:
            for member in tar:
                _check_member(archive, member)
                file = tar.extractfile(member) if member.name in names else None
                if file is not None:
                    members[member.name] = file.read()
            # The tar archive ends before the gzip file, whose checksum comes last.
            if len(unpacked.read(_MAX_MEMBER_BYTES)) == _MAX_MEMBER_BYTES:
                raise UserError(f"{archive} goes on after its end")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{archive} is a damaged archive ({error})") from error
    missing = [name for name in names if name not in members]
    if missing:
        raise UserError(f"{archive} has no {missing[0]}")
    return members


def _check_member(archive: Path, member: tarfile.TarInfo) -> None:
    entry = f"{archive}: entry {member.name!r}"
    if member.name.startswith("/") or ".." in Path(member.name).parts:
        raise UserError(f"{entry} climbs out of its folder")
    if not member.isreg() and not member.isdir():
        raise UserError(f"{entry} is a link or another special file")
    # Even what is passed over has to be decompressed.
    if member.size > _MAX_MEMBER_BYTES:
        raise UserError(
            f"{entry} has {member.size:,} bytes; at most {_MAX_MEMBER_BYTES:,} are read"
        )


def _names(content: bytes, archive: Path, name: str, count: int) -> list[str]:
    names = content.decode("ascii", errors="replace").split()
    if len(names) != count:
        raise UserError(f"{archive}: {name} has {len(names)} names; {count} are expected")
    return names


def _examples(
    members: Mapping[str, bytes], archive: Path, names: list[str], label_limits: tuple[int, ...]
) -> Iterator[Example]:
    """Yields the records of some files; the last label byte is the class, one before it coarse."""
    num_labels = len(label_limits)
    for name in names:
        content = np.frombuffer(members[name], np.uint8)
        record_bytes = num_labels + _PIXEL_BYTES
        if len(content) % record_bytes:
            raise UserError(
                f"{archive}: {name} has {len(content):,} bytes, no multiple of {record_bytes}"
            )
        for record in content.reshape(-1, record_bytes):
            labels = record[:num_labels].tolist()
            if any(label >= limit for label, limit in zip(labels, label_limits, strict=True)):
                raise UserError(
                    f"{archive}: {name} has the labels {labels}; the limits are "
                    f"{[limit - 1 for limit in label_limits]}"
                )
            pixels = record[num_labels:].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
            coarse = labels[0] if num_labels == 2 else None
            yield Example(encode_png(pixels), labels[-1], coarse)


CIFAR10 = Source(
    name="cifar10",
    description="60,000 colour images of ten kinds of animals and vehicles, 32x32.",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    image_shape=(_SIDE, _SIDE, 3),
    num_classes=10,
    num_examples={"train": 50_000, "test": 10_000},
    read=read_cifar10,
    files=(
        RemoteFile(
            _UPSTREAM + "cifar-10-binary.tar.gz",
            Digest(170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        ),
    ),
)

CIFAR100 = Source(
    name="cifar100",
    description="60,000 colour images of a hundred classes in twenty superclasses, 32x32.",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    image_shape=(_SIDE, _SIDE, 3),
    num_classes=100,
    num_superclasses=20,
    num_examples={"train": 50_000, "test": 10_000},
    read=read_cifar100,
    files=(
        RemoteFile(
            _UPSTREAM + "cifar-100-binary.tar.gz",
            Digest(168513733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        ),
    ),
)
