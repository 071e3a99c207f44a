import io
import tarfile

import numpy as np
import pytest

from flexpool_jax.data import load_dataset
from flexpool_jax.data.prepare import prepare
from flexpool_jax.errors import UserError

FINE = [f"fine_{index}" for index in range(100)]
COARSE = [f"coarse_{index}" for index in range(20)]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SMALL = {"num_examples": {"train": 100, "test": 20}}


def records(images, *labels):
    """Upstream's layout: the labels, then all red, all green and all blue values."""
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([*(np.array(label)[:, None] for label in labels), pixels], 1).astype(
        np.uint8
    )


def tar(members, special=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in special:
            archive.addfile(info)
    return buffer.getvalue()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3)).astype(np.uint8)


@pytest.fixture
def cifar10(images):
    rows = records(images, np.arange(120) % 10)
    folder = "cifar-10-batches-bin"
    members = {f"{folder}/batches.meta.txt": ("\n".join(CLASSES) + "\n\n").encode()}
    members[f"{folder}/test_batch.bin"] = rows[100:].tobytes()
    # Not in the order of their numbers, as archives need not be.
    for number in (5, 1, 2, 3, 4):
        batch = rows[20 * (number - 1) : 20 * number]
        members[f"{folder}/data_batch_{number}.bin"] = batch.tobytes()
    members[f"{folder}/readme.html"] = b"<html>"
    return members


@pytest.fixture
def cifar100(images):
    fine = np.arange(120) % 100
    rows = records(images, fine // 5, fine)
    folder = "cifar-100-binary"
    return {
        f"{folder}/train.bin": rows[:100].tobytes(),
        f"{folder}/test.bin": rows[100:].tobytes(),
        f"{folder}/fine_label_names.txt": "\n".join(FINE).encode(),
        f"{folder}/coarse_label_names.txt": "\n".join(COARSE).encode(),
    }


@pytest.mark.parametrize("way", ["download", "raw_dir"])
def test_cifar10_is_read_as_published(cifar10, images, publish, server, tmp_path, way):
    source = publish("cifar10", tar(cifar10), **SMALL)
    dataset = load_dataset(source.name, tmp_path, server.folder if way == "raw_dir" else "")
    np.testing.assert_array_equal(dataset.train.images, images[:100])
    np.testing.assert_array_equal(dataset.test.images, images[100:])
    np.testing.assert_array_equal(dataset.train.labels, np.arange(100) % 10)
    assert dataset.class_names == tuple(CLASSES)
    assert dataset.superclasses is None


def test_cifar100_has_classes_and_superclasses(cifar100, images, publish, tmp_path):
    source = publish("cifar100", tar(cifar100), **SMALL)
    # Twice: the second time from the arrays that are kept.
    for _ in range(2):
        dataset = load_dataset(source.name, tmp_path)
        np.testing.assert_array_equal(dataset.test.images, images[100:])
        np.testing.assert_array_equal(dataset.train.labels, np.arange(100))
        np.testing.assert_array_equal(dataset.test.labels, np.arange(20))
        assert dataset.class_names == tuple(FINE)
        assert dataset.superclasses.names == tuple(COARSE)
        np.testing.assert_array_equal(dataset.superclasses.of_class, np.arange(100) // 5)
        assert dataset.superclasses.of_class.dtype == np.int32


@pytest.mark.parametrize("inside", [False, True])
def test_the_unpacked_folder_is_as_good_as_the_archive(
    cifar10, cifar100, images, publish, tmp_path, inside
):
    for name, members in (("cifar10", cifar10), ("cifar100", cifar100)):
        publish(name, b"", **SMALL)
        for path, content in members.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(content)
        raw_dir = (tmp_path / path).parent if inside else tmp_path
        dataset = load_dataset(name, tmp_path / "data", raw_dir)
        np.testing.assert_array_equal(dataset.train.images, images[:100])
        np.testing.assert_array_equal(dataset.test.images, images[100:])
    assert dataset.superclasses.names == tuple(COARSE)


def test_an_unpacked_folder_that_lacks_a_file_is_refused(cifar10, publish, tmp_path):
    publish("cifar10", b"", **SMALL)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for path, content in cifar10.items():
        (tmp_path / path).write_bytes(content)
    (folder / "data_batch_3.bin").write_bytes(b"1" * 3072)
    with pytest.raises(UserError, match=r"data_batch_3.bin has 3,072 bytes, not a multiple"):
        load_dataset("cifar10", tmp_path / "data", tmp_path)
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(UserError, match=r"cifar-10-batches-bin has no data_batch_3.bin"):
        load_dataset("cifar10", tmp_path / "data", tmp_path)


def test_an_archive_that_is_not_upstreams_is_refused_before_it_is_opened(tmp_path):
    for content, message in ((b"x" * 100, "it has 100 bytes"), (None, "has no cifar-10-binary")):
        if content is None:
            (tmp_path / "cifar-10-binary.tar.gz").unlink()
        else:
            (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_dataset("cifar10", tmp_path / "data", tmp_path)


def link(name):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("change", "special", "message"),
    [
        ({"cifar-10-batches-bin/data_batch_2.bin": b"\0" * 3072}, (), "not a multiple of 3073"),
        ({"cifar-10-batches-bin/test_batch.bin": b"\x0a" + b"\0" * 3072}, (), r"labels \[10\]"),
        ({"cifar-10-batches-bin/batches.meta.txt": b"a\nb\n"}, (), "2 names; 10 are expected"),
        ({"cifar-10-batches-bin/test_batch.bin": b""}, (), "0 test images where 20 are expected"),
        ({"cifar-10-batches-bin/data_batch_1.bin": None}, (), "has no cifar-10-batches-bin/data_b"),
        ({"../evil": b""}, (), "climbs out of its folder"),
        ({"/etc/evil": b""}, (), "is not a path inside the archive"),
        ({}, (link("cifar-10-batches-bin/link"),), "is a link"),
    ],
)
def test_contents_that_are_wrong_cost_one_line(
    cifar10, publish, tmp_path, change, special, message
):
    members = {name: content for name, content in (cifar10 | change).items() if content is not None}
    source = publish("cifar10", tar(members, special), **SMALL)
    with pytest.raises(UserError, match=message) as caught:
        prepare(source, tmp_path / "data", None)
    assert "\n" not in str(caught.value)
    # The download stays, as it is what upstream publishes.
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["downloads"]
    assert not (tmp_path / "evil").exists()
