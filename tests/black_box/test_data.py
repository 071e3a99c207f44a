"""Data sets: prepared once, read from files of one's own, and refused where they are damaged."""

import functools
import gzip
import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.black_box.conftest import metrics, read_json, run_in_process, snapshot

SIDE = 8


def draw(label, number, scale=1):
    """An image whose class can be seen: its left or its right half is bright, with some noise."""
    generator = np.random.default_rng(100 * label + number)
    image = generator.integers(0, 40, (SIDE, SIDE))
    half = slice(0, SIDE // 2) if label else slice(SIDE // 2, SIDE)
    image[:, half] += 200
    return (image * scale).astype(np.uint8 if scale == 1 else np.uint16)


def write_images(folder, suffix="png", draw=draw, numbers=range(20), **options):
    """Writes FOLDER/left/*.png and FOLDER/right/*.png."""
    for label, name in enumerate(("left", "right")):
        (folder / name).mkdir(parents=True)
        for number in numbers:
            path = folder / name / f"{number}.{suffix}"
            Image.fromarray(draw(label, number)).save(path, **options)
    return folder


def write_splits(folder, **options):
    """Writes FOLDER/train/CLASS/* and FOLDER/test/CLASS/*: 40 and 12 images."""
    write_images(folder / "train", numbers=range(20), **options)
    write_images(folder / "test", numbers=range(20, 26), **options)
    return folder


class Images:
    """Commands on images of one's own, with the small network."""

    def __init__(self, launcher, folder):
        self.launcher, self.folder = launcher, folder

    def command(self, raw_dir, *arguments, name="image_folder"):
        return self.launcher.small(
            f"--config.dataset.name={name}",
            f"--config.dataset.raw_dir={raw_dir}",
            f"--config.dataset.data_dir={self.folder / 'data'}",
            "--config.batch_size=20",
            "--config.num_epochs=8",
            *arguments,
            variant="flexpool",
        )

    def train(self, raw_dir, *arguments, name="image_folder"):
        """Trains and returns the result."""
        workdir = self.folder / "run"
        done = run_in_process(*self.command(raw_dir, f"--workdir={workdir}", *arguments, name=name))
        assert done.status == 0, done.output
        return read_json(workdir / "result.json")

    def prepare(self, raw_dir, *arguments):
        return run_in_process(*self.command(raw_dir, "--mode=prepare", *arguments))


@pytest.fixture
def images(launcher, tmp_path):
    return Images(launcher, tmp_path)


def test_preparing_writes_to_the_data_folder_alone_and_only_once(launcher, tmp_path):
    command = ["--config=configs/digits.py", "--mode=prepare", "--config.dataset.image_size=8"]
    command.append(f"--config.dataset.data_dir={tmp_path / 'data'}")
    done = run_in_process(*command)
    assert done.status == 0, done.output
    assert str(tmp_path / "data") in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    before = snapshot(tmp_path)
    assert run_in_process(*command).status == 0
    assert snapshot(tmp_path) == before


def test_a_folder_of_images_trains(images, tmp_path):
    result = images.train(write_splits(tmp_path / "raw"))
    assert result["final_test_accuracy"] == 1.0
    # 40 images in batches of 20, eight times.
    assert result["step"] == 16


def test_a_folder_without_splits_is_split_by_class(images, tmp_path):
    write_images(tmp_path / "raw")
    assert images.train(tmp_path / "raw", "--config.batch_size=8")["final_test_accuracy"] > 0.5
    assert metrics(tmp_path / "run", "test")


def test_an_archive_of_images_is_as_good_as_a_folder(images, tmp_path):
    folder = write_splits(tmp_path / "images")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    assert images.train(tmp_path / "images.zip")["final_test_accuracy"] == 1.0


@pytest.mark.parametrize("suffix", ["jpg", "bmp", "webp", "PNG"])
def test_images_of_several_formats_are_read(images, tmp_path, suffix):
    done = images.prepare(write_splits(tmp_path / "raw", suffix=suffix))
    assert done.status == 0, done.output


@pytest.mark.parametrize("suffix", ["gif", "tiff", "tif"])
def test_images_of_further_formats_are_read(images, tmp_path, suffix):
    assert images.train(write_splits(tmp_path / "raw", suffix=suffix))["final_test_accuracy"] == 1.0


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_and_not_clipped(images, tmp_path, suffix):
    # Clipped at 255 the halves would be alike.
    folder = write_splits(tmp_path / "raw", suffix=suffix, draw=functools.partial(draw, scale=257))
    assert images.train(folder)["final_test_accuracy"] == 1.0


def test_a_tiff_of_several_pages_is_refused(images, tmp_path):
    folder = write_splits(tmp_path / "raw")
    pages = [Image.fromarray(draw(0, number)) for number in range(2)]
    pages[0].save(folder / "train/left/x.tiff", save_all=True, append_images=pages[1:])
    done = images.prepare(folder)
    assert done.status == 2
    assert "x.tiff" in done.last_line
    assert "page" in done.last_line.replace(str(tmp_path), "")


def test_a_readme_among_the_images_is_passed_over(images, tmp_path):
    folder = write_splits(tmp_path / "raw")
    (folder / "train" / "left" / "README.txt").write_text("where these are from")
    assert images.train(folder)["final_test_accuracy"] == 1.0


def test_images_of_different_sizes_need_a_size(images, tmp_path):
    folder = write_splits(tmp_path / "raw")
    Image.fromarray(np.zeros((12, 10), np.uint8)).save(folder / "train/left/0.png")
    done = images.prepare(folder, "--config.dataset.image_size=0")
    assert done.status == 2
    assert "dataset.image_size" in done.last_line
    assert images.prepare(folder).status == 0


def text(folder):
    (folder / "train/left/0.png").write_text("hello")


def half(folder):
    path = folder / "train/left/0.png"
    path.write_bytes(path.read_bytes()[:60])


def no_images(folder):
    (folder / "train/third").mkdir()
    (folder / "test/third").mkdir()


def one_class(folder):
    shutil.rmtree(folder / "train/left")
    shutil.rmtree(folder / "test/left")


def class_not_in_test(folder):
    shutil.rmtree(folder / "test/left")


def loop(folder):
    (folder / "train/left/loop").symlink_to(folder)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (text, "0.png"),
        (half, "0.png"),
        (no_images, "third"),
        (one_class, "2"),
        (class_not_in_test, "left"),
        (loop, "loop"),
        (shutil.rmtree, "raw"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_refused(images, tmp_path, refuses, damage, word):
    folder = write_splits(tmp_path / "raw")
    damage(folder)
    refuses(*images.command(folder, "--mode=prepare"), words=[word])


@pytest.mark.parametrize("entry", ["../evil.png", "/tmp/evil.png", "C:/evil.png", "..\\evil.png"])
def test_an_archive_that_climbs_out_is_refused(images, tmp_path, refuses, entry):
    folder = write_images(tmp_path / "images")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
        archive.writestr(zipfile.ZipInfo(entry), "x")
    refuses(*images.command(tmp_path / "images.zip", "--mode=prepare"), words=["evil.png"])


FASHION = [
    f"{split}-{kind}-ubyte.gz"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]
RAW_FILES = {
    "no folder": None,
    "an empty folder": {},
    "one missing": dict.fromkeys(FASHION[1:], b""),
    "web pages": dict.fromkeys(FASHION, b"<html>404 not found</html>"),
    "cut short": {name: gzip.compress(bytes(1000))[:-9] for name in FASHION},
    "a bomb": dict.fromkeys(FASHION, gzip.compress(bytes(2**24))),
}


@pytest.mark.parametrize("dataset", ["fashion_mnist", "cifar10", "cifar100", "tiny_imagenet"])
@pytest.mark.parametrize("name", RAW_FILES)
def test_raw_files_that_are_damaged_are_named(dataset, name, tmp_path, refuses):
    raw_dir, files = tmp_path / "raw", RAW_FILES[name]
    archives = {
        "cifar10": "cifar-10-binary.tar.gz",
        "cifar100": "cifar-100-binary.tar.gz",
        "tiny_imagenet": "tiny-imagenet-200.zip",
    }
    if files is not None:
        raw_dir.mkdir()
        for file_name, content in files.items():
            (raw_dir / archives.get(dataset, file_name)).write_bytes(content)
    refuses(
        f"--config=configs/{dataset}.py",
        "--mode=prepare",
        f"--config.dataset.data_dir={tmp_path / 'data'}",
        f"--config.dataset.raw_dir={raw_dir}",
        words=[tmp_path],
    )


@pytest.mark.parametrize(("damaged", "size"), [("test_batch.bin", None), ("data_batch_1.bin", 100)])
def test_an_unpacked_cifar_folder_is_read_in_the_place_of_its_archive(
    tmp_path, refuses, damaged, size
):
    folder = tmp_path / "raw" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        with (folder / name).open("wb") as file:
            file.truncate(10_000 * 3073)
    if size is None:
        (folder / damaged).unlink()
    else:
        (folder / damaged).write_bytes(bytes(size))
    refuses(
        "--config=configs/cifar10.py",
        "--mode=prepare",
        f"--config.dataset.data_dir={tmp_path / 'data'}",
        f"--config.dataset.raw_dir={tmp_path / 'raw'}",
        words=[damaged],
    )


@pytest.fixture
def prepared_copy(launcher, tmp_path):
    """A copy of the prepared digits, without what was made of them for speed."""
    assert run_in_process(*launcher.small("--mode=prepare")).status == 0
    folder = shutil.copytree(launcher.data_dir, tmp_path / "data")
    for path in folder.rglob("*.npz"):
        path.unlink()
    return folder


@pytest.mark.parametrize(
    "pattern", ["*train*.array_record*", "*test*.array_record*", "features.json"]
)
@pytest.mark.parametrize("content", [b"", b"<html>404 not found</html>", None])
def test_prepared_data_that_are_damaged_are_named(
    launcher, prepared_copy, refuses, pattern, content
):
    (path,) = prepared_copy.rglob(pattern)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    data_dir = f"--config.dataset.data_dir={prepared_copy}"
    refuses(*launcher.small("--mode=prepare"), data_dir, words=[path.parent])


def arrays(**changes):
    """What an npz file of one's own holds."""
    split = {
        name: (np.stack([draw(i % 2, i) for i in numbers])[..., None], [i % 2 for i in numbers])
        for name, numbers in (("train", range(40)), ("test", range(40, 52)))
    }
    values = {f"x_{name}": images for name, (images, _) in split.items()}
    values |= {f"y_{name}": np.array(labels) for name, (_, labels) in split.items()}
    return {name: value for name, value in (values | changes).items() if value is not None}


def test_arrays_in_an_npz_file_train(images, tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays())
    assert images.train(tmp_path / "mine.npz", name="npz")["final_test_accuracy"] == 1.0


def test_an_npz_file_may_name_its_classes(images, tmp_path):
    names = np.array(["left", "right"])
    np.savez(tmp_path / "mine.npz", **arrays(class_names=names))
    assert images.train(tmp_path / "mine.npz", name="npz")["final_test_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"y_test": None}, "y_test"),
        ({"y_train": np.zeros(3, int)}, "y_train"),
        ({"x_train": np.zeros((40, 8), np.uint8)}, "x_train"),
        ({"y_train": np.array([object()] * 40)}, "y_train"),
    ],
)
def test_an_npz_file_that_cannot_be_meant_is_refused(images, tmp_path, refuses, changes, word):
    np.savez(tmp_path / "mine.npz", **arrays(**changes))
    command = images.command(tmp_path / "mine.npz", f"--workdir={tmp_path}/run", name="npz")
    refuses(*command, words=[word])


REGISTERS_DATA = """

import numpy as np
from flexpool_jax import register_dataset


@register_dataset("mine")
def load_mine():
    file = np.load(FILE)
    splits = {name: (file["x_" + name], file["y_" + name]) for name in ("train", "test")}
    return splits, ["left", "right"]


small_config = get_config


def get_config(variant=""):
    config = small_config(variant)
    config.dataset.name = "mine"
    return config
"""


def test_arrays_of_a_config_file_train(launcher, tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays())
    network = launcher.config.read_text().replace("three_convs", "convs_of_mine")
    registers_data = REGISTERS_DATA.replace("FILE", repr(str(tmp_path / "mine.npz")))
    (tmp_path / "mine.py").write_text(network + registers_data)
    done = run_in_process(
        f"--config={tmp_path / 'mine.py'}:flexpool",
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={tmp_path / 'data'}",
        "--config.batch_size=20",
        "--config.num_epochs=8",
    )
    assert done.status == 0, done.output
    assert read_json(tmp_path / "run/result.json")["final_test_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("mapping", "word"),
    [
        ("[]", "mapping.json"),
        ("{", "mapping.json"),
        (json.dumps({"0": "a", "x": "b"}), "'x'"),
        (json.dumps({"0": "a"}), "'1'"),
        (json.dumps({str(digit): "all" for digit in range(10)}), "one superclass"),
    ],
)
def test_a_mapping_to_superclasses_that_is_wrong_is_refused(
    launcher, tmp_path, refuses, mapping, word
):
    assert run_in_process(*launcher.small("--mode=prepare")).status == 0
    (tmp_path / "mapping.json").write_text(mapping)
    refuses(
        *launcher.small(
            f"--workdir={tmp_path}/run",
            "--config.superclass.epochs=1",
            f"--config.superclass.mapping={tmp_path}/mapping.json",
        ),
        words=[word],
    )
