import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from flexpool_jax.data import load_dataset
from flexpool_jax.data.prepare import prepare
from flexpool_jax.data.registry import DATASETS
from flexpool_jax.errors import UserError

ROOT = "tiny-imagenet-200/"
# Neither sorted nor with words of their own.
WNIDS = ("n02124075", "n01443537", "n04067472")
SMALL = {"num_classes": 3, "num_examples": {"train": 6, "test": 3}}


def jpeg(value, mode="RGB", size=64):
    buffer = io.BytesIO()
    array = np.full((size, size, 3), value, np.uint8)
    Image.fromarray(array).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def members():
    """Upstream's layout: boxes beside the images, and a test split without labels."""
    members = {
        "wnids.txt": "\n".join(WNIDS).encode(),
        "words.txt": b"n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\n"
        b"n02124075\treel\nn04067472\treel, spool\n",
        "val/val_annotations.txt": b"".join(
            f"val_{index}.JPEG\t{wnid}\t0\t32\t44\t62\n".encode()
            for index, wnid in enumerate(WNIDS)
        ),
        "test/images/test_0.JPEG": jpeg(7),
    }
    for index, wnid in enumerate(WNIDS):
        members[f"train/{wnid}/{wnid}_boxes.txt"] = b"x"
        for number in range(2):
            # Some of upstream's images are grey.
            image = jpeg(50 * index + 20 * number + 10, mode="L" if number else "RGB")
            members[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = image
        members[f"val/images/val_{index}.JPEG"] = jpeg(200 + 10 * index)
    return {ROOT + name: content for name, content in members.items()}


def pack(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unpack(members, folder):
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def assert_is_tiny_imagenet(dataset, size):
    assert dataset.train.images.shape == (6, size, size, 3)
    # Labels are in the order of the sorted ids: goldfish, then the two reels.
    assert dataset.class_names == ("goldfish", "reel n02124075", "reel n04067472")
    values = dataset.train.images[:, 0, 0].astype(int)
    expected = {0: [60, 80], 1: [10, 30], 2: [110, 130]}
    for label, greys in expected.items():
        of_class = np.sort(values[dataset.train.labels == label], axis=0)
        np.testing.assert_allclose(of_class, np.repeat(greys, 3).reshape(2, 3), atol=2)
    np.testing.assert_array_equal(dataset.test.labels, [1, 0, 2])
    np.testing.assert_allclose(dataset.test.images[:, 5, 5, 1], [200, 210, 220], atol=2)


def test_is_downloaded_and_shrunk(members, publish, tmp_path):
    source = publish("tiny_imagenet", pack(members), **SMALL)
    assert_is_tiny_imagenet(load_dataset(source.name, tmp_path), 32)
    assert_is_tiny_imagenet(load_dataset(source.name, tmp_path, image_size=64), 64)


@pytest.mark.parametrize("inside", ["", ROOT])
def test_is_read_from_the_unpacked_folder_or_the_one_above(members, publish, tmp_path, inside):
    source = publish("tiny_imagenet", b"", **SMALL)
    unpack(members | {f"{ROOT}.DS_Store": b"x", f"{ROOT}val/images/._val_0.JPEG": b"x"}, tmp_path)
    assert_is_tiny_imagenet(load_dataset(source.name, tmp_path / "data", tmp_path / inside), 32)


def test_is_read_from_the_archive_in_raw_dir(members, publish, server, tmp_path):
    source = publish("tiny_imagenet", pack(members), **SMALL)
    assert_is_tiny_imagenet(load_dataset(source.name, tmp_path, server.folder), 32)


TRAIN_IMAGE = f"{ROOT}train/n02124075/images/n02124075_0.JPEG"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({TRAIN_IMAGE: jpeg(1)[:-80]}, r"n02124075_0.JPEG is (a )?damaged"),
        ({TRAIN_IMAGE: jpeg(1, size=32)}, r"n02124075_0.JPEG has 32 x 32 pixels; 64 x 64"),
        ({TRAIN_IMAGE: None}, r"5 train images where 6 are expected"),
        ({f"{ROOT}val/images/val_1.JPEG": None}, r"line 'val_1.JPEG.*does not exist"),
        ({f"{ROOT}wnids.txt": None}, r"has no tiny-imagenet-200/wnids.txt"),
        ({f"{ROOT}wnids.txt": b"n02124075\nn02124075\n"}, r"names a class twice"),
        ({f"{ROOT}train/n9/images/n9_0.JPEG": jpeg(1)}, r"train/n9 is not a class of wnids.txt"),
        ({"../evil": b""}, r"climbs out of its folder"),
    ],
)
def test_what_is_wrong_inside_costs_one_line(members, publish, tmp_path, change, message):
    changed = {name: text for name, text in (members | change).items() if text is not None}
    source = publish("tiny_imagenet", pack(changed), **SMALL)
    with pytest.raises(UserError, match=message) as caught:
        prepare(source, tmp_path / "data", None)
    assert "\n" not in str(caught.value)
    # The download stays, as it is what upstream publishes.
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["downloads"]


def test_an_unpacked_folder_without_its_classes_is_refused(members, publish, tmp_path):
    source = publish("tiny_imagenet", b"", **(SMALL | {"num_classes": 4}))
    unpack(members, tmp_path)
    with pytest.raises(UserError, match=r"has 3 classes; 4 are expected"):
        prepare(source, tmp_path / "data", tmp_path)


def test_missing_raw_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"has no tiny-imagenet-200.zip \(nor tiny-imagenet-200/\)"):
        prepare(DATASETS["tiny_imagenet"], tmp_path / "data", tmp_path)
