"""A run compiles one program for training, one for evaluation, none after its first epoch."""

import collections

import jax
import pytest

from configs import digits
from flexpool_jax import train

COMPILED = "/jax/core/compile/backend_compile_duration"


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
    counts = []
    for epochs in (1, 3):
        config = digits.get_config("flexpool,reg,dropout,sac")
        config.dataset.data_dir = str(tmp_path / "data")
        config.dataset.image_size = 8
        config.batch_size = 128
        config.num_epochs = epochs
        config.tensorboard = False
        compiled.clear()
        train(config, tmp_path / str(epochs))
        counts.append(dict(compiled))
    few, many = counts
    # The first run of a process also compiles the small programs that make a key.
    assert set(many) <= set(few)
    assert all(many[name] <= few[name] for name in many)
    pmapped = [
        name for name in many if name not in ("jit(init)", "jit(stage)", "jit(pool_summary)")
    ]
    assert sum(many[name] for name in pmapped) == 2, many
