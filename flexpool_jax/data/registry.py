"""Every data set by name: what it is, where it comes from, and the function that reads it.

To add one, write its reader in a module of `flexpool_jax.data.readers` and add its entry here, to
`_SOURCES`: no other file is touched. Readers are named as text and imported when they are needed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from flexpool_jax.errors import UserError
from flexpool_jax.registration import is_same_definition

#: The package of the functions that read data sets.
READERS = "flexpool_jax.data.readers"


@dataclasses.dataclass(frozen=True)
class Digest:
    """Size in bytes and SHA-256 (hexadecimal) of some bytes."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file that upstream publishes.

    Attributes:
        url: Where it is published.
        digest: Size and SHA-256 of the file itself; a download is checked by it.
        content: Of what is inside a gzipped file. With it, a copy that was compressed again, or
            not at all, is as good as upstream's.
        unpacked: The folder that the archive unpacks to, if that too is accepted.
    """

    url: str
    digest: Digest
    content: Digest | None = None
    unpacked: str = ""

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.url).name


@dataclasses.dataclass(frozen=True)
class Example:
    """One image on its way to disk.

    Attributes:
        image: The encoded image, PNG or JPEG.
        label: Index of its class.
        superclass: Index of its superclass, where the data set has superclasses of its own.
    """

    image: bytes
    label: int
    superclass: int | None = None


@dataclasses.dataclass(frozen=True)
class Contents:
    """What the files of a source hold.

    Attributes:
        image_shape: Height, width and channels of the images; None for a side that differs.
        class_names: The name of each class.
        splits: "train" and, unless it is to be drawn from that, "test". Each is read once, "train"
            first.
        superclass_names: The name of each superclass; empty if there are none.
        note: What to tell the user once everything has been read; empty for nothing.
    """

    image_shape: tuple[int | None, int | None, int]
    class_names: Sequence[str]
    splits: Mapping[str, Iterable[Example]]
    superclass_names: Sequence[str] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that is prepared as ArrayRecord before it is loaded.

    Attributes:
        name: The name to load it by, and its folder under data_dir.
        description: A sentence on what it is.
        homepage: Where it comes from.
        read: A function that reads the files, a tuple of `download.RawFile` in the order of
            `files`, and returns `Contents`; or where that is, ``"module:function"`` of `READERS`.
        num_classes: How many classes there must be.
        num_examples: How many examples each split must have.
        files: What upstream publishes.
        default_image_size: The side that images are resized to on loading if no other is asked
            for; 0 leaves them as they are stored.
        has_superclasses: Whether it has superclasses of its own.
        variant: A folder level between name and version, for sources made from a user's folder.
    """

    name: str
    description: str
    homepage: str
    read: str | Callable[[tuple[Any, ...]], Contents]
    num_classes: int
    num_examples: Mapping[str, int]
    files: tuple[RemoteFile, ...] = ()
    default_image_size: int = 0
    has_superclasses: bool = False
    variant: str = ""


@dataclasses.dataclass(frozen=True)
class RawDir:
    """A data set that is whatever `dataset.raw_dir` holds.

    Attributes:
        open: Where a function of raw_dir and an `images.Fit` is that returns a `Source` to prepare
            or the arrays themselves, a `dataset.Arrays`: ``"module:function"``.
    """

    open: str


@dataclasses.dataclass(frozen=True)
class Registered:
    """A data set of arrays that a user's function returns; see `register_dataset`."""

    load: Callable[[], Any]


_FASHION_MNIST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_TINY_IMAGENET = "tiny-imagenet-200"

