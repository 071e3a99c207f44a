"""Predicts the classes of image files with a trained network.

`predict_files` writes a workdir's predict/predictions.csv and predict/contact_sheet.png.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from flexpool_jax import files, layout
from flexpool_jax.data import images
from flexpool_jax.data.archives import MAX_FILE_BYTES
from flexpool_jax.errors import UserError, closest_name
from flexpool_jax.insight.contact_sheet import RIGHT, WRONG, Tile, contact_sheet
from flexpool_jax.pages.figures import INK
from flexpool_jax.trained import Trained, load_trained

CSV_FILE, SHEET_FILE = "predictions.csv", "contact_sheet.png"
DEFAULT_TOP_K = 5
# The most files shown on the terminal, named on standard error, and drawn; the CSV has all.
_MAX_ROWS, _MAX_ERRORS, _MAX_TILES = 20, 20, 64
# At 224 x 224 pixels 256 images take 39 MB.
_MAX_BATCH = 256


class Prediction(NamedTuple):
    """The prediction for one file.

    Attributes:
        file: path of the file, from `find_images`.
        label: class with the name of the file's folder, ignoring case; "" if there is none.
        classes: most probable classes, highest probability first; () for an unreadable file.
        probabilities: probabilities of these classes.
        error: reason why the file could not be read; "" if it was read.
    """

    file: Path
    label: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


class Predicted(NamedTuple):
    """What `predict_files` found: counts of files, the first predictions, and the seconds."""

    files: int
    unreadable: int
    labelled: int
    correct: int
    first: list[Prediction]
    seconds: float


def find_images(pattern: str) -> list[Path]:
    """Lists image files.

    Args:
        pattern: a file; a folder, whose image files are listed with those of its subfolders; or a
            glob such as ``photos/**/*.jpg``. In folders and by globs, only files with the ending of
            an image are listed, and no hidden ones. In a folder, links are followed, to each folder
            once; a folder that cannot be listed is named on stderr.

    Returns:
        At least one path, each once, in alphabetical order.

    Raises:
        UserError: no image file was found.
    """
    path = files.expanded(pattern)
    if path.exists() and not path.is_dir():
        return [path]
    # Path.glob takes no absolute pattern.
    found = [str(path)] if path.is_dir() else glob.glob(str(path), recursive=True)  # noqa: PTH207
    matched = {file for match in found for file in _files_of(Path(match))}
    if matched:
        return sorted(matched)
    endings = ", ".join(images.SUFFIXES)
    if path.is_dir():
        raise UserError(f"--images={pattern} has no image files; they end in {endings}")
    if glob.has_magic(pattern):
        raise UserError(f"--images={pattern} matches no image files; they end in {endings}")
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    match = closest_name(path.name, names)
    hint = f"; did you mean {path.parent / match}?" if match else ""
    raise UserError(f"--images={pattern}: there is no such file or folder{hint}")


def _files_of(path: Path) -> Iterator[Path]:
    """The image files of a folder and its subfolders, linked ones too, or the file itself."""
    if not path.is_dir():
        if path.suffix.lower() in images.SUFFIXES:
            yield path
        return
    for folder, names in _walk(path):
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in images.SUFFIXES:
                yield Path(folder, name)


def _walk(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields each folder at or below a path with its file names; linked folders last, each once."""
    starts, seen = [path], set()
    for start in starts:
        for folder, subfolders, names in os.walk(start, onerror=_say_skipped):
            real = os.path.realpath(folder)
            if real in seen:  # Links may form a cycle, or lead to a folder that was listed.
                subfolders.clear()
                continue
            seen.add(real)
            shown = [name for name in subfolders if not name.startswith((".", "__MACOSX"))]
            subfolders[:] = sorted(shown)
            starts += [link for name in subfolders if (link := Path(folder, name)).is_symlink()]
            yield folder, names


def _say_skipped(error: OSError) -> None:
    print(f"skipped: cannot list {error.filename}: {error.strerror}", file=sys.stderr)


