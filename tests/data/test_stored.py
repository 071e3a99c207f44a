"""Images that stay in their files are the images that would be in memory."""

import dataclasses
import json

import numpy as np
import pytest

from flexpool_jax.data import load_dataset, stored
from flexpool_jax.data.images import Fit
from flexpool_jax.data.stored import StoredImages, read_ahead
from flexpool_jax.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def load(data_dir, **options):
    return load_dataset("digits", data_dir, **{"image_size": 8, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"holdout": 0.25, "seed": 3},
        {"image_size": 16, "center_crop": 12, "crop_training": False},
    ],
)
def test_stored_images_are_those_in_memory(data_dir, options):
    memory, files = load(data_dir, **options), load(data_dir, max_bytes=0, **options)
    for split, other in ((memory.train, files.train), (memory.test, files.test)):
        assert isinstance(other.images, StoredImages)
        assert other.images.shape == split.images.shape
        np.testing.assert_array_equal(np.asarray(other.images), split.images)
        np.testing.assert_array_equal(other.labels, split.labels)
        for index in (5, -1, slice(3, 9, 2), np.array([7, 3, 7]), np.array([], int)):
            np.testing.assert_array_equal(other.images[index], split.images[index])
    assert files.digest == memory.digest
    assert dataclasses.replace(files, test=memory.test).digest == memory.digest
    np.testing.assert_array_equal(files.mean, memory.mean)
    np.testing.assert_array_equal(files.std, memory.std)
    assert files.image_shape == memory.image_shape


def test_stored_images_are_resized_as_those_in_memory_are(data_dir):
    memory, files = (load(data_dir, **options).test for options in ({}, {"max_bytes": 0}))
    resized = files.resize(Fit(12))
    assert isinstance(resized.images, StoredImages)
    np.testing.assert_array_equal(np.asarray(resized.images), memory.resize(Fit(12)).images)


def test_the_pass_over_all_images_is_made_once(data_dir, monkeypatch):
    digest = load(data_dir, max_bytes=0).digest

    def fail(*_):
        raise AssertionError("an image was read")

    with monkeypatch.context() as patched:
        patched.setattr(StoredImages, "__getitem__", fail)
        assert load(data_dir, max_bytes=0).digest == digest
    # A kept description that was changed is made anew.
    paths = list((data_dir / "digits" / "1.0.0").glob("decoded_description_*.json"))
    assert paths
    for path in paths:
        kept = json.loads(path.read_text())
        path.write_text(json.dumps({**kept, "mean": [0.0]}))
    assert load(data_dir, max_bytes=0).mean != 0


def test_a_damaged_image_is_named(data_dir, monkeypatch):
    files = load(data_dir, max_bytes=0)
    records = [{**record, "image": b"\x89PNG"} for record in files.test.images.records]
    damaged = StoredImages(**{**vars(files.test.images), "records": Records(records)})
    with pytest.raises(UserError, match=r"1\.0\.0 is damaged \(image 2: .*delete this folder"):
        damaged[2]


class Records(list):
    """What TFDS reads records with can read several at once."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def test_what_is_read_ahead_comes_in_order_and_threads_end(monkeypatch):
    monkeypatch.setattr(stored, "thread_count", lambda: 3)
    made = []

    def item(index):
        made.append(index)
        if index == 20:
            raise UserError("broken")
        return index

    items = read_ahead(item, count=100, start=4)
    assert [next(items) for _ in range(5)] == [4, 5, 6, 7, 8]
    assert max(made) <= 8 + 3, "more is read ahead than memory is meant to hold"
    with pytest.raises(UserError, match="broken"):
        list(items)
    assert list(read_ahead(item, count=0)) == []
