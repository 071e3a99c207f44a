"""Small copies of published files, in upstream's exact layouts, and a server that offers them."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import struct
import threading

import numpy as np
import pytest

from flexpool_jax.data.registry import DATASETS, Digest, RemoteFile


def digest(content):
    return Digest(len(content), hashlib.sha256(content).hexdigest())


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A web server on this machine: `server.folder` is what it offers at `server.url`."""
    folder = tmp_path_factory.mktemp("upstream")
    handler = functools.partial(_QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.folder, server.url = folder, f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(tmp_path, server, monkeypatch):
    """A Fashion-MNIST of 30 + 10 images, as files in `raw_dir` and on the server.

    `fashion(images=..., ...)` replaces arrays; `plain` are the files' contents by name.
    """
    generator = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": generator.integers(0, 256, (30, 28, 28)),
        "train-labels-idx1-ubyte": np.arange(30) % 10,
        "t10k-images-idx3-ubyte": generator.integers(0, 256, (10, 28, 28)),
        "t10k-labels-idx1-ubyte": np.arange(10),
    }

    def make(**changes):
        plain = {name: idx(array) for name, array in arrays.items()} | changes
        raw_dir = tmp_path / "raw"
        raw_dir.mkdir(exist_ok=True)
        remotes = []
        for name, content in plain.items():
            packed = gzip.compress(content, mtime=0)
            for folder in (raw_dir, server.folder):
                (folder / f"{name}.gz").write_bytes(packed)
            url = f"{server.url}{name}.gz"
            remotes.append(RemoteFile(url, digest(packed), digest(content)))
        source = dataclasses.replace(
            DATASETS["fashion_mnist"],
            files=tuple(remotes),
            num_examples={"train": 30, "test": 10},
        )
        monkeypatch.setitem(DATASETS, "fashion_mnist", source)
        return FashionFiles(source, raw_dir, arrays)

    return make


@dataclasses.dataclass
class FashionFiles:
    source: object
    raw_dir: object
    arrays: dict


@pytest.fixture
def publish(server, monkeypatch):
    """`publish(name, content)` puts a data set's file on the server and returns its source."""

    def with_file(name, content, **changes):
        source = DATASETS[name]
        (remote,) = source.files
        (server.folder / remote.name).write_bytes(content)
        remote = dataclasses.replace(
            remote, url=f"{server.url}{remote.name}", digest=digest(content)
        )
        source = dataclasses.replace(source, files=(remote,), **changes)
        monkeypatch.setitem(DATASETS, name, source)
        return source

    return with_file
