"""Data on the devices and data that are streamed give the same batches, and the same run."""

import itertools
import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from configs import digits
from flexpool_jax import evaluate, register_model, train
from flexpool_jax.configuration import dataset_options
from flexpool_jax.data import load_dataset
from flexpool_jax.training import steps
from flexpool_jax.training.feed import Feed
from flexpool_jax.training.pace import Pace
from flexpool_jax.training.setup import set_up


class Small(nn.Module):
    """One convolution, so that the tests compile in no time."""

    @nn.compact
    def __call__(self, images, train=False):
        return {"stage1": nn.relu(nn.Conv(4, (3, 3), strides=2)(images))}


register_model("small_for_feeds", num_stages=1)(lambda **fields: Small())


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def make_config(data_dir):
    def make_config(**fields):
        config = digits.get_config("flexpool")
        config.update_from_flattened_dict(
            {
                "model": "small_for_feeds",
                "dataset.data_dir": data_dir,
                "dataset.image_size": 8,
                "schedule": "constant",
                "batch_size": 96,
                "eval_batch_size": 100,
                "num_epochs": 2,
                "tensorboard": False,
                **fields,
            }
        )
        return config

    return make_config


def picked(feed, parts):
    """The batches of parts, on the host."""
    return [jax.device_get(steps.pick(feed.data, part)) for part in parts]


def assert_same(batches, others, names):
    for batch, other in itertools.zip_longest(batches, others):
        for name in names:
            np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize("steps_per_dispatch", [1, 5])
def test_streamed_batches_are_those_on_the_devices(make_config, steps_per_dispatch):
    config = make_config()
    stored = load_dataset(**dataset_options(config), max_bytes=0)
    setup = set_up(config, load_dataset(**dataset_options(config)))
    device, stream = Feed(setup.dataset.train), Feed(stored.train, is_streamed=True)
    # The second epoch is read ahead during the first; then a run resumes in the middle of one.
    pace = Pace(setup.steps_per_epoch, steps_per_dispatch)
    for epoch, start in ((0, 0), (1, 0), (0, 7)):
        expected = picked(device, device.epoch(setup, epoch, pace.spans(start)))
        found = picked(stream, stream.epoch(setup, epoch, pace.spans(start)))
        assert_same(found, expected, ("image", "label"))
    stream.close()

    device, stream = Feed(setup.dataset.test), Feed(stored.test, is_streamed=True)
    batches = picked(stream, stream.once(100))
    labels = np.concatenate([batch["label"][batch["valid"]] for batch in batches])
    np.testing.assert_array_equal(labels, setup.dataset.test.labels)
    expected = picked(device, device.once(100))
    assert_same(batches[:-1], expected[:-1], ("image", "label", "valid"))
    assert_same(batches[-1:], expected[-1:], ("valid",))


def test_an_epoch_holds_examples_once_and_in_a_random_order(make_config):
    config = make_config()
    setup = set_up(config, load_dataset(**dataset_options(config)))
    feed = Feed(setup.dataset.train)
    parts = feed.epoch(setup, 0, Pace(setup.steps_per_epoch, 5).spans(0))
    order = np.concatenate([part.swapaxes(0, 1).ravel() for part in parts])
    assert len(np.unique(order)) == len(order) == 96 * (1438 // 96)
    # The rank correlation with the stored order has the standard error 1/√n.
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 4 / np.sqrt(len(order))


def test_a_run_may_change_its_placement_and_stays_the_same(make_config, tmp_path):
    config = make_config()
    device = train(config, tmp_path / "device")
    config.dataset.placement = "stream"
    config.num_epochs = 1
    train(config, tmp_path / "stream")
    config.num_epochs = 2
    stream = train(config, tmp_path / "stream")
    assert stream["final_test_loss"] == device["final_test_loss"]
    assert stream["data_digest"] == device["data_digest"]
    for file in ("pool_weights.npz", "predictions.npz"):
        assert (tmp_path / "stream" / file).read_bytes() == (
            tmp_path / "device" / file
        ).read_bytes()
    assert evaluate(tmp_path / "stream")["loss"] == device["final_test_loss"]
    assert 0 <= stream["data_wait"] < 1
    lines = (tmp_path / "stream" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-2])["data_wait"] == stream["data_wait"]


def test_what_takes_more_than_a_quarter_of_the_memory_is_streamed(make_config, monkeypatch):
    config = make_config()
    dataset = load_dataset(**dataset_options(config))
    assert not set_up(config, dataset).is_streamed
    size = dataset.train.images.nbytes + dataset.test.images.nbytes
    for pages, is_streamed in ((4 * size, False), (4 * size - 4, True)):
        memory = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": pages * jax.local_device_count()}
        monkeypatch.setattr("os.sysconf", memory.__getitem__)
        assert set_up(config, dataset).is_streamed is is_streamed


def test_arrays_are_streamed_from_memory(make_config, tmp_path):
    config = make_config(num_epochs=1)
    dataset = load_dataset(**dataset_options(config))
    device = train(config, tmp_path / "device", dataset)
    config.dataset.placement = "stream"
    stream = train(config, tmp_path / "stream", dataset)
    assert stream["final_test_loss"] == device["final_test_loss"]
    assert stream["data_wait"] is not None
    assert device["data_wait"] is None
