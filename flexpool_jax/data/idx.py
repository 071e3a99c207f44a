"""The IDX format of MNIST and its successors: a header of sizes, then the bytes."""

from __future__ import annotations

import math
import struct

import numpy as np

from flexpool_jax.errors import UserError

_UNSIGNED_BYTE = 0x08


def parse_idx(content: bytes, name: str, num_dims: int) -> np.ndarray:
    """Parses an IDX file of unsigned bytes.

    The format: two zero bytes, the element type, the number of dimensions, each dimension's size
    as a big-endian 32-bit integer, the elements in row-major order
    (http://yann.lecun.com/exdb/mnist).

    Args:
        content: The whole file, not compressed.
        name: What to call it in errors.
        num_dims: How many dimensions it must have: 3 for images, 1 for labels.

    Returns:
        A read-only uint8 array.

    Raises:
        UserError: The header or the size is not that of such a file.

    Example:
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 0, 4]), "labels", num_dims=1)
        array([5, 0, 4], dtype=uint8)
    """
    magic = bytes([0, 0, _UNSIGNED_BYTE, num_dims])
    if content[:4] != magic:
        raise UserError(
            f"{name} is no IDX file of {num_dims}-dimensional bytes: it begins with "
            f"{content[:4].hex() or 'nothing'}, not {magic.hex()}"
        )
    header_size = 4 + 4 * num_dims
    if len(content) < header_size:
        raise UserError(f"{name} ends inside its IDX header, after {len(content)} bytes")
    shape = struct.unpack(f">{num_dims}I", content[4:header_size])
    # Python's integers: a product that overflowed could pass for the right size.
    expected = header_size + math.prod(shape)
    if len(content) != expected:
        raise UserError(
            f"{name} has {len(content):,} bytes; its IDX header, with sizes {shape}, asks for "
            f"{expected:,}"
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)
