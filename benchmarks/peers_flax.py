"""The peer that a Flax user writes first: flax's layers, average pooling, one jitted step.

Its batch is on the device already, in floating point and augmented: the peer's time does not
include the work on data that this project's step does.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from benchmarks.ours import IMAGE_SHAPE, NUM_CLASSES, steps_per_call
from benchmarks.workers import Call


class PlainResNet20(nn.Module):
    """He et al. 2015, section 4.2, with option-A shortcuts."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        x = nn.relu(norm()(conv(16)(x)))
        for stage, features in enumerate((16, 32, 64)):
            for block in range(3):
                stride = 2 if stage and not block else 1
                shortcut = x[:, ::stride, ::stride]
                missing = (features - x.shape[-1]) // 2
                shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (missing, missing)))
                y = nn.relu(norm()(conv(features, strides=stride, padding=1)(x)))
                x = nn.relu(norm()(conv(features)(y)) + shortcut)
        return nn.Dense(NUM_CLASSES, dtype=self.dtype)(x.mean((1, 2))).astype(jnp.float32)


def train(batch: int, dtype: str) -> tuple[Call, float]:
    """Returns a call of jitted steps with a donated state, and its number of images."""
    model, tx = PlainResNet20(jnp.dtype(dtype)), optax.sgd(0.05, momentum=0.9)
    images = jax.random.normal(jax.random.key(0), (batch, *IMAGE_SHAPE))
    labels = jax.random.randint(jax.random.key(1), (batch,), 0, NUM_CLASSES)
    variables = jax.jit(model.init)(jax.random.key(2), images[:1])
    state = (variables, tx.init(variables["params"]))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        variables, opt_state = state

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            logits, updates = model.apply(
                {**variables, "params": params}, images, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updates

        grads, updates = jax.grad(loss_fn, has_aux=True)(variables["params"])
        changes, opt_state = tx.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], changes)
        return ({**updates, "params": params}, opt_state), optax.global_norm(grads)

    def call() -> None:
        nonlocal state
        for _ in range(steps_per_call()):
            state, norm = step(state, images, labels)
        jax.block_until_ready((state, norm))

    return call, batch * steps_per_call()
