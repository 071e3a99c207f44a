"""`cifar10` and `cifar100`: 60,000 colour images, 32x32 (Krizhevsky 2009).

Both are read from the archives for C programs, which hold plain bytes. A record is one label byte
(CIFAR-100: a coarse and a fine label byte) and 3072 bytes of pixels: all red values, then all green
values, then all blue values, each row by row (https://www.cs.toronto.edu/~kriz/cifar.html). The
archives for Python are not used, because they are pickles, and loading a pickle can run any code.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from flexpool_jax.data import archives
from flexpool_jax.data.download import RawFile
from flexpool_jax.data.images import encode_png
from flexpool_jax.data.registry import Contents, Example
from flexpool_jax.errors import UserError

_SIDE = 32


def read_cifar10(files: tuple[RawFile, ...]) -> Contents:
    """Reads five training batches, the test batch and the names of the classes."""
    train = [f"data_batch_{number}.bin" for number in range(1, 6)]
    members = _read_members(files[0], (*train, "test_batch.bin", "batches.meta.txt"))
    class_names = _names(members, files[0].path, "batches.meta.txt", 10)
    examples = functools.partial(_examples, members, files[0].path, (10,))
    splits = {"train": examples(train), "test": examples(["test_batch.bin"])}
    return Contents((_SIDE, _SIDE, 3), class_names, splits)


def read_cifar100(files: tuple[RawFile, ...]) -> Contents:
    """Reads the training and the test file, and the names of classes and superclasses."""
    fine, coarse = "fine_label_names.txt", "coarse_label_names.txt"
    members = _read_members(files[0], ("train.bin", "test.bin", fine, coarse))
    class_names = _names(members, files[0].path, fine, 100)
    superclass_names = _names(members, files[0].path, coarse, 20)
    examples = functools.partial(_examples, members, files[0].path, (20, 100))
    splits = {"train": examples(["train.bin"]), "test": examples(["test.bin"])}
    return Contents((_SIDE, _SIDE, 3), class_names, splits, superclass_names)


def _read_members(file: RawFile, names: tuple[str, ...]) -> dict[str, bytes]:
    """Reads the named files from the archive or from its unpacked folder."""
    if file.path.is_dir():
        tree = archives.open_tree(file.path)
        return {name: archives.read_file(tree, name) for name in names}
    folder = file.remote.unpacked
    members = archives.read_tar(file.path, [f"{folder}/{name}" for name in names])
    return {name: members[f"{folder}/{name}"] for name in names}


def _names(members: Mapping[str, bytes], path: Path, name: str, count: int) -> list[str]:
    names = members[name].decode("ascii", errors="replace").split()
    if len(names) != count:
        raise UserError(f"{path}: {name} has {len(names)} names; {count} are expected")
    return names


def _examples(
    members: Mapping[str, bytes], path: Path, num_labels: tuple[int, ...], names: list[str]
) -> Iterator[Example]:
    """Yields the examples of some files.

    Args:
        members: Bytes of the files by name.
        path: The archive, for error messages.
        num_labels: Number of possible values of each label byte of a record. The last label byte is
            the class; a label byte before it is the superclass.
        names: Names of the files to read.
    """
    record_bytes = len(num_labels) + 3 * _SIDE * _SIDE
    for name in names:
        content = np.frombuffer(members[name], np.uint8)
        if len(content) % record_bytes:
            raise UserError(
                f"{path}: {name} has {len(content):,} bytes, not a multiple of {record_bytes}"
            )
        for record in content.reshape(-1, record_bytes):
            labels, pixels = record[: len(num_labels)].tolist(), record[len(num_labels) :]
            if any(label >= limit for label, limit in zip(labels, num_labels, strict=True)):
                raise UserError(
                    f"{path}: {name} has the labels {labels}; the limits are "
                    f"{[limit - 1 for limit in num_labels]}"
                )
            image = pixels.reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
            yield Example(encode_png(image), *reversed(labels))