def read_image(
    path: Path, image_shape: tuple[int, int, int], fit: images.Fit | None = None
) -> np.ndarray:
    """Reads an image file as evaluation would: upright, in 8 bits, and of the network's size.

    Args:
        path: path of the file.
        image_shape: (H, W, C) of the network's images.
        fit: how the image is resized before its middle is cut out; None stretches the image to
            ``image_shape``.

    Returns:
        The image, uint8 of shape ``image_shape``.

    Raises:
        UserError: the file cannot be read, is too large, or is not an image.
    """
    height, width, channels = image_shape
    try:
        if not path.is_file():
            raise UserError(f"{path} is not a file")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{path} is too large; at most {MAX_FILE_BYTES:,} bytes are read")
    decoded = images.read_image(content, str(path), channels)
    resized = images.resize(decoded, (height, width)) if fit is None else fit(decoded)
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    middle = resized.crop((left, top, left + width, top + height))
    return np.asarray(middle, np.uint8).reshape(image_shape)


def predict_files(
    workdir: str | os.PathLike[str],
    pattern: str,
    top_k: int | None = None,
    step: str = "latest",
    config: ml_collections.ConfigDict | None = None,
) -> Predicted:
    """Predicts the classes of image files, of which few are in memory at the same time.

    Writes ``predict/predictions.csv`` in the workdir: a line for each file with ``file``, ``label``
    (the class with the name of the file's folder, if any), ``class_1``, ``probability_1``, ... and
    ``error`` (why the file could not be read). Also writes ``predict/contact_sheet.png``: at most
    64 images, evenly chosen, as the network sees them. Names unreadable files on standard error.

    Args:
        workdir: folder of a run.
        pattern: files to predict, see `find_images`.
        top_k: number of classes to write for each file; by default 5, or all if there are fewer.
        step: step of the checkpoint, see `load_trained`.
        config: config that replaces the workdir's, see `load_trained`.

    Raises:
        UserError: `find_images` or `load_trained` fails, top_k is not between 1 and the number of
            classes, the network's images have a number of channels that image files do not have,
            or no file can be read.
    """
    paths = find_images(pattern)
    trained = load_trained(workdir, step, config)
    num_classes = len(trained.class_names)
    top_k = min(DEFAULT_TOP_K, num_classes) if top_k is None else top_k
    if not 1 <= top_k <= num_classes:
        raise UserError(f"--top_k={top_k}; allowed: 1 to {num_classes}, the number of classes")
    channels = trained.image_shape[-1]
    if channels not in images.MODE_OF_CHANNELS:
        raise UserError(
            f"{trained.workdir} was trained on images of {channels} channels; allowed: 1, 3 or 4, "
            "which image files can have (grey, RGB, RGBA)"
        )
    started = time.monotonic()
    folder = trained.workdir / layout.PREDICT_FOLDER
    first: list[Prediction] = []
    tiles: list[Tile] = []
    drawn = {round(place) for place in np.linspace(0, len(paths) - 1, _MAX_TILES)}
    unreadable = labelled = correct = 0
    with _made(folder), files.writing_whole(folder / CSV_FILE) as file:
        # Names of files need not be UTF-8.
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
        writer = csv.writer(text)
        ranks = range(1, top_k + 1)
        columns = (name for rank in ranks for name in (f"class_{rank}", f"probability_{rank}"))
        writer.writerow(["file", "label", *columns, "error"])
        predictions = tqdm(
            _predict(trained, paths, top_k), total=len(paths), unit="image", disable=None
        )
        for index, (prediction, image) in enumerate(predictions):
            writer.writerow(_csv_row(prediction, top_k))
            if image is None:
                unreadable += 1
                if unreadable <= _MAX_ERRORS:
                    tqdm.write(f"not predicted: {prediction.error}", file=sys.stderr)
                continue
            labelled += bool(prediction.label)
            correct += prediction.label == prediction.classes[0]
            if len(first) < _MAX_ROWS:
                first.append(prediction)
            if index in drawn:
                tiles.append(_tile(prediction, image))
        text.detach()
        if unreadable > _MAX_ERRORS:
            print(f"not predicted: {unreadable - _MAX_ERRORS:,} more files", file=sys.stderr)
        if unreadable == len(paths):
            raise UserError(f"--images={pattern}: none of {len(paths):,} files could be read")
    if tiles:
        files.write_whole(folder / SHEET_FILE, images.encode_png(contact_sheet(tiles)))
    return Predicted(len(paths), unreadable, labelled, correct, first, time.monotonic() - started)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Creates a folder if needed; deletes it at the end if it is empty."""
    folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # It is not empty.
            folder.rmdir()


def table(predicted: Predicted) -> str:
    """Writes the first predictions as a table, and how many there are in all.

    Example:
        >>> one = Prediction(Path("pets/cat/1.png"), "cat", ("cat", "dog"), (0.9, 0.1))
        >>> print(table(Predicted(1, 0, 1, 1, [one], 0.5)))
        pets/cat/1.png  cat  90.0 %  dog  10.0 %
        1 image predicted in 0.5 s; 1 of 1 in a folder named like a class is predicted as that class
    """
    rows = [
        [
            str(prediction.file).encode("utf-8", "backslashreplace").decode().replace("\n", "\\n"),
            *itertools.chain.from_iterable(
                (name, f"{probability:6.1%}".replace("%", " %"))
                for name, probability in zip(
                    prediction.classes, prediction.probabilities, strict=True
                )
            ),
        ]
        for prediction in predicted.first
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    count = predicted.files - predicted.unreadable
    if count > len(rows):
        lines.append(f"and {count - len(rows):,} more")
    summary = f"{count:,} image{'s' * (count != 1)} predicted in {predicted.seconds:.1f} s"
    if predicted.labelled:
        be = "is" if predicted.correct == 1 else "are"
        summary += (
            f"; {predicted.correct:,} of {predicted.labelled:,} in a folder named like a class "
            f"{be} predicted as that class"
        )
    return "\n".join([*lines, summary])


def _predict(
    trained: Trained, paths: Sequence[Path], top_k: int
) -> Iterator[tuple[Prediction, np.ndarray | None]]:
    """Yields each file's prediction and its image; the image is None if it cannot be read."""
    network, variables = jax.jit(trained.probabilities), jax.device_put(trained.variables)
    dataset = trained.config.dataset
    crops = dataset.resize == "crop"
    fit = images.Fit(dataset.image_size, crops) if crops or dataset.center_crop else None
    batch = min(trained.config.eval_batch_size, _MAX_BATCH, len(paths))

    def read(path: Path) -> np.ndarray | UserError:
        try:
            return read_image(path, trained.image_shape, fit)
        except UserError as error:
            return error

    found = zip(paths, images.map_in_threads(read, paths), strict=True)
    for chunk in _chunks(found, batch):
        # Always the same number of images, so that the network is compiled once.
        block = np.zeros((batch, *trained.image_shape), np.uint8)
        for place, (_, image) in enumerate(chunk):
            if not isinstance(image, UserError):
                block[place] = image
        rows = np.asarray(network(variables, block))
        for (path, image), row in zip(chunk, rows, strict=False):
            label = _class_of(path.absolute().parent.name, trained.class_names)
            if isinstance(image, UserError):
                yield Prediction(path, label, error=str(image)), None
                continue
            best = np.argsort(-row, kind="stable")[:top_k]
            classes = tuple(trained.class_names[index] for index in best)
            yield Prediction(path, label, classes, tuple(map(float, row[best]))), image


def _class_of(folder: str, class_names: Sequence[str]) -> str:
    """Returns the class that is named like a folder.

    If none matches exactly, returns the only class that matches when case is ignored; otherwise "".
    """
    if folder in class_names:
        return folder
    alike = [name for name in class_names if name.casefold() == folder.casefold()]
    return alike[0] if len(alike) == 1 else ""


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _csv_row(prediction: Prediction, top_k: int) -> list[str]:
    found = zip(prediction.classes, prediction.probabilities, strict=True)
    cells = [text for name, probability in found for text in (name, f"{probability:.6f}")]
    cells += [""] * (2 * top_k - len(cells))
    return [str(prediction.file), prediction.label, *cells, prediction.error]


def _tile(prediction: Prediction, image: np.ndarray) -> Tile:
    name = prediction.classes[0]
    colour = INK
    if prediction.label:
        colour = RIGHT if name == prediction.label else WRONG
    probability = f"{prediction.probabilities[0]:.1%}".replace("%", " %")
    file = str(Path(prediction.file.absolute().parent.name, prediction.file.name))
    return Tile(image, [(f"{name}  {probability}", colour), (file, INK)])
