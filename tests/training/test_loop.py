"""A run compiles one program for training, one for evaluation, none after its first epoch."""

import collections

import jax
import numpy as np
import pytest
from flax import linen as nn

from configs import digits
from flexpool_jax import register_model, train
from flexpool_jax.data import Dataset, Split

COMPILED = "/jax/core/compile/backend_compile_duration"


class TwoConvs(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(4, (3, 3), strides=2)(images)
        first = nn.relu(nn.BatchNorm(not train)(x))
        return {"stage1": first, "stage2": nn.relu(nn.Conv(6, (3, 3))(first))}


@register_model("two_convs_of_few_programs", num_stages=2)
def two_convs(*, dtype, norm_axis_name):
    return TwoConvs()


@pytest.fixture
def compiled():
    """Counts what XLA compiles, by name, from here on."""
    names = collections.Counter()

    def listen(event, seconds, **details):
        if event == COMPILED:
            names[details.get("fun_name")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_one_program_each_and_none_after_the_first_epoch(compiled, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 1), np.uint8)
    split = Split(images, np.arange(80, dtype=np.int32) % 2)
    dataset = Dataset("noise", split, split, ("0", "1"), np.float32([0.5]), np.float32([0.3]))
    counts = []
    for epochs in (1, 3):
        config = digits.get_config("flexpool,reg,dropout,sac")
        config.model, config.sac.weights = "two_convs_of_few_programs", (0.3, 0.7)
        config.batch_size = 16
        config.num_epochs = epochs
        config.tensorboard = False
        compiled.clear()
        train(config, tmp_path / str(epochs), dataset)
        counts.append(dict(compiled))
    few, many = counts
    # The first run of a process also compiles the small programs that make a key.
    assert set(many) <= set(few)
    assert all(many[name] <= few[name] for name in many)
    pmapped = [
        name for name in many if name not in ("jit(init)", "jit(stage)", "jit(pool_summary)")
    ]
    assert sum(many[name] for name in pmapped) == 2, many
