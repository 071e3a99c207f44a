"""What is wrong with a file or a folder costs one line and exit status 2, nothing more.

These are the rarer cases; the common ones stand in tests/black_box, what is damaged at random in
`fuzz`.
"""

import gzip
import json
import os
import re
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

import launch
from configs import digits
from flexpool_jax.configuration import write_config
from flexpool_jax.data import prepare_dataset

DIGITS = "--config=configs/digits.py:flexpool,reg"


def snapshot(folder):
    """Every path below a folder, with its size and time of change."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_refused(arguments, folder, capsys, *words):
    """Runs a command: one line on standard error with these words, and nothing written."""
    before = snapshot(folder)
    status = launch.main(arguments)
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if not line.startswith("preparing ")]
    assert status == 2, output
    assert output.out == ""
    assert len(lines) == 1, lines
    assert re.match(r"launch\.py: .+", lines[0])
    assert "Traceback" not in lines[0]
    for word in words:
        assert str(word) in lines[0]
    written = {
        name: stat
        for name, stat in snapshot(folder).items()
        # A lock stays, empty, since removing one is not safe.
        if not name.endswith(".lock")
    }
    assert written == {name: stat for name, stat in before.items() if not name.endswith(".lock")}


def config_of(**changes):
    values = json.loads(digits.get_config("flexpool,reg").to_json())
    for name, value in changes.items():
        if value is None:
            del values[name]
        else:
            values[name] = value
    return json.dumps(values)


CONFIG_FILES = {
    "null": "null",
    "text after it": config_of() + "}",
    "a dot in a name": config_of(**{"a.b": 1}),
    "a field that is a list of groups": config_of(seed=[{"a": 1}]),
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", CONFIG_FILES)
def test_config_of_a_workdir(name, mode, tmp_path, capsys):
    content = CONFIG_FILES[name]
    (tmp_path / "checkpoints" / "21").mkdir(parents=True)
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused([f"--workdir={tmp_path}", f"--mode={mode}"], tmp_path, capsys, "config")


@pytest.mark.parametrize("step", ["00", "best ", "9" * 5000])
def test_step_that_is_not_there(step, tmp_path, capsys):
    write_config(digits.get_config(), tmp_path)
    assert_refused([f"--workdir={tmp_path}", "--mode=eval", f"--step={step}"], tmp_path, capsys)


DAMAGE = {
    "without its end": lambda content: content[:-1],
    "noise": lambda content: np.random.default_rng(0).bytes(len(content)),
    "removed": None,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare_dataset("digits", folder)
    for kept in folder.rglob("*.npz"):
        kept.unlink()
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("pattern", ["dataset_info.json", "features.json", "*train*", "*test*"])
def test_prepared_data(pattern, damage, prepared, tmp_path, capsys):
    data_dir = shutil.copytree(prepared, tmp_path / "data")
    (path,) = data_dir.rglob(pattern)
    if DAMAGE[damage] is not None:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    elif pattern == "dataset_info.json":
        pytest.skip("without it the data is not prepared, and will be")
    else:
        path.unlink()
    arguments = [DIGITS, "--mode=prepare", f"--config.dataset.data_dir={data_dir}"]
    assert_refused(arguments, tmp_path, capsys, path.parent)


FASHION = [
    f"{split}-{kind}-ubyte.gz"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]
RAW_FILES = {
    "emptied": dict.fromkeys(FASHION, b""),
    "gzip of nothing": {name: gzip.compress(b"") for name in FASHION},
    "wrong magic number": {name: gzip.compress(b"\0\0\x0d\3" + bytes(12)) for name in FASHION},
    "sizes that overflow": {name: gzip.compress(b"\0\0\x08\3" + b"\xff" * 12) for name in FASHION},
    "folders of these names": dict.fromkeys(FASHION),
}


@pytest.mark.parametrize("name", RAW_FILES)
@pytest.mark.parametrize("dataset", ["fashion_mnist", "cifar10", "tiny_imagenet"])
def test_raw_files(name, dataset, tmp_path, capsys):
    raw_dir = tmp_path / "raw"
    raw_dir.mkdir()
    other = {"cifar10": "cifar-10-binary.tar.gz", "tiny_imagenet": "tiny-imagenet-200.zip"}
    for file_name, content in RAW_FILES[name].items():
        path = raw_dir / other.get(dataset, file_name)
        if content is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content)
    arguments = [
        f"--config=configs/{dataset}.py",
        "--mode=prepare",
        f"--config.dataset.data_dir={tmp_path / 'data'}",
        f"--config.dataset.raw_dir={raw_dir}",
    ]
    assert_refused(arguments, tmp_path, capsys, tmp_path)


def png(path, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 7, np.uint8)).save(path, "PNG")
    return path


def lie_about_the_size(path):
    """Makes a PNG's header promise 50,000 x 50,000 pixels, with the checksum that this has."""
    import zlib

    content = bytearray(png(path).read_bytes())
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


def archive_with(name, link=False):
    def make(folder):
        path = png(folder / "x.png")
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for class_name in "ab":
                archive.write(path, f"{class_name}/1.png")
                archive.write(path, f"{class_name}/2.png")
            entry = zipfile.ZipInfo(name)
            if link:
                entry.external_attr = 0o120777 << 16
            archive.writestr(entry, "/etc/passwd")
        path.unlink()
        return folder / "images.zip"

    return make


def folder_with(make):
    """A folder of two classes of two images each, and what else is made of it."""

    def make_folder(folder):
        for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
            png(folder / "images" / name)
        make(folder / "images")
        return folder / "images"

    return make_folder


def zip_bomb(folder):
    """An archive of 3 MB whose one image has more than 512."""
    path = folder / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("a/1.png", "w") as file:
            for _ in range(2**29 // 2**24 + 1):
                file.write(bytes(2**24))
        archive.writestr("b/1.png", "")
    return path


IMAGE_FOLDERS = {
    "an empty folder": lambda folder: folder / "raw",
    "an empty image": folder_with(lambda images: (images / "a" / "1.png").write_bytes(b"")),
    "an image that lies about its size": folder_with(
        lambda images: lie_about_the_size(images / "a" / "1.png")
    ),
    "a pipe": folder_with(lambda images: os.mkfifo(images / "a" / "3.png")),
    "an archive with a link": archive_with("a/3.png", link=True),
    "an archive that swells": zip_bomb,
    "no archive": lambda folder: shutil.copy("README.md", folder / "images.zip"),
}


@pytest.mark.parametrize("name", IMAGE_FOLDERS)
def test_image_folder(name, tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    raw_dir = IMAGE_FOLDERS[name](tmp_path)
    arguments = [
        "--config=configs/image_folder.py",
        "--mode=prepare",
        "--config.dataset.image_size=16",
        f"--config.dataset.data_dir={tmp_path / 'data'}",
        f"--config.dataset.raw_dir={raw_dir}",
    ]
    assert_refused(arguments, tmp_path, capsys)