_FASHION_MNIST_FILES = (
    RemoteFile(
        _FASHION_MNIST + "train-images-idx3-ubyte.gz",
        Digest(26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        Digest(47040016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    ),
    RemoteFile(
        _FASHION_MNIST + "train-labels-idx1-ubyte.gz",
        Digest(29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        Digest(60008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    ),
    RemoteFile(
        _FASHION_MNIST + "t10k-images-idx3-ubyte.gz",
        Digest(4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        Digest(7840016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    ),
    RemoteFile(
        _FASHION_MNIST + "t10k-labels-idx1-ubyte.gz",
        Digest(5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        Digest(10008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ),
)
_CIFAR10_FILES = (
    RemoteFile(
        _CIFAR + "cifar-10-binary.tar.gz",
        Digest(170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        unpacked="cifar-10-batches-bin",
    ),
)
_CIFAR100_FILES = (
    RemoteFile(
        _CIFAR + "cifar-100-binary.tar.gz",
        Digest(168513733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        unpacked="cifar-100-binary",
    ),
)
_TINY_IMAGENET_FILES = (
    RemoteFile(
        f"http://cs231n.stanford.edu/{_TINY_IMAGENET}.zip",
        Digest(248100043, "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"),
        unpacked=_TINY_IMAGENET,
    ),
)

_SOURCES = (
    Source(
        name="digits",
        description="1,797 scans of handwritten digits, 8x8, as scikit-learn ships them.",
        homepage="https://archive.ics.uci.edu/dataset/80",
        read="digits:read_digits",
        num_classes=10,
        # Four fifths of each class are for training.
        num_examples={"train": 1438, "test": 359},
        # The CIFAR ResNets shrink their input fourfold.
        default_image_size=32,
    ),
    Source(
        name="fashion_mnist",
        description="70,000 grey images of clothes, 28x28, ten classes.",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        read="fashion_mnist:read_fashion_mnist",
        num_classes=10,
        num_examples={"train": 60_000, "test": 10_000},
        files=_FASHION_MNIST_FILES,
    ),
    Source(
        name="cifar10",
        description="60,000 colour images of ten kinds of animals and vehicles, 32x32.",
        homepage=_CIFAR + "cifar.html",
        read="cifar:read_cifar10",
        num_classes=10,
        num_examples={"train": 50_000, "test": 10_000},
        files=_CIFAR10_FILES,
    ),
    Source(
        name="cifar100",
        description="60,000 colour images of a hundred classes in twenty superclasses, 32x32.",
        homepage=_CIFAR + "cifar.html",
        read="cifar:read_cifar100",
        num_classes=100,
        num_examples={"train": 50_000, "test": 10_000},
        files=_CIFAR100_FILES,
        has_superclasses=True,
    ),
    Source(
        name="tiny_imagenet",
        description="110,000 colour images of two hundred ImageNet classes, 64x64.",
        homepage="http://cs231n.stanford.edu/",
        read="tiny_imagenet:read_tiny_imagenet",
        num_classes=200,
        num_examples={"train": 100_000, "test": 10_000},
        files=_TINY_IMAGENET_FILES,
        # Section 4.1 of the paper.
        default_image_size=32,
    ),
)

#: Every data set by name, registered ones included: where it comes from.
DATASETS: dict[str, Source | RawDir | Registered] = {
    **{source.name: source for source in _SOURCES},
    "image_folder": RawDir("image_folder:open_image_folder"),
    "npz": RawDir("npz:open_npz"),
}


def register_dataset(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Registers a function that returns arrays as a data set that configs may name.

    The function is called once in a process, when the data set is first loaded. Nothing is
    prepared or kept on disk; `image_size`, `holdout` and a file of superclasses work as with any
    other data set.

    Args:
        name: What ``config.dataset.name`` calls it: letters, digits, ``_``, ``-`` and ``.``.

    Returns:
        A decorator for a function without arguments that returns ``(splits, class_names)``.
        ``splits`` is ``{"train": (images, labels), "test": (images, labels)}`` with images uint8
        [N, H, W, C] or [N, H, W], C 1, 3 or 4, and integer labels [N], indices of
        ``class_names``. What it returns is checked when it is loaded.

    Raises:
        UserError: The name is taken by another data set, or cannot be one. The same function may
            be registered again, as when a notebook's cell is run twice.

    Example:
        >>> import numpy as np
        >>> from flexpool_jax.data import load_dataset
        >>> @register_dataset("stripes")
        ... def load_stripes():
        ...     images = np.zeros((8, 16, 16, 3), np.uint8)
        ...     images[::2, ::2] = images[1::2, :, ::2] = 255
        ...     labels = np.arange(8) % 2
        ...     return {"train": (images, labels), "test": (images, labels)}, ["rows", "columns"]
        >>> load_dataset("stripes", data_dir="data").train.images.shape
        (8, 16, 16, 3)
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UserError(
            f"a data set cannot be named {name!r}; allowed: letters, digits, _, - and ., beginning "
            "with a letter or digit"
        )

    def register(load: Callable[[], Any]) -> Callable[[], Any]:
        if not callable(load):
            raise UserError(f"data set {name!r} needs a function; got {load!r}")
        known = DATASETS.get(name)
        if known is not None and not (
            isinstance(known, Registered) and is_same_definition(known.load, load)
        ):
            raise UserError(f"a data set named {name!r} is registered already")
        DATASETS[name] = Registered(load)
        return load

    return register


def has_superclasses(name: str) -> bool:
    """Whether the data set of that name comes with superclasses of its own."""
    known = DATASETS.get(name)
    return isinstance(known, Source) and known.has_superclasses
