"""Image files with Pillow: safe decoding of untrusted files, resizing, PNG encoding, threads."""

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
# File name endings that mark a file as an image. The content then decides the format, which must be
# one of _FORMATS.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
# Largest number of pixels of an image. Pillow warns above a larger number; a 24-bit image of this
# size takes 240 MB.
MAX_PIXELS = 80_000_000
_GREY_MODES = ("1", "L", "LA", "I;16", "I;16L", "I;16B")
# Numbers of the tags in EXIF 2.32 and TIFF 6.0.
_ORIENTATION, _PHOTOMETRIC, _BITS = 274, 262, 258
# Upper limit of the number of threads, because each may hold a large decoded image.
_MAX_THREADS = 16

T = TypeVar("T")
R = TypeVar("R")

# The two ways to bring images to squares of one size; see `Fit`.
RESIZES = ("stretch", "crop")


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """Size and kind of an image file, known without decoding its pixels.

    Attributes:
        width, height: Size in pixels after the image is turned upright.
        is_grey: Whether the file stores grey values and no colours.
        is_plain_jpeg: Whether the file is an upright JPEG in grey or RGB, which all decoders read
            in the same way.
    """

    width: int
    height: int
    is_grey: bool
    is_plain_jpeg: bool


def read_header(file: IO[bytes], name: str) -> ImageHeader:
    """Reads the size and kind of an image without decoding its pixels.

    Args:
        file: The image file, open for reading.
        name: Name of the file, for error messages.

    Raises:
        UserError: The file is damaged, is not a single image of a known format, has more than
            `MAX_PIXELS` pixels or 32 bits per channel.
    """
    with _open(file, name) as image:
        try:
            width, height = image.size
            orientation = image.getexif().get(_ORIENTATION, 1)
            # In orientations 5 to 8 the image lies on its side. For a TIFF, Pillow returns the
            # upright size.
            if image.format != "TIFF" and orientation in (5, 6, 7, 8):
                width, height = height, width
        except Exception as error:
            raise _damaged(name, error) from error
        is_plain = image.format == "JPEG" and image.mode in ("L", "RGB") and orientation == 1
        return ImageHeader(width, height, image.mode in _GREY_MODES, is_plain)


def read_image(content: bytes, name: str, channels: int) -> Image.Image:
    """Decodes an image completely, turns it upright and converts it to 8 bits per channel.

    Args:
        content: The bytes of the file.
        name: Name of the file, for error messages.
        channels: 1 for grey, 3 for RGB, 4 for RGBA. With 1 or 3, transparency is ignored.

    Raises:
        UserError: The file is damaged, is not a single image of a known format, has more than
            `MAX_PIXELS` pixels or 32 bits per channel.
    """
    with _open(io.BytesIO(content), name) as image:
        try:
            # Some TIFFs store white as 0, which Pillow does not correct in 16-bit images.
            tags = getattr(image, "tag_v2", {})
            inverted = tags.get(_PHOTOMETRIC) == 0
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):
                # Scaled here, because `convert` would clip all values above 255 to 255.
                wide = np.asarray(upright, np.float64)
                white = 4095 if tags.get(_BITS) == (12,) else 65535
                wide = white - wide if inverted else wide
                upright = Image.fromarray(np.rint(wide / (white / 255)).astype(np.uint8))
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
    # Phones add preview images to a JPEG; Pillow calls the format of such a file MPO.
    if is_several and image.format != "MPO":
        raise UserError(f"{name} holds several images (frames or pages); allowed: one")
    if image.mode in ("I", "F"):
        raise UserError(f"{name} has 32 bits a pixel and channel; allowed: 8 or 16")
    return image


def _damaged(name: str, error: Exception) -> UserError:
    # Decoders raise many types of exceptions: OSError, SyntaxError, struct.error and others.
    if isinstance(error, Image.UnidentifiedImageError):
        return UserError(f"{name} is damaged, or not a PNG, JPEG, BMP, WebP, GIF or TIFF image")
    return UserError(f"{name} is a damaged image ({one_line(error)})")


