"""Images of a prepared split that are decoded when they are indexed, and reading ahead in threads.

Images that do not fit into memory can be indexed and iterated over in the same way as arrays.
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

# Prefix of the names of cache files in a prepared folder; deleting such a file is harmless.
ARRAYS_PREFIX = "decoded_"
# Size of a chunk of images in bytes.
CHUNK_BYTES = 2**22

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class StoredImages:
    """Images in ArrayRecord files, indexed along the first axis like an array uint8 [N, H, W, C].

    An index is an integer, a slice or an array of integers. Indexing reads and decodes the images
    in the calling thread, every time; decoded images are not cached.

    Attributes:
        records: TFDS data source of the split, with images not decoded.
        positions: int [N], index in ``records`` of each image.
        decode: Function from an encoded image to uint8 [H, W, C].
        image_shape: Height, width and channels of an image.
        folder: The prepared folder with the files.
        key: Text that identifies the files, the split and the result of ``decode``.
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
        """The shape (N, H, W, C)."""
        return (len(self.positions), *self.image_shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes of all images as an array."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.positions)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads and decodes images: uint8 [H, W, C] for an integer index, else [n, H, W, C]."""
        chosen = self.positions[index]
        positions = np.atleast_1d(chosen)
        images = np.empty((len(positions), *self.image_shape), np.uint8)
        found = self.records.__getitems__(positions.tolist()) if len(positions) else []
        for place, position, record in zip(images, positions, found, strict=True):
            place[...] = self._decoded(position, record)
        return images if np.ndim(chosen) else images[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields every image in order; threads read ahead."""
        for images in chunks(self):
            yield from images

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads all images into an array."""
        images = np.empty(self.shape, np.uint8)
        for place, image in zip(images, self, strict=True):
            place[...] = image
        return images if dtype is None else images.astype(dtype, copy=False)

    def take(self, positions: np.ndarray) -> StoredImages:
        """Returns the images at the given positions, without reading them."""
        return dataclasses.replace(self, positions=self.positions[positions])

    def changed(
        self, change: Callable[[np.ndarray], np.ndarray], side: int, what: str
    ) -> StoredImages:
        """Returns side × side images that ``change`` makes of these when they are read.

        The text ``what`` describes the change and becomes a part of ``key``.
        """
        return dataclasses.replace(
            self,
            decode=lambda encoded: change(self.decode(encoded)),
            image_shape=(side, side, self.image_shape[2]),
            key=f"{self.key} {what}",
        )

    def _decoded(self, position: int, record: dict[str, Any]) -> np.ndarray:
        try:
            image = self.decode(record["image"])
        except MemoryError:
            raise
        except Exception as error:  # Decoders of damaged bytes raise many types of exceptions.
            raise damaged(self.folder, error, f"image {position}: ") from error
        if image.shape != self.image_shape:
            raise UserError(
                f"the images in {self.folder} differ in size ({image.shape} beside "
                f"{self.image_shape}); set dataset.image_size"
            )
        return image


def chunks(images: np.ndarray | StoredImages) -> Iterator[np.ndarray]:
    """Yields all images in order, as arrays of a few megabytes; threads read ahead."""
    step = max(1, CHUNK_BYTES // int(np.prod(images.shape[1:])))
    starts = range(0, len(images), step)
    return map_in_threads(lambda start: images[start : start + step], starts)


def damaged(folder: Path, reason: object, where: str = "") -> UserError:
    """Builds the error for a damaged prepared folder; the reason may be an exception."""
    return UserError(
        f"{folder} is damaged ({where}{one_line(reason)}); delete this folder, and prepare the "
        "data set again"
    )


def read_ahead(item: Callable[[int], T], count: int, start: int = 0) -> Generator[T]:
    """Yields item(start), item(start + 1), ... up to item(count - 1), computed ahead in threads.

    To bound memory, at most one item for each thread is in progress or buffered. Call ``close`` on
    this generator if it may not be read to its end; this stops the threads.

    Args:
        item: Function of an index that many threads may call at once. Its exceptions are raised
            here.
        count: Index at which to stop; this index is not included.
        start: First index.

    Example:
        >>> list(read_ahead(lambda index: index**2, count=5, start=2))
        [4, 9, 16]
    """
    # Imported here because the import is slow, and most runs have their data in memory.
    import grain

    threads = thread_count()
    dataset = grain.MapDataset.range(start, count).map(item)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    with contextlib.closing(iter(dataset.to_iter_dataset(options))) as iterator:
        yield from iterator
