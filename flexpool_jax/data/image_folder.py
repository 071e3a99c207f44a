"""`image_folder`: a tree of one's own images, one folder a class.

    TREE/train/CLASS/*  and  TREE/test/CLASS/*  (or val), or
    TREE/CLASS/*  from which the test split is drawn by class

The tree is a folder or a zip archive. PNG, JPEG, BMP and WebP files count, in folders inside a
class's folder too. The images are stored grey if all of them are, else in colour. Every version of
a tree is prepared once: the prepared folder is named after the files' names, sizes and times of
change, so that a changed tree is prepared again, beside the old one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from flexpool_jax.data import images, threads, trees, untrusted_images
from flexpool_jax.data.source import Contents, Example, RawFile, Source
from flexpool_jax.errors import UserError

NAME = "image_folder"
_TRAIN, _TEST = "train", ("test", "val", "validation")
# Raise it when the same tree gives other prepared images.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The images of a tree.

    Attributes:
        tree: Where they lie.
        class_names: The names of the classes' folders, in alphabetical order.
        train: The path and the label of each training image.
        test: Of each test image; None if there is one tree for both.
        variant: Names this version of the tree, at one image size.
        image_size: The side that images are resized to; 0 leaves them as they are.
    """

    tree: trees.Tree
    class_names: tuple[str, ...]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]] | None
    variant: str
    image_size: int


def open_image_folder(raw_dir: Path | None, image_size: int) -> ImageFolder:
    """Lists a tree and checks its shape; the images themselves are not opened.

    Raises:
        UserError: There are no classes, a class is empty or missing from one split, or there are
            files that are no images.
    """
    if raw_dir is None:
        raise UserError("image_folder needs the folder of the images in dataset.raw_dir")
    if not raw_dir.exists():
        raise UserError(f"dataset.raw_dir: there is no folder or zip archive {raw_dir}")
    tree = trees.open_tree(raw_dir)
    root = _root(tree)
    top = {name.lower(): name for name in _subfolders(tree, root)}
    test_folder = next((top[name] for name in _TEST if name in top), None)
    if _TRAIN not in top and test_folder is None:
        class_names = tuple(_subfolders(tree, root))
        train, test = _images(tree, root, class_names), None
    elif _TRAIN not in top or test_folder is None:
        has, lacks = (_TRAIN, "test nor val") if _TRAIN in top else (test_folder, _TRAIN)
        raise UserError(f"{tree.path / root} has a folder {has}, but no {lacks}")
    else:
        roots = [f"{root}{folder}/" for folder in (top[_TRAIN], test_folder)]
        class_names = _common_classes(tree, *roots)
        train, test = (_images(tree, folder, class_names) for folder in roots)
    _check_class_names(class_names, tree.path / root)
    return ImageFolder(tree, class_names, train, test, _variant(tree, image_size), image_size)


def _root(tree: trees.Tree) -> str:
    """Returns the folder of the splits or classes: "", or that of a folder packed as a whole."""
    root = ""
    while True:
        inside = _subfolders(tree, root)
        deeper = f"{root}{inside[0]}/" if len(inside) == 1 else ""
        if not deeper or inside[0].lower() in (_TRAIN, *_TEST) or not _subfolders(tree, deeper):
            return root
        root = deeper


def _subfolders(tree: trees.Tree, root: str) -> list[str]:
    names = (name.removeprefix(root) for name in tree.folders if name.startswith(root))
    return sorted(name for name in names if name and "/" not in name)


def _common_classes(tree: trees.Tree, train_root: str, test_root: str) -> tuple[str, ...]:
    train, test = (_subfolders(tree, root) for root in (train_root, test_root))
    for names, others, root in ((train, test, test_root), (test, train, train_root)):
        missing = sorted(set(names) - set(others))
        if missing:
            raise UserError(f"{tree.path / root} has no folder for the class {missing[0]!r}")
    return tuple(train)


