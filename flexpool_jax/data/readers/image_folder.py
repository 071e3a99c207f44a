"""`image_folder`: a tree of the user's own images, with one folder for each class.

    TREE/train/CLASS/*  and  TREE/test/CLASS/*  (or val), or
    TREE/CLASS/*  from which the test split is drawn by class

The tree is a folder or a zip archive. PNG, JPEG, BMP, WebP, GIF and TIFF files in a class's folder,
or in folders inside it, are read; text files such as README.txt are ignored. A file must hold one
image: animations and TIFFs of several pages raise an error. 16-bit images are scaled to 8 bits. The
images are stored in grey if all of them are grey, else in colour. The name of the prepared folder
contains a hash of the files' names, sizes and times of change (in an archive: checksums) and of the
content of some files, so that a changed tree is prepared again, in another folder.

With `dataset.resize` "stretch", images are stored at their final size, as PNG. With "crop", images
are stored whole (upright JPEG files byte for byte) and resized when they are read, so that one
prepared folder can be used for all image sizes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from flexpool_jax.data import archives, images
from flexpool_jax.data.archives import FileTree
from flexpool_jax.data.download import RawFile
from flexpool_jax.data.images import Fit
from flexpool_jax.data.registry import Contents, Example, Source
from flexpool_jax.errors import UserError

_TRAIN, _TEST = "train", ("test", "val", "valid", "validation")
# Parts of other names that folders of splits have, such as Training and Testing.
_SPLIT_WORDS = ("train", "test|val")
# Endings of text files, such as descriptions and annotations, which are ignored.
_TEXT_SUFFIXES = (".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html")
# Version of the prepared images. Increase it when other images are prepared from the same tree.
_FORMAT = 1
# About how many files are a part of the prepared folder's name, and with how many bytes.
_SAMPLED_FILES, _SAMPLED_BYTES = 64, 2**16


def open_image_folder(raw_dir: Path | None, fit: Fit) -> Source:
    """Lists a tree and checks its folders; the images are not decoded yet.

    Args:
        raw_dir: The tree, a folder or a zip archive.
        fit: How the images are resized.

    Returns:
        A source whose ``read`` decodes the images.

    Raises:
        UserError: The tree cannot be read, there are fewer than two classes, a class name is not
            allowed, a class is empty or missing from one split, or a class's folder has a file that
            is neither an image nor text.
    """
    tree = archives.open_tree(check_tree(raw_dir))
    root = _root(tree)
    top = {name.lower(): name for name in _subfolders(tree, root)}
    splits_found = [top[name] for name in (_TRAIN, *_TEST) if name in top]
    with_classes = [name for name in splits_found if _subfolders(tree, f"{root}{name}/")]
    if len(splits_found) == 1 or len(with_classes) > 1:
        # A class may have the name of a split. Beside labelled splits, there may be a folder of
        # images without labels, as in ImageNet's test/.
        for name in set(splits_found) - set(with_classes):
            top.pop(name.lower())
    test_folder = next((top[name] for name in _TEST if name in top), None)
    if _TRAIN not in top and test_folder is None:
        roots = {"train": root}
        class_names = tuple(_subfolders(tree, root))
        _refuse_other_names_of_splits(tree, root, class_names)
    elif _TRAIN not in top or test_folder is None:
        has, lacks = (_TRAIN, "test nor val") if _TRAIN in top else (test_folder, _TRAIN)
        raise UserError(f"{tree.path / root} has a folder {has}, but no {lacks}")
    else:
        roots = {"train": f"{root}{top[_TRAIN]}/", "test": f"{root}{test_folder}/"}
        class_names = _common_classes(tree, *roots.values())
    _check_class_names(class_names, tree.path / root)
    splits = {split: _images(tree, folder, class_names) for split, folder in roots.items()}
    return Source(
        name="image_folder",
        description=f"The images in a folder named {tree.path.name}.",
        homepage="",
        read=functools.partial(_read, tree, fit, class_names, splits),
        num_classes=len(class_names),
        num_examples={split: len(found) for split, found in splits.items()},
        variant=_variant(tree, "whole" if fit.crops else str(fit)),
    )


def check_tree(raw_dir: Path | None) -> Path:
    """Returns the path of a tree; raises UserError if it is None or does not exist."""
    if raw_dir is None:
        raise UserError(
            "image_folder needs the folder of the images: --config.dataset.raw_dir=FOLDER"
        )
    if not raw_dir.exists():
        raise UserError(f"dataset.raw_dir: there is no folder or zip archive {raw_dir}")
    return raw_dir


def _root(tree: FileTree) -> str:
    """Returns the folder that holds the splits or classes, "" or a path that ends with "/".

    A zip archive often holds a single outer folder. Such folders are skipped.
    """
    root = ""
    while True:
        inside = _subfolders(tree, root)
        deeper = f"{root}{inside[0]}/" if len(inside) == 1 else ""
        if not deeper or inside[0].lower() in (_TRAIN, *_TEST) or not _subfolders(tree, deeper):
            return root
        root = deeper


def _subfolders(tree: FileTree, root: str) -> list[str]:
    names = (name.removeprefix(root) for name in tree.folders if name.startswith(root))
    return sorted(name for name in names if name and "/" not in name)


def _common_classes(tree: FileTree, train_root: str, test_root: str) -> tuple[str, ...]:
    train, test = (_subfolders(tree, root) for root in (train_root, test_root))
    for names, others, root in ((train, test, test_root), (test, train, train_root)):
        missing = sorted(set(names) - set(others))
        if missing:
            raise UserError(f"{tree.path / root} has no folder for the class {missing[0]!r}")
    return tuple(train)


def _refuse_other_names_of_splits(tree: FileTree, root: str, names: tuple[str, ...]) -> None:
    """Raises UserError if the folders are splits of another name, such as Training and Testing."""
    found = [[name for name in names if re.search(word, name, re.I)] for word in _SPLIT_WORDS]
    if all(found) and all(_subfolders(tree, f"{root}{name}/") for name in names):
        raise UserError(
            f"{tree.path / root} has the folders {', '.join(names)}, which hold folders and look "
            "like splits; allowed: train/CLASS/* and test/CLASS/*, or CLASS/*, so rename them"
        )


def _check_class_names(class_names: tuple[str, ...], where: Path) -> None:
    if len(class_names) < 2:
        raise UserError(
            f"{where} has {len(class_names)} folders of classes; at least 2 are needed, as "
            "train/CLASS/* and test/CLASS/*, or as CLASS/*"
        )
    for name in class_names:
        # TFDS stores the class names in a text file, one per line.
        if not name.isprintable() or name != name.strip():
            raise UserError(
                f"{where} has a class named {name!r}; spaces at its ends and characters that "
                "cannot be printed are not allowed"
            )


def _images(tree: FileTree, root: str, class_names: tuple[str, ...]) -> list[tuple[str, int]]:
    label_of = {name: label for label, name in enumerate(class_names)}
    found, counts = [], dict.fromkeys(class_names, 0)
    for name in tree.files:
        class_name, slash, rest = name.removeprefix(root).partition("/")
        if not name.startswith(root) or not slash or class_name not in label_of:
            continue
        suffix = PurePosixPath(rest).suffix.lower()
        if suffix in _TEXT_SUFFIXES:
            continue
        if suffix not in images.SUFFIXES:
            raise UserError(
                f"{tree.path / name} is not an image; allowed in a class's folder: "
                f"{', '.join(images.SUFFIXES)}, and text"
            )
        found.append((name, label_of[class_name]))
        counts[class_name] += 1
    for class_name, count in counts.items():
        if count == 0:
            raise UserError(f"{tree.path / root / class_name} has no images")
    return found


def _variant(tree: FileTree, stored: str) -> str:
    listing = [(name, *status) for name, status in tree.files.items()]
    sha = hashlib.sha256(repr((_FORMAT, listing)).encode("utf-8", errors="surrogatepass"))
    # Two folders can have files of the same names, sizes and times.
    for name in list(tree.files)[:: max(1, len(tree.files) // _SAMPLED_FILES)]:
        # A file that cannot be read is an error only if it is an image, which is read later.
        with contextlib.suppress(*archives.DAMAGE), tree.open(name) as file:
            sha.update(file.read(_SAMPLED_BYTES))
    name = re.sub(r"[^a-z0-9]+", "_", tree.path.stem.lower()).strip("_")[:40] or "images"
    return f"{name}_{sha.hexdigest()[:16]}_{stored}"


def _read(
    tree: FileTree,
    fit: Fit,
    class_names: tuple[str, ...],
    splits: Mapping[str, list[tuple[str, int]]],
    files: tuple[RawFile, ...],
) -> Contents:
    """Reads the header of every image and decides the number of channels, size and format to store.

    Raises:
        UserError: An image is damaged or too large, or images differ in size and no image_size is
            set.
    """
    del files  # No published files: the images are in the tree.
    names = [name for found in splits.values() for name, _ in found]
    is_grey, shape = True, None
    plain_jpegs = set()
    headers = images.map_in_threads(functools.partial(_header, tree), names)
    for name, header in zip(names, headers, strict=True):
        is_grey = is_grey and header.is_grey
        if header.is_plain_jpeg:
            plain_jpegs.add(name)
        size = (header.height, header.width)
        shape = shape or size
        if size != shape and not fit.size:
            raise UserError(
                f"images differ in size: {tree.path / names[0]} has {shape[1]} x {shape[0]} "
                f"pixels, {tree.path / name} {size[1]} x {size[0]}; set dataset.image_size"
            )
    assert shape is not None, "a class without images was let through"
    height, width = (fit.size, fit.size) if fit.size else shape
    channels = 1 if is_grey else 3
    if fit.crops:
        example = functools.partial(_example, tree, Fit(0), channels, plain_jpegs)
    else:
        example = functools.partial(_example, tree, fit, channels, ())
    return Contents(
        (None, None, channels) if fit.crops else (height, width, channels),
        class_names,
        {split: images.map_in_threads(example, found) for split, found in splits.items()},
        note=_unused(tree, set(names)),
    )


def _unused(tree: FileTree, used: set[str]) -> str:
    """Returns a message about images that are in no class of a split; "" if there are none."""
    unused = [
        name
        for name in tree.files
        if name not in used and PurePosixPath(name).suffix.lower() in images.SUFFIXES
    ]
    if not unused:
        return ""
    return (
        f"{len(unused):,} images of {tree.path} belong to no class of a split and are not used, "
        f"for example {unused[0]}"
    )


def _header(tree: FileTree, name: str) -> images.ImageHeader:
    try:
        with tree.open(name) as file:
            return images.read_header(file, str(tree.path / name))
    except archives.DAMAGE as error:
        raise UserError(f"cannot read {tree.path / name}: {error}") from error


def _example(
    tree: FileTree, fit: Fit, channels: int, as_they_are: Collection[str], image: tuple[str, int]
) -> Example:
    name, label = image
    content = archives.read_file(tree, name)
    # Decoded even if the bytes are stored unchanged, so that a damaged image is noticed now.
    decoded = images.read_image(content, str(tree.path / name), channels)
    return Example(content if name in as_they_are else images.encode_png(fit(decoded)), label)
