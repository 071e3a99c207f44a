"""What is wrong with a field, a file or a folder costs one line and exit status 2, nothing more.

Mistakes in the flags themselves stand in tests/test_launch.py, and the fields' ranges, which are
typed here, in tests/configuration/test_validation.py; what is damaged at random, in `fuzz`.
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


# As they are typed. Contradictions of fields first.
OVERRIDES = [
    "pool=avg",  # with the Eq. 2 weight of the variant
    "pool=flexpool_softmax",
    "sac.enabled=True sac.weights=0.2,0.8",
    "sac.enabled=True sac.weights=0.7,0.2,0.1",
    "sac.enabled=True sac.weights=0.1,0.1,0.8",
    "sac.enabled=True sac.weights=0,0.3,0.7",
    "sac.enabled=True sac.weights=0.1,0.2,0.3",
    "model=resnet18 norm_after_relu=True",
    "sac.enabled=True model=resnet18 sac.weights=0.2,0.3,0.5",
    "superclass.epochs=5",
    "superclass.mapping=animals.json",
    "superclass.epochs=5 superclass.mapping=/no/such/file.json",
    *(f"seed={value}" for value in ("-1", "1.5", "2e10", "nan", "one", "")),
    *(f"model={value}" for value in ("resnet21", "", "RESNET20", "20", "resnet20,resnet32")),
    *(f"norm_after_relu={value}" for value in ("2", "maybe", "")),
    *(f"pool={value}" for value in ("flexpol", "", "Avg", "none")),
    *(f"pool_reg={value}" for value in ("-1", "nan", "inf", "-inf", "1e7", "x")),
    *(f"dropout_rate={value}" for value in ("-0.1", "1", "1.5", "nan", "25%")),
    *(f"sac.weights={value}" for value in ("", "nan,1", "inf", "a,b", "0.1;0.9", "0.1,,0.9")),
    *(f"dataset.name={value}" for value in ("", "imagenette", "../digits", "a b", "digits\n", ".")),
    *(f"dataset.data_dir={value}" for value in ("", "  ", "a\0b")),
    *(f"dataset.image_size={value}" for value in ("-8", "7", "1025", "8.5", "big", "nan")),
    *(f"dataset.holdout={value}" for value in ("-0.1", "1", "nan", "10%")),
    *(f"batch_size={value}" for value in ("0", "-1", "1.5", "1e8", "nan", "inf", "many")),
    *(f"num_epochs={value}" for value in ("0", "-1", "1e7", "ten")),
    *(f"eval_batch_size={value}" for value in ("0", "-1", "x")),
    *(f"optimizer.name={value}" for value in ("adamm", "", "SGD")),
    *(f"optimizer.momentum={value}" for value in ("-0.1", "1", "nan")),
    *(f"optimizer.weight_decay={value}" for value in ("-1", "2", "nan")),
    "optimizer.weight_decay_kind=l1",
    *(f"learning_rate={value}" for value in ("0", "-0.1", "nan", "inf", "1e4", "fast")),
    *(f"schedule={value}" for value in ("linear", "", "OneCycle")),
    *(f"dtype={value}" for value in ("float16", "fp32", "")),
    "sync_batch_norm=2",
    "augment.flip=left",
    *(f"augment.scale={value}" for value in ("1", "1.2,0.8", "0,1", "1,nan", "1,2,3", "a,b", "")),
    *(f"augment.crop={value}" for value in ("-1", "0.5", "1025")),
    "superclass.epochs=-1",
    *(f"eval_every_epochs={value}" for value in ("0", "-1", "x")),
    *(f"checkpoint_every_epochs={value}" for value in ("0", "0.5")),
    *(f"log_every_steps={value}" for value in ("0", "-1")),
    *(f"steps_per_dispatch={value}" for value in ("-1", "x")),
    "tensorboard=2",
    "compilation_cache=a\0b",
    "sac=1",
    "sac.weight=0.1,0.2,0.7",
    "no.such.field=1",
]


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_field(overrides, tmp_path, capsys):
    arguments = [f"--config.{override}" for override in overrides.split(" ") if override]
    if overrides.partition("=")[2].strip(" ") == "" or "a b" in overrides:
        arguments = [f"--config.{overrides}"]
    field = overrides.partition("=")[0].partition(".")[0]
    # Should a case be none, no data can be read, and the line would not be about the field.
    (tmp_path / "file").touch()
    arguments.insert(0, f"--config.dataset.data_dir={tmp_path / 'file'}")
    assert_refused([DIGITS, f"--workdir={tmp_path}/run", *arguments], tmp_path, capsys, field)


def config_of(**changes):
    values = json.loads(digits.get_config("flexpool,reg").to_json())
    for name, value in changes.items():
        if value is None:
            del values[name]
        else:
            values[name] = value
    return json.dumps(values)


CONFIG_FILES = {
    "empty": "",
    "half": config_of()[:200],
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "text after it": config_of() + "}",
    "no text": b"\xff\xfe\x00",
    "a dot in a name": config_of(**{"a.b": 1}),
    "an unknown field": config_of(lerning_rate=0.1),
    "a field missing": config_of(learning_rate=None),
    "a group missing": config_of(optimizer=None),
    "a group that is a number": config_of(dataset=3),
    "a field that is a group": config_of(seed={"a": 1}),
    "a field that is a list of groups": config_of(seed=[{"a": 1}]),
    "a number that is text": config_of(batch_size="64"),
    "NaN": config_of(learning_rate=float("nan")),
    "nesting without end": '{"seed":' * 100_000,
    "a huge number": config_of(seed=10**400),
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", CONFIG_FILES)
def test_config_of_a_workdir(name, mode, tmp_path, capsys):
    content = CONFIG_FILES[name]
    (tmp_path / "checkpoints" / "21").mkdir(parents=True)
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused([f"--workdir={tmp_path}", f"--mode={mode}"], tmp_path, capsys, "config")


@pytest.mark.parametrize("what", ["a folder", "a link to nothing", "a pipe"])
def test_config_that_is_no_file(what, tmp_path, capsys):
    path = tmp_path / "config.json"
    {
        "a folder": path.mkdir,
        "a link to nothing": lambda: path.symlink_to("nothing"),
        "a pipe": lambda: os.mkfifo(path),
    }[what]()
    for mode in ("train", "eval"):
        assert_refused([f"--workdir={tmp_path}", f"--mode={mode}"], tmp_path, capsys, "config")


@pytest.mark.parametrize("step", ["99", "0", "00", "٣", "1e3", "-1", "best ", "LATEST", "9" * 5000])
def test_step_that_is_not_there(step, tmp_path, capsys):
    write_config(digits.get_config(), tmp_path)
    assert_refused([f"--workdir={tmp_path}", "--mode=eval", f"--step={step}"], tmp_path, capsys)


DAMAGE = {
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-1],
    "noise": lambda content: np.random.default_rng(0).bytes(len(content)),
    "something else": lambda content: b"<html>404 not found</html>",
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
    "no folder": None,
    "empty folder": {},
    "one missing": dict.fromkeys(FASHION[1:], b""),
    "emptied": dict.fromkeys(FASHION, b""),
    "web pages": dict.fromkeys(FASHION, b"<html>404 not found</html>"),
    "gzip of nothing": {name: gzip.compress(b"") for name in FASHION},
    "gzip cut short": {name: gzip.compress(bytes(1000))[:-9] for name in FASHION},
    "wrong magic number": {name: gzip.compress(b"\0\0\x0d\3" + bytes(12)) for name in FASHION},
    "sizes that overflow": {name: gzip.compress(b"\0\0\x08\3" + b"\xff" * 12) for name in FASHION},
    "a bomb": dict.fromkeys(FASHION, gzip.compress(bytes(2**26))),
    "folders of these names": dict.fromkeys(FASHION),
}


@pytest.mark.parametrize("name", RAW_FILES)
@pytest.mark.parametrize("dataset", ["fashion_mnist", "cifar10", "tiny_imagenet"])
def test_raw_files(name, dataset, tmp_path, capsys):
    raw_dir, files = tmp_path / "raw", RAW_FILES[name]
    other = {"cifar10": "cifar-10-binary.tar.gz", "tiny_imagenet": "tiny-imagenet-200.zip"}
    if files is not None:
        raw_dir.mkdir()
        for file_name, content in files.items():
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
    "nothing there": lambda folder: folder / "nothing",
    "an empty folder": lambda folder: folder / "raw",
    "a text file": folder_with(lambda images: (images / "a" / "1.png").write_text("hello")),
    "an empty image": folder_with(lambda images: (images / "a" / "1.png").write_bytes(b"")),
    "half an image": folder_with(
        lambda images: (images / "a" / "1.png").write_bytes(png(images / "x.png").read_bytes()[:60])
    ),
    "an image that lies about its size": folder_with(
        lambda images: lie_about_the_size(images / "a" / "1.png")
    ),
    "a class without images": folder_with(lambda images: (images / "c").mkdir()),
    "one class": folder_with(lambda images: shutil.rmtree(images / "b")),
    "a class missing from test": folder_with(
        lambda images: [
            shutil.copytree(images / "a", images / "test" / "a"),
            shutil.move(images / "a", images / "train" / "a"),
            shutil.move(images / "b", images / "train" / "b"),
        ]
    ),
    "a folder that links to itself": folder_with(
        lambda images: (images / "a" / "loop").symlink_to(images)
    ),
    "a pipe": folder_with(lambda images: os.mkfifo(images / "a" / "3.png")),
    "an archive that climbs out": archive_with("../evil.png"),
    "an archive that climbs out on Windows": archive_with("..\\evil.png"),
    "an archive with an absolute path": archive_with("/tmp/evil.png"),
    "an archive with a drive": archive_with("C:/evil.png"),
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