def _check_class_names(class_names: tuple[str, ...], where: Path) -> None:
    if len(class_names) < 2:
        raise UserError(
            f"{where} has {len(class_names)} folders of classes; at least 2 are needed, as "
            "train/CLASS/* and test/CLASS/*, or as CLASS/*"
        )
    for name in class_names:
        # They are kept in a text file, one a line.
        if not name.isprintable() or name != name.strip():
            raise UserError(
                f"{where} has a class named {name!r}; spaces at its ends and characters that "
                "cannot be printed are not allowed"
            )


def _images(tree: trees.Tree, root: str, class_names: tuple[str, ...]) -> list[tuple[str, int]]:
    label_of = {name: label for label, name in enumerate(class_names)}
    found, counts = [], dict.fromkeys(class_names, 0)
    for name in tree.files:
        class_name, slash, rest = name.removeprefix(root).partition("/")
        if not name.startswith(root) or not slash or class_name not in label_of:
            continue
        if PurePosixPath(rest).suffix.lower() not in untrusted_images.SUFFIXES:
            raise UserError(
                f"{tree.path / name} is no image; allowed in a class's folder: "
                f"{', '.join(untrusted_images.SUFFIXES)}"
            )
        found.append((name, label_of[class_name]))
        counts[class_name] += 1
    for class_name, count in counts.items():
        if count == 0:
            raise UserError(f"{tree.path / root / class_name} has no images")
    return found


def _variant(tree: trees.Tree, image_size: int) -> str:
    listing = [(name, *status) for name, status in tree.files.items()]
    key = repr((_FORMAT, listing)).encode("utf-8", errors="surrogatepass")
    name = re.sub(r"[^a-z0-9]+", "_", tree.path.stem.lower()).strip("_")[:40] or "images"
    return f"{name}_{hashlib.sha256(key).hexdigest()[:16]}_{image_size or 'as_stored'}"


def image_folder_source(folder: ImageFolder) -> Source:
    """Reads the header of every image and says how they are to be stored.

    Raises:
        UserError: An image is damaged or too large, or they differ in size and no image_size is
            given.
    """
    is_grey, shape = True, None
    names = [name for name, _ in (*folder.train, *(folder.test or ()))]
    headers = threads.ordered_map(functools.partial(_header, folder.tree), names)
    for name, header in zip(names, headers, strict=True):
        is_grey = is_grey and header.is_grey
        size = (header.height, header.width)
        shape = shape or size
        if size != shape and not folder.image_size:
            raise UserError(
                f"images differ in size: {folder.tree.path / names[0]} has {shape[1]} x {shape[0]} "
                f"pixels, {folder.tree.path / name} {size[1]} x {size[0]}; set dataset.image_size"
            )
    assert shape is not None, "a class without images was let through"
    if folder.image_size:
        shape = (folder.image_size, folder.image_size)
    channels = 1 if is_grey else 3
    num_examples = {"train": len(folder.train), "test": len(folder.test or ())}
    return Source(
        name=NAME,
        description=f"The images in a folder named {folder.tree.path.name}.",
        homepage="",
        image_shape=(*shape, channels),
        num_classes=len(folder.class_names),
        num_examples=num_examples,
        read=functools.partial(_read, folder, channels),
        variant=folder.variant,
    )


def _header(tree: trees.Tree, name: str) -> untrusted_images.Header:
    try:
        with tree.open(name) as file:
            return untrusted_images.read_header(file, str(tree.path / name))
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"cannot read {tree.path / name}: {error}") from error


def _read(folder: ImageFolder, channels: int, files: tuple[RawFile, ...]) -> Contents:
    del files  # They lie in the tree.
    example = functools.partial(_example, folder, channels)
    return Contents(
        train=threads.ordered_map(example, folder.train),
        test=None if folder.test is None else threads.ordered_map(example, folder.test),
        class_names=folder.class_names,
    )


def _example(folder: ImageFolder, channels: int, image: tuple[str, int]) -> Example:
    name, label = image
    content = trees.read_file(folder.tree, name)
    decoded = untrusted_images.read_image(content, str(folder.tree.path / name), channels)
    if folder.image_size:
        decoded = images.resize(decoded, folder.image_size)
    return Example(images.encode_png(np.asarray(decoded)), label)