def decode(encoded: bytes, channels: int, fit: Fit | None = None) -> np.ndarray:
    """Decodes an image from a prepared data set, where it was checked already.

    Args:
        encoded: The bytes of the image file.
        channels: Number of channels of the result, 1, 3 or 4; the image is converted if needed.
        fit: How the image is resized; None keeps its size.

    Returns:
        uint8 [H, W, channels].
    """
    with Image.open(io.BytesIO(encoded)) as opened:
        image = opened.convert(MODE_OF_CHANNELS[channels])
    if fit is not None:
        image = fit(image)
    return np.asarray(image).reshape(image.height, image.width, channels)


def encode_png(image: np.ndarray | Image.Image) -> bytes:
    """Encodes an image as PNG, without loss: an array uint8 [H, W, 3] or [H, W], or a Pillow image.

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
    """Resizes an image to size × size, or to a size (H, W).

    The method is area averaging if neither side grows, else linear interpolation. If the
    proportions differ, the image is stretched; nothing is cut off.

    Example:
        >>> image = Image.fromarray(np.array([[0, 100], [100, 200]], dtype=np.uint8))
        >>> resize(image, 1).getpixel((0, 0))
        100
    """
    height, width = (size, size) if isinstance(size, int) else size
    if image.size == (width, height):
        return image
    shrinks = width <= image.width and height <= image.height
    # Pillow's box filter weighs each source pixel by the part of its area inside the new pixel.
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return image.resize((width, height), method)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A function that brings images to squares of one size.

    Attributes:
        size: Side of the square in pixels; 0 leaves images unchanged.
        crops: False stretches an image to the square, see `resize`. True keeps the proportions, as
            torchvision's Resize and CenterCrop do: the short side is resized to ``size`` by linear
            interpolation with a low-pass filter, then the middle square is cut out.

    Example:
        >>> wide = Image.new("L", (500, 375))
        >>> Fit(256, crops=True)(wide).size, Fit(0)(wide).size
        ((256, 256), (500, 375))
    """

    size: int
    crops: bool = False

    def __call__(self, image: Image.Image) -> Image.Image:
        """Returns the image resized to size × size, or unchanged if size is 0."""
        if not self.size:
            return image
        if not self.crops:
            return resize(image, self.size)
        short = min(image.size)
        # Sides are rounded down and offsets to the nearest even number at .5, as in torchvision.
        width, height = (int(self.size * side / short) for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))

    def __str__(self) -> str:
        """Returns a short name, which is also used in the names of files."""
        return f"{self.size or 'as_stored'}{'_crop' * self.crops}"


def resize_array(image: np.ndarray, fit: Fit) -> np.ndarray:
    """Resizes an array, uint8 [H, W, C] to uint8 [size, size, C], where size is ``fit.size``.

    With four channels, the fourth is the opacity: pixels are averaged with it as their weight. If
    the number of channels is not 3 or 4, each channel is resized on its own.

    Example:
        >>> resize_array(np.full((4, 6, 1), 7, np.uint8), Fit(2)).shape
        (2, 2, 1)
    """
    parts = [image] if image.shape[-1] in (3, 4) else np.moveaxis(image, -1, 0)
    pictures = [Image.fromarray(np.ascontiguousarray(part)) for part in parts]
    return np.dstack([np.asarray(fit(picture)) for picture in pictures])


def map_in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yields function(item) for each item, in order, computed in threads that read ahead.

    Useful for functions that release the GIL. At most two items for each thread are in progress or
    finished and not yet yielded; `ThreadPoolExecutor.map` would take all items at once and hold all
    results. After an error, calls that have not started are cancelled.

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
    """Number of threads that read images: one for each core the process may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(_MAX_THREADS, cores or 1)
