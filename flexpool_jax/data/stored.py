"""The images of a prepared split, decoded when they are asked for, and reading them ahead.

What does not fit into memory is handled in the same way as arrays: it is indexed, and looked at in
order, some images at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flexpool_jax.data.images import map_in_threads, thread_count
from flexpool_jax.errors import UserError, one_line

# Of the names of files that are kept in a prepared folder and can be made anew.
ARRAYS_PREFIX = "decoded_"
# Size of a chunk of images in bytes.
CHUNK_BYTES = 2**22

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class StoredImages:
    """Images in ArrayRecord files, indexed along the first axis like uint8 [N, H, W, C].

    An index is a number, a slice or an array of numbers, and each image is read and decoded anew
    whenever it is asked for, in the thread that asks.

    Attributes:
        records: What TFDS reads the split's records with, undecoded.
        positions: int [N], which records these are, in order.
        decode: From an encoded image to uint8 [H, W, C].
        image_shape: Height, width and channels of an image.
        folder: The folder of the files.
        key: Identifies the files, the split, and what ``decode`` makes of a record.
    """

    records: Any
    positions: np.ndarray
    decode: Callable[[bytes], np.ndarray]
    image_shape: tuple[int, int, int]
    folder: Path
    key: str

    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (len(self.positions), *self.image_shape)

    @property
    def nbytes(self) -> int:
        """What they would take in memory."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.positions)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads and decodes images: uint8 [H, W, C] for a number, else [n, H, W, C]."""
        chosen = self.positions[index]
        positions = np.atleast_1d(chosen)
        images = np.empty((len(positions), *self.image_shape), np.uint8)
        found = self.records.__getitems__(positions.tolist()) if len(positions) else []
        for place, position, record in zip(images, positions, found, strict=True):
            place[...] = self._decoded(position, record)
        return images if np.ndim(chosen) else images[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields every image in order, read ahead."""
        for images in self.chunks():
            yield from images

    def chunks(self) -> Iterator[np.ndarray]:
        """Yields all images in order, a few megabytes at a time, read ahead."""
        step = max(1, CHUNK_BYTES // int(np.prod(self.image_shape)))
        starts = range(0, len(self), step)
        return map_in_threads(lambda start: self[start : start + step], starts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads them all into memory."""
        images = np.empty(self.shape, np.uint8)
        for place, image in zip(images, self, strict=True):
            place[...] = image
        return images if dtype is None else images.astype(dtype, copy=False)

    def take(self, positions: np.ndarray) -> StoredImages:
        """The images at some positions, without reading them."""
        return dataclasses.replace(self, positions=self.positions[positions])

    def center_crop(self, side: int) -> StoredImages:
        """The middle of every image, side × side pixels."""
        height, width, channels = self.image_shape
        top, left = (height - side) // 2, (width - side) // 2

        def decode(encoded: bytes) -> np.ndarray:
            return self.decode(encoded)[top : top + side, left : left + side]

        key = f"{self.key} cropped to {side}"
        return dataclasses.replace(self, decode=decode, image_shape=(side, side, channels), key=key)

    def _decoded(self, position: int, record: dict[str, Any]) -> np.ndarray:
        try:
            image = self.decode(record["image"])
        except Exception as error:  # Whatever a decoder of damaged bytes may raise.
            raise damaged(self.folder, error, f"image {position}: ") from error
        if image.shape != self.image_shape:
            raise UserError(
                f"the images in {self.folder} differ in size ({image.shape} beside "
                f"{self.image_shape}); set dataset.image_size"
            )
        return image


def damaged(folder: Path, reason: object, where: str = "") -> UserError:
    """Builds the error for a prepared folder; the reason may be an exception."""
    return UserError(
        f"{folder} is damaged ({where}{one_line(reason)}); delete this folder, and it is prepared "
        "again"
    )


def read_ahead(item: Callable[[int], T], count: int, start: int = 0) -> Generator[T]:
    """Yields item(start), item(start + 1), ... up to item(count - 1), which threads make ahead.

    As many items as there are threads are being made or wait, so that memory is bounded. To be
    closed where it may not be read to its end; the threads end with it.

    Args:
        item: A function that many threads may call at once. What it raises is raised here.
        count: Where to stop.
        start: Where to begin.

    Example:
        >>> list(read_ahead(lambda index: index**2, count=5, start=2))
        [4, 9, 16]
    """
    # Imported here because it takes a while, and most runs keep their data in memory.
    import grain

    threads = thread_count()
    dataset = grain.MapDataset.range(start, count).map(item)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    with contextlib.closing(iter(dataset.to_iter_dataset(options))) as iterator:
        yield from iterator
