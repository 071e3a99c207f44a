"""Step 1: finding the published files of a data set in the user's folder, or downloading them."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import sys
import zlib
from pathlib import Path

from flexpool_jax.data.registry import RemoteFile, Source
from flexpool_jax.errors import UserError, one_line

# Seconds to wait for an answer of a server.
_TIMEOUT = 20
# Suffix of the file name of a download that is not complete yet.
PARTIAL = ".partial"


@dataclasses.dataclass(frozen=True)
class RawFile:
    """A copy of a remote file on disk, or the folder with the unpacked files of an archive."""

    path: Path
    remote: RemoteFile

    def check(self) -> None:
        """Checks the size and the SHA-256 of the file.

        Raises:
            UserError: The size or the SHA-256 differs from that of the published file.
        """
        expected, size = self.remote.digest, self.path.stat().st_size
        if size != expected.size:
            raise _differs(self.path, f"{size:,} bytes", f"{expected.size:,}")
        with self.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != expected.sha256:
            raise _differs(self.path, f"SHA-256 {sha256}", expected.sha256)

    def read_content(self) -> bytes:
        """Reads the uncompressed content, gzipped or not, and checks its size and SHA-256.

        Raises:
            UserError: The gzip file is damaged, or its content differs from the published content.
        """
        expected = self.remote.content
        assert expected is not None, f"{self.remote.name} has no content digest"
        try:
            with self.path.open("rb") as file:
                is_gzip = file.read(2) == b"\x1f\x8b"
                file.seek(0)
                opened = gzip.GzipFile(fileobj=file) if is_gzip else file
                # One byte more than expected is enough to notice that the content is too long.
                content = opened.read(expected.size + 1)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(
                f"{self.path} is damaged ({error or 'it ends too early'}); get it again from "
                f"{self.remote.url}"
            ) from error
        if len(content) != expected.size:
            more = "more than " if len(content) > expected.size else ""
            size = min(len(content), expected.size)
            raise _differs(self.path, f"{more}{size:,} bytes inside", f"{expected.size:,}")
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != expected.sha256:
            raise _differs(self.path, f"content with SHA-256 {sha256}", expected.sha256)
        return content


def _differs(path: Path, has: str, expected: str) -> UserError:
    return UserError(
        f"{path} is not the published file: it has {has}, upstream's has {expected}; "
        "get it again, or leave dataset.raw_dir empty to download it"
    )


def find_or_download(source: Source, raw_dir: Path | None, downloads: Path) -> tuple[RawFile, ...]:
    """Finds or downloads all files of a source.

    Args:
        source: The source that names the files.
        raw_dir: The user's folder with the files; None downloads them.
        downloads: The folder for downloads. A file that is already there is not downloaded again.
            TFDS uses the same folder and file names.

    Returns:
        The files in the order of ``source.files``.

    Raises:
        UserError: A file is missing or differs from the published file, or a server cannot be
            reached. In ``raw_dir``, files with a content digest and unpacked folders are not
            checked here but when their content is read.
    """
    if raw_dir is None:
        return tuple(_download(remote, downloads / source.name) for remote in source.files)
    if source.files and not raw_dir.is_dir():
        raise UserError(
            f"dataset.raw_dir={raw_dir} is not a folder; it should hold "
            f"{', '.join(remote.name for remote in source.files)}"
        )
    return tuple(_find(remote, raw_dir) for remote in source.files)


def _find(remote: RemoteFile, raw_dir: Path) -> RawFile:
    path = raw_dir / remote.name
    if path.is_file():
        raw_file = RawFile(path, remote)
        if remote.content is None:
            raw_file.check()
        return raw_file
    others = []
    if remote.content is not None:
        plain = path.with_suffix("")
        if plain.is_file():
            return RawFile(plain, remote)
        others.append(plain.name)
    if remote.unpacked:
        # raw_dir may be the unpacked folder itself, or the folder that holds it.
        for folder in (raw_dir / remote.unpacked, raw_dir):
            if folder.name == remote.unpacked and folder.is_dir():
                return RawFile(folder, remote)
        others.append(f"{remote.unpacked}/")
    either = "".join(f" (nor {other})" for other in others)
    raise UserError(
        f"dataset.raw_dir={raw_dir} has no {remote.name}{either}; upstream's is {remote.url}"
    )


def _download(remote: RemoteFile, folder: Path) -> RawFile:
    import requests
    from tensorflow_datasets.core.download import resource

    path = folder / resource.get_dl_fname(remote.url, remote.digest.sha256)
    if path.is_file():
        try:
            RawFile(path, remote).check()
            return RawFile(path, remote)
        except UserError:  # Disks rot.
            print(f"{path} is damaged; it is deleted", file=sys.stderr, flush=True)
            path.unlink()
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(remote, partial)
        RawFile(partial, remote).check()
        partial.replace(path)
    except requests.RequestException as error:
        raise UserError(
            f"cannot download {remote.url} ({_reason(error)}); download it elsewhere and name "
            "its folder in dataset.raw_dir"
        ) from error
    except UserError as error:
        raise UserError(
            f"{remote.url} is not the published file: its size or SHA-256 is not the registered "
            f"{remote.digest.size:,} bytes, {remote.digest.sha256}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return RawFile(path, remote)


def _fetch(remote: RemoteFile, path: Path) -> None:
    import requests
    from tqdm import tqdm

    size = remote.digest.size
    # No compression by the server: the digest is that of the published file itself.
    headers = {"Accept-Encoding": "identity"}
    with requests.get(remote.url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        response.raise_for_status()
        print(f"downloading {remote.url} ({size / 1e6:,.1f} MB)", file=sys.stderr, flush=True)
        # `disable=None` shows the progress bar on terminals only.
        with (
            path.open("wb") as file,
            tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar,
        ):
            for block in response.iter_content(1 << 20):
                bar.update(file.write(block))
                if file.tell() > size:
                    break  # Not the published file; stop before an endless answer fills the disk.


def _reason(error: Exception) -> str:
    """Describes the cause of a failed download in one short line."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return f"no answer in {_TIMEOUT} s"
    reason = getattr(error.args[0] if error.args else error, "reason", error)
    return one_line(reason)
