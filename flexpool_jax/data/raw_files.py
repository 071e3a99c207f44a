"""Getting a source's raw files: out of a folder of the user's, or from upstream."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from flexpool_jax.data.source import RawFile, RemoteFile, Source
from flexpool_jax.errors import UserError

# Seconds to wait for a server's answer before saying that it cannot be reached.
_TIMEOUT = 20


def find_raw_files(source: Source, raw_dir: Path) -> tuple[RawFile, ...]:
    """Finds all of a source's files in a folder; what is in them is checked when they are read.

    Raises:
        UserError: The folder or one of the files is missing.
    """
    if not source.files:
        return ()
    if not raw_dir.is_dir():
        raise UserError(
            f"dataset.raw_dir={raw_dir} is no folder; it should hold "
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
        # The folder named may be the unpacked one itself.
        for folder in (raw_dir / remote.unpacked, raw_dir):
            if folder.name == remote.unpacked and folder.is_dir():
                return RawFile(folder, remote)
        others.append(f"{remote.unpacked}/")
    either = "".join(f" (nor {other})" for other in others)
    raise UserError(
        f"dataset.raw_dir={raw_dir} has no {remote.name}{either}; upstream's is {remote.url}"
    )


def download_raw_files(source: Source, manager: Any) -> tuple[RawFile, ...]:
    """Downloads a source's files with TFDS's download manager, or finds them downloaded already.

    Args:
        source: What to download.
        manager: A `tfds.download.DownloadManager` that knows the files' digests and keeps its
            downloads. It refuses a download whose digest differs.

    Raises:
        UserError: A server cannot be reached, or a file is not what it was.
    """
    return tuple(_download(source, remote, manager) for remote in source.files)


def _download(source: Source, remote: RemoteFile, manager: Any) -> RawFile:
    import requests
    from tensorflow_datasets.core.download import download_manager, resource, util

    kept_name = resource.get_dl_fname(remote.url, remote.digest.sha256)
    kept = Path(manager.download_dir) / source.name / kept_name
    try:
        if kept.is_file():
            # The manager takes a file that it finds downloaded for granted, but disks rot.
            _check_or_delete(RawFile(kept, remote))
        else:
            _check_reachable(remote)
            print(
                f"downloading {remote.url} ({remote.digest.size / 1e6:,.1f} MB)",
                file=sys.stderr,
                flush=True,
            )
        return RawFile(Path(manager.download(remote.url)), remote)
    except (requests.RequestException, util.DownloadError) as error:
        raise UserError(
            f"cannot download {remote.url} ({_reason(error)}); download it elsewhere and name "
            "its folder in dataset.raw_dir"
        ) from error
    except download_manager.NonMatchingChecksumError as error:
        raise UserError(
            f"{remote.url} is not the published file: its size or SHA-256 is not the registered "
            f"{remote.digest.size:,} bytes, {remote.digest.sha256}"
        ) from error


def _check_or_delete(raw_file: RawFile) -> None:
    try:
        raw_file.check()
    except UserError as error:
        raw_file.path.unlink()
        raise UserError(
            f"{error}; the damaged download is deleted, start again to get another"
        ) from error


def _check_reachable(remote: RemoteFile) -> None:
    """Asks the server once: the manager waits without limit, and tries eleven times for minutes."""
    import requests

    with requests.get(remote.url, stream=True, timeout=_TIMEOUT) as response:
        response.raise_for_status()


def _reason(error: Exception) -> str:
    """Returns an error's innermost cause in one short line."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return f"no answer in {_TIMEOUT} s"
    reason = getattr(error.args[0] if error.args else error, "reason", error)
    return " ".join(str(reason).split())[:200]
