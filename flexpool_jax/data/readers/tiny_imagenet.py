"""`tiny_imagenet`: 110,000 colour images of two hundred ImageNet classes, 64x64 (Stanford CS231n).

The official validation split is used as the test split, because the labels of the official test
images are not published. The JPEG files are stored unchanged. `load_dataset` shrinks the images to
32x32 by area averaging, the input size in section 4.1 of the paper, unless `image_size` is set.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from flexpool_jax.data import archives, images
from flexpool_jax.data.archives import FileTree
from flexpool_jax.data.download import RawFile
from flexpool_jax.data.registry import Contents, Example
from flexpool_jax.errors import UserError

_SIDE = 64


def read_tiny_imagenet(files: tuple[RawFile, ...]) -> Contents:
    """Reads the zip archive, without unpacking it, or its unpacked folder."""
    tree, folder = archives.open_tree(files[0].path), files[0].remote.unpacked
    root = f"{folder}/" if folder in tree.folders else ""
    wnids = sorted(_lines(tree, f"{root}wnids.txt"))
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    if not wnids or len(label_of) != len(wnids):
        raise UserError(f"{tree.path}: wnids.txt is empty or names a class twice")
    example = functools.partial(_example, tree)
    splits = {
        "train": images.map_in_threads(example, _training_images(tree, root, label_of)),
        "test": images.map_in_threads(example, _validation_images(tree, root, label_of)),
    }
    class_names = _class_names(_lines(tree, f"{root}words.txt"), wnids)
    return Contents((_SIDE, _SIDE, 3), class_names, splits)


def _lines(tree: FileTree, name: str) -> list[str]:
    text = archives.read_file(tree, name).decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def _class_names(words: Sequence[str], wnids: Sequence[str]) -> list[str]:
    """Returns the first name of each class, followed by its WordNet id if another has that name."""
    synonyms = dict(line.split("\t", 1) for line in words if "\t" in line)
    names = [synonyms.get(wnid, wnid).split(",")[0].strip() or wnid for wnid in wnids]
    return [
        f"{name} {wnid}" if names.count(name) > 1 else name
        for name, wnid in zip(names, wnids, strict=True)
    ]


def _training_images(tree: FileTree, root: str, label_of: dict[str, int]) -> list[tuple[str, int]]:
    found, folder = [], f"{root}train/"
    for name in tree.files:
        if name.startswith(folder) and name.endswith(".JPEG"):
            wnid = name.removeprefix(folder).split("/")[0]
            if wnid not in label_of:
                raise UserError(f"{tree.path}: {folder}{wnid} is not a class of wnids.txt")
            found.append((name, label_of[wnid]))
    return found


def _validation_images(
    tree: FileTree, root: str, label_of: dict[str, int]
) -> list[tuple[str, int]]:
    found, annotations = [], f"{root}val/val_annotations.txt"
    for line in _lines(tree, annotations):
        # A line holds the file's name, the class, and the corners of a box around the object.
        file_name, wnid = [*line.split("\t"), ""][:2]
        name = f"{root}val/images/{file_name}"
        if wnid not in label_of or name not in tree.files:
            raise UserError(
                f"{tree.path}: {annotations} has the line {line[:80]!r}, whose image or class does "
                "not exist"
            )
        found.append((name, label_of[wnid]))
    return found


def _example(tree: FileTree, image: tuple[str, int]) -> Example:
    name, label = image
    content = archives.read_file(tree, name)
    decoded = images.read_image(content, f"{tree.path / name}", channels=3)
    if decoded.size != (_SIDE, _SIDE):
        raise UserError(
            f"{tree.path / name} has {decoded.width} x {decoded.height} pixels; "
            f"{_SIDE} x {_SIDE} are expected"
        )
    return Example(content, label)
