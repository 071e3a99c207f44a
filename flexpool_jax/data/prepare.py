"""Step 2: writing the examples of a data set, once, as ArrayRecord files in the format of TFDS.

TFDS writes into a temporary folder and renames it at the end, so that a prepared folder is always
complete. A lock prevents two processes from preparing the same data set at the same time. The
process that holds the lock removes the temporary files of processes that were killed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexpool_jax.data import download, registry
from flexpool_jax.data.registry import Contents, Example, Source
from flexpool_jax.errors import Interrupted, UserError
from flexpool_jax.lock import hold
from flexpool_jax.registration import resolve

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Version of the prepared files. Increase it when the files written for the same raw files change.
VERSION = "1.0.0"
# Folder for downloads under data_dir; TFDS uses the same name, so that its downloads are found.
_DOWNLOADS = "downloads"
# Time after which a line on standard error says that preparation is in progress.
_SILENT_SECONDS = 2


def prepare(source: Source, data_dir: Path, raw_dir: Path | None) -> Path:
    """Prepares a source if it is not prepared yet.

    Args:
        source: The data set to prepare.
        data_dir: The folder of all prepared data sets.
        raw_dir: The folder with the published files; None downloads them.

    Returns:
        The prepared folder, DATA_DIR/NAME/VERSION, or DATA_DIR/NAME/VARIANT/VERSION if the source
        has a variant.

    Raises:
        UserError: The raw files are missing, damaged or differ from the published files, or
            data_dir cannot be written to.
        OSError: The disk is full.
    """
    folder = data_dir / source.name / source.variant / VERSION
    if _is_prepared(folder):
        return folder
    try:
        with _removing_empty_folders(source, folder, data_dir):
            data_dir.mkdir(parents=True, exist_ok=True)
            lock_file = data_dir / f".{source.name}.lock"
            with hold(lock_file, "preparing the same data set", wait=True):
                # Another process may have prepared the data set while this one waited for the lock.
                if not _is_prepared(folder):
                    _remove_leftovers(source, folder, data_dir)
                    _write(source, data_dir, raw_dir)
    except Interrupted:
        raise
    except Exception as error:
        explained = _explained(error, source, data_dir)
        if explained is error:
            raise
        raise explained from error
    return folder


def _is_prepared(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file()


@contextlib.contextmanager
def _removing_empty_folders(source: Source, folder: Path, data_dir: Path) -> Iterator[None]:
    """Removes, at the end, folders of this data set that are empty, as they are after an error."""
    missing = [path for path in (data_dir, *data_dir.parents) if not path.exists()]
    downloads = data_dir / _DOWNLOADS
    inside = [folder.parent, data_dir / source.name]
    inside += [downloads / "extracted", downloads / source.name, downloads]
    try:
        yield
    finally:
        for path in (*inside, *missing):
            with contextlib.suppress(OSError):
                path.rmdir()


def _remove_leftovers(source: Source, folder: Path, data_dir: Path) -> None:
    """Removes temporary files of killed processes; the caller holds the lock, so none is in use."""
    for partial in (data_dir / _DOWNLOADS / source.name).glob(f"*{download.PARTIAL}"):
        partial.unlink()
    # TFDS calls its temporary folder incomplete.RANDOM_VERSION.
    for incomplete in folder.parent.glob(f"incomplete.*_{VERSION}"):
        shutil.rmtree(incomplete)
    if folder.exists():  # It has no dataset_info.json, so it is incomplete.
        shutil.rmtree(folder)


def _explained(error: Exception, source: Source, data_dir: Path) -> Exception:
    """Returns the exception to raise: the UserError or OSError that TFDS may have wrapped.

    An OSError becomes a UserError that names the data set, except if the disk is full. If there is
    no such cause, ``error`` itself is returned.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError | OSError):
        cause = cause.__cause__ or cause.__context__
    # If the disk is full, ArrayRecord's writer raises RuntimeError; TFDS, OSError without a number.
    if (cause is None and os.strerror(errno.ENOSPC) in str(error)) or (
        isinstance(cause, OSError) and str(cause).startswith("Not enough disk space")
    ):
        cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if isinstance(cause, OSError):
        where = cause.filename or data_dir
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return OSError(cause.errno, cause.strerror, str(where))
        return UserError(f"cannot prepare {source.name}: {where}: {cause.strerror or cause}")
    return cause if isinstance(cause, UserError) else error


def _write(source: Source, data_dir: Path, raw_dir: Path | None) -> None:
    import tensorflow_datasets as tfds

    files = download.find_or_download(source, raw_dir, data_dir / _DOWNLOADS)
    with _quiet(), _announcing(f"preparing {source.name} in {data_dir / source.name}"):
        contents = resolve(source.read, registry.READERS)(files)
        num_classes = len(set(contents.class_names))
        if not num_classes == len(contents.class_names) == source.num_classes:
            raise UserError(
                f"{source.name} has {num_classes} classes; {source.num_classes} are expected"
            )
        _builder_class()(source, contents, data_dir).download_and_prepare(
            download_dir=data_dir / _DOWNLOADS,
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            file_format="array_record",
        )
    if contents.note:
        print(contents.note, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _announcing(line: str) -> Iterator[None]:
    """Prints a line if the block takes longer than `_SILENT_SECONDS`."""
    timer = threading.Timer(_SILENT_SECONDS, print, (line,), {"file": sys.stderr, "flush": True})
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the standard output of TFDS, and the warnings of TFDS and Pillow."""
    import tensorflow_datasets as tfds
    from absl import logging

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logging.set_verbosity(verbosity)


@functools.cache
def _builder_class() -> type[tfds.core.GeneratorBasedBuilder]:
    """Returns the TFDS builder class; defined on first use, because importing TFDS is slow."""
    import tensorflow_datasets as tfds

    class _Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """Does nothing; TFDS would query Google's storage and leave a temporary folder."""

    # Not registered with TFDS, which has its own builders with some of these names.
    class SourceBuilder(  # type: ignore[call-arg]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        """The TFDS builder of any `Source`."""

        VERSION = tfds.core.Version(VERSION)

        def __init__(self, source: Source, contents: Contents, data_dir: Path) -> None:
            self.name = source.name
            self._source, self._contents = source, contents
            config = tfds.core.BuilderConfig(name=source.variant) if source.variant else None
            super().__init__(data_dir=data_dir, config=config)

        def _info(self) -> tfds.core.DatasetInfo:
            contents = self._contents
            features = {
                "image": tfds.features.Image(shape=contents.image_shape),
                "label": tfds.features.ClassLabel(names=list(contents.class_names)),
            }
            if contents.superclass_names:
                names = list(contents.superclass_names)
                features["coarse_label"] = tfds.features.ClassLabel(names=names)
            return _Info(
                builder=self,
                description=self._source.description,
                homepage=self._source.homepage,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                # Keep the published order, so that an index means the same image everywhere.
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
            return {
                split: self._generate_examples(split, examples)
                for split, examples in self._contents.splits.items()
            }

        def _generate_examples(
            self, split: str, examples: Iterable[Example]
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            expected, index = self._source.num_examples[split], -1
            for index, example in enumerate(examples):
                features = {"image": io.BytesIO(example.image), "label": example.label}
                if example.superclass is not None:
                    features["coarse_label"] = example.superclass
                yield index, features
            if index + 1 != expected:
                raise UserError(
                    f"{self._source.name} has {index + 1:,} {split} images where "
                    f"{expected:,} are expected"
                )

    return SourceBuilder
