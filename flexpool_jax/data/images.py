"""Image files with Pillow: reading those that may be damaged or hostile, resizing, PNG, threads."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import io
import os
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageOps

from flexpool_jax.errors import UserError, one_line

MODE_OF_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
# By the name's ending; the content decides what a file is, among these formats alone.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
# Below Pillow's own warning; a 24-bit image of this size takes 240 MB.
MAX_PIXELS = 80_000_000
_GREY_MODES = ("1", "L", "LA", "I;16", "I;16L", "I;16B")
# Tags of EXIF 2.32 and TIFF 6.0.
_ORIENTATION, _PHOTOMETRIC = 274, 262
# Each thread may hold a large decoded image, so not as many as a big machine has cores.
_MAX_THREADS = 16

T = TypeVar("T")
R = TypeVar("R")

# What brings images to squares of one size; see `Fit`.
RESIZES = ("stretch", "crop")


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image file says of itself before its pixels are read: size and kind.

    Attributes:
        width, height: As it is to be seen.
        is_grey: Whether it has no colours.
        is_plain_jpeg: Whether it is a JPEG file that decoders agree on: upright, grey or RGB.
    """

    width: int
    height: int
    is_grey: bool
    is_plain_jpeg: bool


def read_header(file: IO[bytes], name: str) -> Header:
    """Reads an image's size, as it is to be seen, and whether it is grey.

    Raises:
        UserError: It is not an image of a known format, or it has more than `MAX_PIXELS`.
    """
    with _open(file, name) as image:
        try:
            width, height = image.size
            orientation = image.getexif().get(_ORIENTATION, 1)
            # Orientations 5 to 8 lie on their side; of a TIFF Pillow gives the upright size.
            if image.format != "TIFF" and orientation in (5, 6, 7, 8):
                width, height = height, width
        except Exception as error:
            raise _damaged(name, error) from error
        is_plain = image.format == "JPEG" and image.mode in ("L", "RGB") and orientation == 1
        return Header(width, height, image.mode in _GREY_MODES, is_plain)


def read_image(content: bytes, name: str, channels: int) -> Image.Image:
    """Decodes an image completely, upright and in the mode for so many channels.

    16 bits are scaled to 8; transparency is dropped.

    Raises:
        UserError: It is damaged, not a single image of a known format, or too large.
    """
    with _open(io.BytesIO(content), name) as image:
        try:
            # Pillow leaves it to us that some TIFFs store white as 0.
            inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):
                # `convert` would cut all values above 255 down to 255.
                wide = np.asarray(upright, np.float64)
                wide = 65535 - wide if inverted else wide
                upright = Image.fromarray(np.rint(wide / 257).astype(np.uint8))
            return upright.convert(MODE_OF_CHANNELS[channels])
        except Exception as error:
            raise _damaged(name, error) from error


def _open(file: IO[bytes], name: str) -> Image.Image:
    try:
        image = Image.open(file, formats=_FORMATS)
        is_several = getattr(image, "is_animated", False)
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large: {error}") from error
    except Exception as error:
        raise _damaged(name, error) from error
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"{name} is too large: {image.width} x {image.height} pixels; at most "
            f"{MAX_PIXELS:,} are decoded"
        )
    # Phones add previews to a JPEG, which Pillow then calls an MPO.
    if is_several and image.format != "MPO":
        raise UserError(f"{name} holds several images (frames or pages); allowed: one")
    if image.mode in ("I", "F"):
        raise UserError(f"{name} has 32 bits a pixel and channel; allowed: 8 or 16")
    return image


def _damaged(name: str, error: Exception) -> UserError:
    # Decoders raise whatever they stumble over: OSError, SyntaxError, struct.error and others.
    if isinstance(error, Image.UnidentifiedImageError):
        return UserError(f"{name} is damaged, or not a PNG, JPEG, BMP, WebP, GIF or TIFF image")
    return UserError(f"{name} is a damaged image ({one_line(error)})")


