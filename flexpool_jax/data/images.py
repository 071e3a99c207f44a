"""Single images: encoding, decoding and resizing with Pillow."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

MODE_OF_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


def encode_png(image: np.ndarray) -> bytes:
    """Encodes uint8 [H, W, C] or [H, W] losslessly; little effort, as small images gain nothing."""
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


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
