"""`fashion_mnist`: 28x28 grey images of clothes (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747)."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np

from flexpool_jax.data.download import RawFile
from flexpool_jax.data.images import encode_png
from flexpool_jax.data.registry import Contents, Example
from flexpool_jax.errors import UserError

_CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_UNSIGNED_BYTE = 0x08


def read_fashion_mnist(files: tuple[RawFile, ...]) -> Contents:
    """Reads four IDX files: training images and labels, test images and labels."""
    splits = {"train": _examples(*files[:2]), "test": _examples(*files[2:])}
    return Contents((28, 28, 1), _CLASS_NAMES, splits)


def _examples(images_file: RawFile, labels_file: RawFile) -> Iterator[Example]:
    images = parse_idx(images_file.read_content(), str(images_file.path), num_dims=3)
    labels = parse_idx(labels_file.read_content(), str(labels_file.path), num_dims=1)
    if len(images) != len(labels):
        raise UserError(
            f"{images_file.path} has {len(images):,} images, but {labels_file.path} has "
            f"{len(labels):,} labels"
        )
    for image, label in zip(images, labels, strict=True):
        if label >= len(_CLASS_NAMES):
            raise UserError(f"{labels_file.path} has the label {label}; allowed: 0 to 9")
        yield Example(encode_png(image), int(label))


def parse_idx(content: bytes, name: str, num_dims: int) -> np.ndarray:
    """Parses a file of unsigned bytes in the IDX format of MNIST and its successors.

    The format: two zero bytes, the element type, the number of dimensions, each dimension's size
    as a big-endian 32-bit integer, the elements in row-major order
    (http://yann.lecun.com/exdb/mnist).

    Args:
        content: The whole file, not compressed.
        name: Name of the file, for error messages.
        num_dims: Required number of dimensions: 3 for images, 1 for labels.

    Returns:
        A read-only uint8 array.

    Raises:
        UserError: The header is not that of such a file, or the file's size does not fit it.

    Example:
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 0, 4]), "labels", num_dims=1)
        array([5, 0, 4], dtype=uint8)
    """
    magic = bytes([0, 0, _UNSIGNED_BYTE, num_dims])
    if content[:4] != magic:
        raise UserError(
            f"{name} is not an IDX file of {num_dims}-dimensional bytes: it begins with "
            f"{content[:4].hex() or 'nothing'}, not {magic.hex()}"
        )
    header_size = 4 + 4 * num_dims
    if len(content) < header_size:
        raise UserError(f"{name} ends inside its IDX header, after {len(content)} bytes")
    shape = struct.unpack(f">{num_dims}I", content[4:header_size])
    # Computed with Python's integers, which cannot overflow to a size that happens to fit.
    expected = header_size + math.prod(shape)
    if len(content) != expected:
        raise UserError(
            f"{name} has {len(content):,} bytes; its IDX header, with sizes {shape}, asks for "
            f"{expected:,}"
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)
