"""Preparing a source: its examples, once, as ArrayRecord files that TFDS writes and reads.

TFDS writes into a folder of another name and renames it at the end, so that a prepared folder is
always whole. A lock keeps two processes from preparing the same data set at once, and whoever
holds it removes what a killed process has left behind.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexpool_jax.data import raw_files
from flexpool_jax.data.lock import hold_lock
from flexpool_jax.data.source import Example, Source
from flexpool_jax.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Raise it when what is written for the same raw files changes.
VERSION = "1.0.0"
# Where data_dir keeps downloads: TFDS's own choice, so that its own copies are found too.
_DOWNLOADS = "downloads"
# What takes no longer than this is done without a word.
_SILENT_SECONDS = 2


def prepared_folder(data_dir: Path, name: str, variant: str = "") -> Path:
    """Returns where a source of that name and variant is, or will be, prepared."""
    return data_dir / name / variant / VERSION


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds a prepared data set."""
    return (folder / "dataset_info.json").is_file()


def prepare(source: Source, data_dir: Path, raw_dir: Path | None) -> Path:
    """Prepares a source, unless that has been done before.

    Args:
        source: What to prepare.
        data_dir: The folder of all prepared data sets.
        raw_dir: A folder with the source's raw files; None downloads them.

    Returns:
        The prepared folder, DATA_DIR/NAME/VERSION.

    Raises:
        UserError: The raw files are missing, damaged or not upstream's, or data_dir cannot be
            written to.
    """
    folder = prepared_folder(data_dir, source.name, source.variant)
    try:
        if not is_prepared(folder):
            with _removing_empty_folders(source, folder, data_dir):
                _prepare_alone(source, folder, data_dir, raw_dir)
    except RuntimeError as error:
        # ArrayRecord's writer knows no other error.
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise UserError(
            f"cannot prepare {source.name}: {data_dir}: {os.strerror(errno.ENOSPC)}"
        ) from error
    except OSError as error:
        where = error.filename or data_dir
        raise UserError(
            f"cannot prepare {source.name}: {where}: {error.strerror or error}"
        ) from error
    return folder


@contextlib.contextmanager
def _removing_empty_folders(source: Source, folder: Path, data_dir: Path) -> Iterator[None]:
    """Removes at the end what is empty of the folders made meanwhile: a mistake leaves nothing."""
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


def _prepare_alone(source: Source, folder: Path, data_dir: Path, raw_dir: Path | None) -> None:
    data_dir.mkdir(parents=True, exist_ok=True)
    with hold_lock(data_dir / f".{source.name}.lock"):
        # Another process may have prepared it while this one waited for the lock.
        if not is_prepared(folder):
            _remove_leftovers(source, folder, data_dir)
            _prepare(source, data_dir, raw_dir)


def _remove_leftovers(source: Source, folder: Path, data_dir: Path) -> None:
    """Removes what a killed process left; the lock says that no living one is at it."""
    leftovers = [
        # TFDS calls its temporary folder incomplete.RANDOM_VERSION.
        *folder.parent.glob(f"incomplete.*_{VERSION}"),
        *(data_dir / _DOWNLOADS / source.name).glob("*.tmp.*"),
    ]
    if folder.exists():  # Without dataset_info.json: never TFDS's doing, but maybe a half removal.
        leftovers.append(folder)
    for leftover in leftovers:
        shutil.rmtree(leftover)


def _prepare(source: Source, data_dir: Path, raw_dir: Path | None) -> None:
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with _quiet_tfds():
            builder = _builder_class()(source, data_dir, raw_dir)
            builder.download_and_prepare(
                download_dir=data_dir / _DOWNLOADS,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                file_format="array_record",
            )
    except Exception as error:
        # TFDS may wrap what an example's reader raises.
        raise _innermost(error) from error


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps TFDS off standard output, which is the command's, and from warning of our configs."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _innermost(error: BaseException) -> BaseException:
    """Returns the UserError or OSError that an exception is about, else the exception itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError | OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


@functools.cache
def _builder_class() -> type[tfds.core.GeneratorBasedBuilder]:
    """Defines the builder when it is first needed, because importing TFDS takes a while."""
    import tensorflow_datasets as tfds

    class _Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """Looks nothing up: TFDS would ask Google's storage and leave a temporary folder."""

    # Not registered with TFDS, which has builders of its own by some of these names.
    class SourceBuilder(  # type: ignore[call-arg]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        """The TFDS builder of any `Source`."""

        VERSION = tfds.core.Version(VERSION)

        def __init__(self, source: Source, data_dir: Path, raw_dir: Path | None) -> None:
            self.name = source.name
            self._source, self._raw_dir = source, raw_dir
            self._announce_at = time.monotonic() + _SILENT_SECONDS
            config = tfds.core.BuilderConfig(name=source.variant) if source.variant else None
            super().__init__(data_dir=data_dir, config=config)

        @property
        def url_infos(self) -> dict[str, Any]:
            """The digests by which the download manager checks its downloads."""
            return {
                remote.url: tfds.core.download.checksums.UrlInfo(
                    size=tfds.core.utils.Size(remote.digest.size),
                    checksum=remote.digest.sha256,
                    filename=remote.name,
                )
                for remote in self._source.files
            }

        def _info(self) -> tfds.core.DatasetInfo:
            source = self._source
            features = {
                "image": tfds.features.Image(shape=source.image_shape),
                "label": tfds.features.ClassLabel(num_classes=source.num_classes),
            }
            if source.num_superclasses:
                coarse_label = tfds.features.ClassLabel(num_classes=source.num_superclasses)
                features["coarse_label"] = coarse_label
            return _Info(
                builder=self,
                description=source.description,
                homepage=source.homepage,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                # Upstream's order, so that an index means the same image everywhere.
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
            if self._raw_dir is None:
                files = raw_files.download_raw_files(self._source, dl_manager)
            else:
                files = raw_files.find_raw_files(self._source, self._raw_dir)
            contents = self._source.read(files)
            self._set_names("label", contents.class_names)
            if self._source.num_superclasses:
                self._set_names("coarse_label", contents.superclass_names)
            splits = {"train": contents.train, "test": contents.test}
            return {
                split: self._generate_examples(split, examples)
                for split, examples in splits.items()
                if examples is not None
            }

        def _announce(self) -> None:
            """Says once what takes so long; a mistake that shows at once stays a single line."""
            if time.monotonic() > self._announce_at:
                self._announce_at = math.inf
                where = f"preparing {self._source.name} in {self.data_path.parent}"
                print(where, file=sys.stderr, flush=True)

        def _set_names(self, feature_name: str, names: Sequence[str]) -> None:
            """Names the classes, which could not be done before the files were at hand."""
            feature = self.info.features[feature_name]
            if len(names) != feature.num_classes or len(set(names)) != len(names):
                raise UserError(
                    f"{self._source.name} has {len(set(names))} classes; {feature.num_classes} "
                    "are expected"
                )
            feature.names = list(names)

        def _generate_examples(
            self, split: str, examples: Iterable[Example]
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            expected, index = self._source.num_examples[split], -1
            for index, example in enumerate(examples):
                self._announce()
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
