"""Draws many small images with captions as one picture."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

RIGHT, WRONG = "#18794e", "#c62828"

_SIDE, _GAP, _LINE, _FONT_SIZE = 128, 12, 16, 13


class Tile(NamedTuple):
    """One image of a contact sheet.

    Attributes:
        image: pixels, uint8 [H, W, C] with 1, 3 or 4 channels.
        captions: lines below the image, each a pair of a text and its colour.
    """

    image: np.ndarray
    captions: Sequence[tuple[str, str]]


def contact_sheet(tiles: Sequence[Tile]) -> Image.Image:
    """Draws images in rows, each with its captions below it.

    Images are scaled to fit a square of 128 pixels; small ones are enlarged by repeating pixels. If
    a caption is too long, its middle is replaced by "…".

    Args:
        tiles: at least one; all with the same number of captions.

    Returns:
        An RGB image.

    Example:
        >>> tile = Tile(np.zeros((8, 8, 1), np.uint8), [("zero", RIGHT)])
        >>> contact_sheet([tile] * 3).size
        (432, 172)
    """
    across = min(len(tiles), max(3, math.ceil(math.sqrt(len(tiles)))))
    down = math.ceil(len(tiles) / across)
    height = _SIDE + 4 + _LINE * len(tiles[0].captions) + _GAP
    size = (across * (_SIDE + _GAP) + _GAP, down * height + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        x = _GAP + index % across * (_SIDE + _GAP)
        y = _GAP + index // across * height
        picture = scaled(tile.image, _SIDE)
        sheet.paste(picture, (x + (_SIDE - picture.width) // 2, y + _SIDE - picture.height))
        for line, (text, colour) in enumerate(tile.captions):
            place = (x, y + _SIDE + 4 + _LINE * line)
            draw.text(place, _shortened(text), font=_font(), fill=colour)
    return sheet


def scaled(image: np.ndarray, side: int) -> Image.Image:
    """Scales an image, uint8 [H, W, C], to `side` pixels on its longer side.

    It is enlarged by repeating pixels.
    """
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).convert("RGB")
    factor = side / max(picture.size)
    size = [max(1, round(length * factor)) for length in picture.size]
    method = Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST
    return picture.resize((size[0], size[1]), method)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    # Matplotlib includes this font; it has more alphabets than Pillow's own.
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), _FONT_SIZE)


def _shortened(text: str) -> str:
    text = "".join(character if character.isprintable() else "�" for character in text)
    kept = len(text)
    shown = text
    while _font().getlength(shown) > _SIDE and kept > 2:
        kept -= 1
        shown = f"{text[: math.ceil(kept / 2)]}…{text[len(text) - kept // 2 :]}"
    return shown
