"""All data sets by name: a description, where the files are, and the function that reads them.

To add a data set, write its reader in a module of `flexpool_jax.data.readers` and add its entry to
`_SOURCES` here; no other file has to change. Readers are given as text and imported when needed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from flexpool_jax.errors import UserError
from flexpool_jax.registration import is_same_definition, why_not_callable

#: The package with the functions that read the files of data sets.
READERS = "flexpool_jax.data.readers"


@dataclasses.dataclass(frozen=True)
class Digest:
    """Size in bytes and SHA-256 (hexadecimal) of a file or of its uncompressed content."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file that the authors of a data set publish.

    Attributes:
        url: Address of the file.
        digest: Size and SHA-256 of the file itself, with which a download is compared.
        content: Size and SHA-256 of the uncompressed content of a gzipped file. If given, a copy of
            the user's may be compressed differently or not at all; only its content is compared.
        unpacked: Name of the folder that the archive unpacks to. If given, this folder is accepted
            in place of the archive.
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
    """One image with its label, to be written to disk.

    Attributes:
        image: The encoded image, PNG or JPEG.
        label: Index of the image's class.
        superclass: Index of the image's superclass; None if the data set has no superclasses.
    """

    image: bytes
    label: int
    superclass: int | None = None


@dataclasses.dataclass(frozen=True)
class Contents:
    """Class names and examples from the files of a source.

    Attributes:
        image_shape: Height, width and channels of the images; a height or width is None if it
            differs between images.
        class_names: Names of the classes.
        splits: Examples of the split "train" and, if the data set has a test split, of "test". Each
            is iterated over once, "train" first.
        superclass_names: Names of the superclasses; empty if there are none.
        note: Message that is printed after the data set is prepared; empty prints nothing.
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
        name: Name under which the data set is loaded, and of its folder under data_dir.
        description: One sentence that describes the data set.
        homepage: Address of the data set's web page.
        read: Function that takes the files, a tuple of `download.RawFile` in the order of `files`,
            and returns `Contents`; or the text ``"module:function"``, with a module in `READERS`.
        num_classes: Required number of classes.
        num_examples: Required number of examples of each split.
        files: The published files.
        default_image_size: Side in pixels to which images are resized when they are loaded and no
            other size is set; 0 keeps the stored size.
        has_superclasses: Whether the data set defines superclasses.
        variant: Name of a folder between the folders of name and version, for data sets made from
            a user's folder; empty for no such folder.
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
    """A data set made of the user's own files in `dataset.raw_dir`.

    Attributes:
        open: The text ``"module:function"``, with a module in `READERS`. The function takes raw_dir
            and an `images.Fit`, and returns a `Source` to prepare or the arrays, a
            `dataset.Arrays`.
        check: The function, named in the same way, that raises UserError if raw_dir is None or does
            not exist, and reads nothing.
    """

    open: str
    check: str


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

#: All data sets by name; for those of `register_dataset`, the user's function.
DATASETS: dict[str, Source | RawDir | Callable[[], Any]] = {
    **{source.name: source for source in _SOURCES},
    "image_folder": RawDir("image_folder:open_image_folder", "image_folder:check_tree"),
    "npz": RawDir("npz:open_npz", "npz:check_file"),
}


def register_dataset(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Registers a function that returns arrays as a data set that configs may name.

    The function is called once in a process, when the data set is first loaded. Nothing is written
    to disk. `image_size`, `holdout` and a file of superclasses work as for any other data set.

    Args:
        name: Name of the data set in ``config.dataset.name``: letters, digits, ``_``, ``-`` and
            ``.``, beginning with a letter or digit.

    Returns:
        A decorator for a function without arguments that returns ``(splits, class_names)``.
        ``splits`` is ``{"train": (images, labels), "test": (images, labels)}`` with images uint8
        [N, H, W, C] or [N, H, W], C 1, 3 or 4, and integer labels [N], indices of
        ``class_names``. These arrays are checked when the data set is loaded.

    Raises:
        UserError: The name is invalid, another data set already has it, or the function needs an
            argument. Registering the same function again is allowed, for example when a notebook's
            cell is run twice.

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
        if reason := why_not_callable(load):
            raise UserError(f"data set {name!r}: {reason}; allowed: a function without arguments")
        if name in DATASETS and not is_same_definition(DATASETS[name], load):
            raise UserError(f"a data set named {name!r} is registered already")
        DATASETS[name] = load
        return load

    return register


def has_superclasses(name: str) -> bool:
    """Whether the data set of that name defines superclasses."""
    known = DATASETS.get(name)
    return isinstance(known, Source) and known.has_superclasses
