"""Single images: encoding, decoding and resizing with Pillow."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

MODE_OF_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


def encode_png(image: np.ndarray) -> bytes:
    """Encodes uint8 [H, W, 1], [H, W, 3] or [H, W] losslessly as PNG.

    Pillow takes ten times as long for a small image, most of it in Python. Follows the PNG
    specification (ISO/IEC 15948): signature, header, one chunk of zlib-compressed rows, end.

    Example:
        >>> image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
        >>> bool((decode(encode_png(image), channels=3) == image).all())
        True
    """
    height, width = image.shape[:2]
    colour_type = 2 if image.ndim == 3 and image.shape[2] == 3 else 0
    # Each row begins with the number of its filter; 0 is none.
    rows = np.pad(image.reshape(height, -1), ((0, 0), (1, 0)))
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _png_chunk(b"IHDR", header),
            _png_chunk(b"IDAT", zlib.compress(rows.tobytes(), level=1)),
            _png_chunk(b"IEND", b""),
        )
    )


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def resize(image: Image.Image, size: int) -> Image.Image:
    """Resizes to size × size: by area averaging when it shrinks, else linearly.

    An image that is not square is stretched, so that nothing of it is cut off.

    Example:
        >>> image = Image.fromarray(np.array([[0, 100], [100, 200]], dtype=np.uint8))
        >>> resize(image, 1).getpixel((0, 0))
        100
    """
    if image.size == (size, size):
        return image
    shrinks = size <= image.width and size <= image.height
    # Pillow's box filter weighs each source pixel by the area of it that a new pixel covers.
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return image.resize((size, size), method)


def decode(encoded: bytes, channels: int, size: int = 0) -> np.ndarray:
    """Decodes an image that was checked when it was prepared.

    Args:
        encoded: The file's bytes.
        channels: 1, 3 or 4; other images are converted.
        size: Side to resize to; 0 leaves it as it is.

    Returns:
        uint8 [H, W, channels].
    """
    with Image.open(io.BytesIO(encoded)) as opened:
        image = opened.convert(MODE_OF_CHANNELS[channels])
    if size:
        image = resize(image, size)
    return np.asarray(image).reshape(image.height, image.width, channels)
