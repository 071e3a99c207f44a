"""`tiny_imagenet`: 110,000 colour images of two hundred ImageNet classes, 64x64 (Stanford CS231n).

The official validation split is the test split, because upstream keeps the labels of its own test
images. The JPEG files are stored as they are; `load_dataset` shrinks them to 32x32 by area
averaging, which is the input size of the paper's section 4.1, unless 64 is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flexpool_jax.data import threads, trees, untrusted_images
from flexpool_jax.data.source import Contents, Digest, Example, RawFile, RemoteFile, Source
from flexpool_jax.errors import UserError

_SIDE = 64
_FOLDER = "tiny-imagenet-200"


def read_tiny_imagenet(files: tuple[RawFile, ...]) -> Contents:
    """Reads the zip archive in place, or the folder that it unpacks to."""
    tree = trees.open_tree(files[0].path)
    root = f"{_FOLDER}/" if _FOLDER in tree.folders else ""
    wnids = sorted(_lines(tree, f"{root}wnids.txt"))
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    if not wnids or len(label_of) != len(wnids):
        raise UserError(f"{tree.path}: wnids.txt is empty or names a class twice")
    return Contents(
        train=_examples(tree, _training_images(tree, root, label_of)),
        test=_examples(tree, _validation_images(tree, root, label_of)),
        class_names=_class_names(_lines(tree, f"{root}words.txt"), wnids),
    )


def _lines(tree: trees.Tree, name: str) -> list[str]:
    if name not in tree.files:
        raise UserError(f"{tree.path} has no {name}")
    text = trees.read_file(tree, name).decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def _class_names(words: Sequence[str], wnids: Sequence[str]) -> list[str]:
    """Returns each class's first word, with its WordNet id where two classes share the word."""
    synonyms = dict(line.split("\t", 1) for line in words if "\t" in line)
    names = [synonyms.get(wnid, wnid).split(",")[0].strip() or wnid for wnid in wnids]
    return [
        f"{name} {wnid}" if names.count(name) > 1 else name
        for name, wnid in zip(names, wnids, strict=True)
    ]


def _training_images(
    tree: trees.Tree, root: str, label_of: dict[str, int]
) -> list[tuple[str, int]]:
    images = []
    folder = f"{root}train/"
    for name in tree.files:
        if name.startswith(folder) and name.endswith(".JPEG"):
            wnid = name.removeprefix(folder).split("/")[0]
            if wnid not in label_of:
                raise UserError(f"{tree.path}: {folder}{wnid} is no class of wnids.txt")
            images.append((name, label_of[wnid]))
    return images


def _validation_images(
    tree: trees.Tree, root: str, label_of: dict[str, int]
) -> list[tuple[str, int]]:
    images = []
    annotations = f"{root}val/val_annotations.txt"
    for line in _lines(tree, annotations):
        # The file's name, the class, and the corners of a box around the object.
        file_name, _, rest = line.partition("\t")
        wnid, name = rest.split("\t")[0], f"{root}val/images/{file_name}"
        if wnid not in label_of or name not in tree.files:
            raise UserError(
                f"{tree.path}: {annotations} has the line {line[:80]!r}, whose image or class does "
                "not exist"
            )
        images.append((name, label_of[wnid]))
    return images


def _examples(tree: trees.Tree, images: Sequence[tuple[str, int]]) -> Iterator[Example]:
    def example(image: tuple[str, int]) -> Example:
        name, label = image
        content = trees.read_file(tree, name)
        decoded = untrusted_images.read_image(content, f"{tree.path / name}", channels=3)
        if decoded.size != (_SIDE, _SIDE):
            raise UserError(
                f"{tree.path / name} has {decoded.width} x {decoded.height} pixels; "
                f"{_SIDE} x {_SIDE} are expected"
            )
        return Example(content, label)

    return threads.ordered_map(example, images)


TINY_IMAGENET = Source(
    name="tiny_imagenet",
    description="110,000 colour images of two hundred ImageNet classes, 64x64.",
    homepage="http://cs231n.stanford.edu/",
    image_shape=(_SIDE, _SIDE, 3),
    num_classes=200,
    num_examples={"train": 100_000, "test": 10_000},
    read=read_tiny_imagenet,
    files=(
        RemoteFile(
            f"http://cs231n.stanford.edu/{_FOLDER}.zip",
            Digest(248100043, "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"),
            unpacked=_FOLDER,
        ),
    ),
    default_image_size=32,
)
