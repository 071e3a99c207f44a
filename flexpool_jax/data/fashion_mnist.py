"""`fashion_mnist`: 28x28 grey images of clothes (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747)."""

from __future__ import annotations

from collections.abc import Iterator

from flexpool_jax.data.idx import parse_idx
from flexpool_jax.data.images import encode_png
from flexpool_jax.data.source import Contents, Digest, Example, RawFile, RemoteFile, Source
from flexpool_jax.errors import UserError

_UPSTREAM = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_fashion_mnist(files: tuple[RawFile, ...]) -> Contents:
    """Reads four IDX files: training images and labels, test images and labels."""
    train_images, train_labels, test_images, test_labels = files
    return Contents(
        _examples(train_images, train_labels), _examples(test_images, test_labels), CLASS_NAMES
    )


def _examples(images_file: RawFile, labels_file: RawFile) -> Iterator[Example]:
    images = parse_idx(images_file.read_content(), str(images_file.path), num_dims=3)
    labels = parse_idx(labels_file.read_content(), str(labels_file.path), num_dims=1)
    if len(images) != len(labels):
        raise UserError(
            f"{images_file.path} has {len(images):,} images, but {labels_file.path} has "
            f"{len(labels):,} labels"
        )
    for image, label in zip(images, labels, strict=True):
        if label >= len(CLASS_NAMES):
            raise UserError(f"{labels_file.path} has the label {label}; allowed: 0 to 9")
        yield Example(encode_png(image), int(label))


FASHION_MNIST = Source(
    name="fashion_mnist",
    description="70,000 grey images of clothes, 28x28, ten classes.",
    homepage="https://github.com/zalandoresearch/fashion-mnist",
    image_shape=(28, 28, 1),
    num_classes=len(CLASS_NAMES),
    num_examples={"train": 60_000, "test": 10_000},
    read=read_fashion_mnist,
    files=(
        RemoteFile(
            _UPSTREAM + "train-images-idx3-ubyte.gz",
            Digest(26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            Digest(47040016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        ),
        RemoteFile(
            _UPSTREAM + "train-labels-idx1-ubyte.gz",
            Digest(29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            Digest(60008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        ),
        RemoteFile(
            _UPSTREAM + "t10k-images-idx3-ubyte.gz",
            Digest(4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            Digest(7840016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        ),
        RemoteFile(
            _UPSTREAM + "t10k-labels-idx1-ubyte.gz",
            Digest(5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
            Digest(10008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
        ),
    ),
)
