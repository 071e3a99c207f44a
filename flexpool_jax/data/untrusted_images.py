"""Reading image files that may be damaged, huge or not images at all."""

from __future__ import annotations

import dataclasses
import io
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from flexpool_jax.data.images import MODE_OF_CHANNELS
from flexpool_jax.errors import UserError

# By the name's ending; the content decides what a file is, among these alone.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
# Below Pillow's own warning; a 24-bit image of this size takes 240 MB.
MAX_PIXELS = 80_000_000
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "F")


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image file says of itself before its pixels are read: size and kind."""

    width: int
    height: int
    is_grey: bool


def read_header(file: BinaryIO, name: str) -> Header:
    """Reads an image's size, as it is to be seen, and whether it is grey.

    Raises:
        UserError: It is no image of a known format, or has more than `MAX_PIXELS`.
    """
    with _open(file, name) as image:
        try:
            width, height = image.size
            # Orientations 5 to 8 lie on their side (EXIF 2.32, tag 274).
            if image.getexif().get(274) in (5, 6, 7, 8):
                width, height = height, width
        except Exception as error:
            raise _damaged(name, error) from error
        return Header(width, height, image.mode in _GREY_MODES)


def read_image(content: bytes, name: str, channels: int) -> Image.Image:
    """Decodes an image completely, upright and in the mode for so many channels.

    16-bit greys are brought to 8 bits by their value; transparency is dropped.

    Raises:
        UserError: It is damaged, no image of a known format, or too large.
    """
    with _open(io.BytesIO(content), name) as image:
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                # Pillow would cut all values above 255 down to 255.
                wide = np.asarray(upright, np.float64).clip(0, 65535)
                upright = Image.fromarray(np.rint(wide / 257).astype(np.uint8))
            return upright.convert(MODE_OF_CHANNELS[channels])
        except Exception as error:
            raise _damaged(name, error) from error


def _open(file: BinaryIO, name: str) -> Image.Image:
    try:
        image = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large: {error}") from error
    except Exception as error:
        raise _damaged(name, error) from error
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"{name} is too large: {image.width} x {image.height} pixels; at most "
            f"{MAX_PIXELS:,} are decoded"
        )
    return image


def _damaged(name: str, error: Exception) -> UserError:
    # Decoders raise whatever they stumble over: OSError, SyntaxError, struct.error and others.
    if isinstance(error, Image.UnidentifiedImageError):
        return UserError(f"{name} is damaged, or no PNG, JPEG, BMP or WebP image")
    reason = " ".join(str(error).split())[:150] or type(error).__name__
    return UserError(f"{name} is a damaged image ({reason})")
