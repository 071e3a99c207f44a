"""This project's own programs on random images, as the contestants of several benchmarks."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.workers import ACCELERATOR_STEPS, Call
from flexpool_jax import create_model
from flexpool_jax.cpu import convolution as cpu_convolution
from flexpool_jax.data.augment import make_augment, make_normalise
from flexpool_jax.models import layers
from flexpool_jax.training import steps
from flexpool_jax.training.setup import replicate

IMAGE_SHAPE = (32, 32, 3)
MEAN, STD = np.full(3, 0.5), np.full(3, 0.25)
NUM_CLASSES = 10
NUM_IMAGES = 10_000
LEARNING_RATE, MOMENTUM = 0.05, 0.9
# The variant `reg` has 0.1, which is not stable with this optimizer on the 32×32 map that SAC pools
# first: the loss would be NaN after ten steps.
POOL_REG = 0.01


def steps_per_call() -> int:
    """Training steps of one timed call."""
    return 1 if jax.default_backend() == "cpu" else ACCELERATOR_STEPS


def _images(batch: int) -> steps.DeviceSplit:
    random = np.random.default_rng(0)
    count = max(NUM_IMAGES, batch)
    images = random.integers(0, 256, (count, *IMAGE_SHAPE), np.uint8)
    labels = random.integers(0, NUM_CLASSES, count).astype(np.int32)
    return steps.DeviceSplit(*replicate((images, labels)))


def _program(dtype: str, pool: str, sac: bool) -> tuple[Callable[..., Any], Any, Any]:
    """The pmapped program of training steps, its first state, and the run's key."""
    model = create_model(
        "resnet20",
        num_classes=NUM_CLASSES,
        pool=pool,
        sac=sac,
        dtype=dtype,
        norm_axis_name=steps.AXIS,
    )
    tx = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    train_step = steps.make_train_step(
        model,
        tx,
        optax.constant_schedule(LEARNING_RATE),
        augment=make_augment(flip=True, scale=(0.8, 1.2)),
        normalise=make_normalise(MEAN, STD, jnp.dtype(dtype)),
        sac_weights=(0.1, 0.2, 0.7) if sac else (),
        pool_reg=POOL_REG if pool == "flexpool" else 0.0,
    )
    run: Callable[..., Any] = steps.pmap_train_step(train_step)
    key = jax.random.key(0)
    return run, replicate(steps.create_train_state(model, tx, key, IMAGE_SHAPE)), key


def train(
    batch: int,
    dtype: str,
    pool: str = "flexpool",
    sac: bool = False,
    cpu_kernels: bool = True,
) -> tuple[Call, float]:
    """Returns a call of the training step of a run, and its number of images.

    The step gathers, augments, normalises and updates, as in a run.

    Args:
        batch: number of images in a step, over all devices.
        dtype: compute dtype.
        pool: the name of a pool.
        sac: whether the network has auxiliary classifiers.
        cpu_kernels: whether to use this project's kernels on a CPU, or else Flax's own layers.
    """
    count, devices = steps_per_call(), jax.local_device_count()
    run, state, key = _program(dtype, pool, sac)
    data = _images(batch)
    random = np.random.default_rng(1)

    def call() -> None:
        nonlocal state
        chosen = random.integers(0, len(data.labels), (devices, count, batch // devices), np.int32)
        with layers.cpu_kernels(cpu_kernels):
            state, metrics = run(state, data, chosen, key)
        jax.block_until_ready((state, metrics))

    return call, batch * count


def first_steps(batch: int, dtype: str, count: int) -> tuple[list[float], list[np.ndarray]]:
    """Returns the losses of the first steps with FlexPool and SAC, and the first step's gradient.

    Args:
        batch: number of images in a step, over all devices.
        dtype: compute dtype.
        count: number of steps.

    Returns:
        `count` losses, and the leaves of the gradient.
    """
    run, state, key = _program(dtype, "flexpool", True)
    data = _images(batch)
    random, shape = np.random.default_rng(1), (jax.local_device_count(), 1, -1)
    losses, gradient = [], []
    for _ in range(count):
        chosen = random.integers(0, len(data.labels), batch, np.int32).reshape(shape)
        state, metrics = run(state, data, chosen, key)
        losses.append(float(metrics["loss"][0]))
        # Momentum starts at zero, so that after one step the momentum is the gradient.
        gradient = gradient or [np.asarray(leaf) for leaf in jax.tree.leaves(state.opt_state)]
    return losses, gradient


def evaluate(batch: int, dtype: str) -> tuple[Call, float]:
    """Returns a call that evaluates one batch (many on accelerators), and its number of images."""
    model = create_model("resnet20", num_classes=NUM_CLASSES, pool="flexpool", dtype=dtype)
    eval_step = steps.make_eval_step(model, normalise=make_normalise(MEAN, STD, jnp.dtype(dtype)))
    run: Callable[..., Any] = steps.pmap_eval_step(eval_step)
    data = _images(batch)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = replicate(init(jax.random.key(0), jnp.zeros((1, *IMAGE_SHAPE))))
    count, devices = steps_per_call(), jax.local_device_count()
    starts = itertools.cycle(range(0, len(data.labels) - batch + 1, batch))

    def call() -> None:
        sums = []
        for start in itertools.islice(starts, count):
            chosen = np.arange(start, start + batch, dtype=np.int32).reshape(devices, -1)
            sums.append(run(variables, data, chosen))
        jax.block_until_ready(sums)

    return call, batch * count


def convolution(by: str, form: str, batch: int, side: int, channels: int) -> Call:
    """Returns a call of a 3×3 convolution that keeps the shape, or of one of its gradients.

    Args:
        by: "conv" or "xla_conv" of `flexpool_jax.cpu.convolution`, or "lax".
        form: "forward", "input gradient" or "kernel gradient".
        batch: number of images.
        side: side of an image in pixels.
        channels: number of channels of an image and of the result.
    """
    padding = ((1, 1), (1, 1))

    def conv(x: Any, kernel: Any) -> Any:
        if by != "lax":
            return getattr(cpu_convolution, by)(x, kernel, 1, padding)
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def run(x: Any, kernel: Any, dy: Any) -> Any:
        if form == "forward":
            return conv(x, kernel)
        gradients = jax.vjp(conv, x, kernel)[1](dy)
        return gradients[form == "kernel gradient"]

    shapes = ((batch, side, side, channels), (3, 3, channels, channels))
    x, kernel = (jax.random.normal(jax.random.key(0), shape) for shape in shapes)
    compiled = jax.jit(run)
    return lambda: jax.block_until_ready(compiled(x, kernel, x))
