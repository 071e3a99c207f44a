"""What several of these tests share: the smallest model, and a clock that they set."""

import pytest
from flax import linen as nn

from flexpool_jax import register_model


class Linear(nn.Module):
    """The least that can be trained."""

    @nn.compact
    def __call__(self, images, train=False):
        return {"stage1": nn.Dense(2)(images)}


register_model("linear_for_tests", num_stages=1)(lambda **fields: Linear())


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    monkeypatch.setattr("time.monotonic", clock)
    return clock