def decode(encoded: bytes, channels: int, fit: Fit | None = None) -> np.ndarray:
    """Decodes an image that was checked when it was prepared.

    Args:
        encoded: The file's bytes.
        channels: 1, 3 or 4; other images are converted.
        fit: The size to bring it to; None leaves it as it is.

    Returns:
        uint8 [H, W, channels].
    """
    with Image.open(io.BytesIO(encoded)) as opened:
        image = opened.convert(MODE_OF_CHANNELS[channels])
    if fit is not None:
        image = fit(image)
    return np.asarray(image).reshape(image.height, image.width, channels)


def encode_png(image: np.ndarray | Image.Image) -> bytes:
    """Encodes an array, uint8 [H, W, 3] or [H, W], or a Pillow image losslessly as PNG.

    Example:
        >>> image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
        >>> bool((decode(encode_png(image), channels=3) == image).all())
        True
    """
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def resize(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """Resizes to size × size, or to (H, W): by area averaging when it shrinks, else linearly.

    An image of other proportions is stretched, so that nothing of it is cut off.

    Example:
        >>> image = Image.fromarray(np.array([[0, 100], [100, 200]], dtype=np.uint8))
        >>> resize(image, 1).getpixel((0, 0))
        100
    """
    height, width = (size, size) if isinstance(size, int) else size
    if image.size == (width, height):
        return image
    shrinks = width <= image.width and height <= image.height
    # Pillow's box filter weighs each source pixel by the area of it that a new pixel covers.
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return image.resize((width, height), method)


@dataclasses.dataclass(frozen=True)
class Fit:
    """How images are brought to squares of one size.

    Attributes:
        size: Side in pixels; 0 leaves images as they are.
        crops: False stretches an image to the square, see `resize`. True keeps its proportions: the
            short side is resized to ``size``, linearly with a low-pass filter, and the middle of
            the long side is kept, as torchvision's Resize and CenterCrop do.

    Example:
        >>> wide = Image.new("L", (500, 375))
        >>> Fit(256, crops=True)(wide).size, Fit(0)(wide).size
        ((256, 256), (500, 375))
    """

    size: int
    crops: bool = False

    def __call__(self, image: Image.Image) -> Image.Image:
        """Brings an image to the size."""
        if not self.size:
            return image
        if not self.crops:
            return resize(image, self.size)
        short = min(image.size)
        # Rounded down and to even, as torchvision rounds.
        width, height = (int(self.size * side / short) for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))

    def __str__(self) -> str:
        """Names it, in files' names too."""
        return f"{self.size or 'as_stored'}{'_crop' * self.crops}"


def resize_array(image: np.ndarray, fit: Fit) -> np.ndarray:
    """Brings an image to a size: uint8 [H, W, C] to uint8 [size, size, C].

    Three channels are colours, and a fourth is their opacity, by which the others are weighed.
    Any other number of channels is resized one by one.

    Example:
        >>> resize_array(np.full((4, 6, 1), 7, np.uint8), Fit(2)).shape
        (2, 2, 1)
    """
    parts = [image] if image.shape[-1] in (3, 4) else np.moveaxis(image, -1, 0)
    pictures = [Image.fromarray(np.ascontiguousarray(part)) for part in parts]
    return np.dstack([np.asarray(fit(picture)) for picture in pictures])


def map_in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yields function(item) for each item, in order; for functions that release the GIL.

    `ThreadPoolExecutor.map` would take all items at once and keep all results; here twice as many
    as there are threads are being made or wait. After an error, what has not begun never does.

    Example:
        >>> list(map_in_threads(str.upper, "abc"))
        ['A', 'B', 'C']
    """
    threads = thread_count()
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    waiting: collections.deque[concurrent.futures.Future[R]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@functools.cache
def thread_count() -> int:
    """How many threads read images: one for each core that the process may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(_MAX_THREADS, cores or 1)
