"""The programs of an NVIDIA GPU, lowered on this machine: what they hold, and what they do not."""

import re

import jax
import numpy as np
import pytest

from configs import cifar10
from flexpool_jax import configuration
from flexpool_jax.data import Dataset, Split
from flexpool_jax.training.setup import set_up
from flexpool_jax.training.steps import DeviceSplit

CIFAR10 = Dataset(
    "cifar10",
    Split(np.zeros((1000, 32, 32, 3), np.uint8), np.zeros(1000, np.int32)),
    Split(np.zeros((100, 32, 32, 3), np.uint8), np.zeros(100, np.int32)),
    tuple("abcdefghij"),
    np.full(3, 0.5, np.float32),
    np.full(3, 0.25, np.float32),
)


@pytest.fixture(scope="module")
def gpu_setup():
    """A run with everything the paper has, as a process on a GPU sets it up."""
    config = cifar10.get_config("flexpool,reg,dropout,sac")
    config.batch_size = 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        yield set_up(configuration.resolve(config), CIFAR10)


def shapes_of(*tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def arguments(setup):
    data = DeviceSplit(CIFAR10.train.images, CIFAR10.train.labels)
    devices = jax.local_device_count()
    part = np.zeros((devices, setup.steps_per_dispatch, 100 // devices), np.int32)
    state, key = setup.abstract_state, jax.eval_shape(lambda: jax.random.key(0))
    return (
        (setup.train_steps, (state, *shapes_of(data, part), key)),
        (setup.eval_step, (state.variables, *shapes_of(data, part[:, 0]))),
    )


def test_the_programs_hold_no_callback_no_kernel_of_ours_and_no_float64(gpu_setup):
    assert gpu_setup.steps_per_dispatch == 10
    for program, shapes in arguments(gpu_setup):
        lowered = jax.jit(program).trace(*shapes).lower(lowering_platforms=("cuda",))
        text = lowered.as_text()
        assert text.count("stablehlo.convolution") >= 19
        # Random numbers may have a kernel of JAX's.
        calls = set(re.findall(r"custom_call @(\w+)", text))
        assert calls <= {"cu_threefry2x32_ffi"}
        assert "callback" not in text
        assert not re.search(r"tensor<(\d+x)*f64>", text)


def test_the_whole_state_is_donated(gpu_setup):
    program, shapes = arguments(gpu_setup)[0]
    state = jax.tree.leaves(shapes[0])
    text = program.lower(*shapes).as_text()
    assert len(re.findall(r"tf\.aliasing_output|jax\.buffer_donor", text)) == len(state)
