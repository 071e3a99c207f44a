"""``config.deterministic``: sums in a fixed order on a GPU, and a check of the model."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax._src import xla_bridge  # No public function says whether JAX has started.

from flexpool_jax.errors import UserError

FLAG = "--xla_gpu_deterministic_ops"


def use_deterministic_ops() -> None:
    """Sets XLA's flag for deterministic operations in this process; it has an effect on GPUs only.

    Raises:
        UserError: JAX has already started on a GPU without the flag, and no longer reads flags.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    given = [flag for flag in flags if flag.partition("=")[0] == FLAG]
    if given and given[-1] in (FLAG, f"{FLAG}=true"):
        return
    if not xla_bridge.backends_are_initialized():
        os.environ["XLA_FLAGS"] = " ".join([*flags, f"{FLAG}=true"])
    elif jax.default_backend() == "gpu":
        raise UserError(
            "config.deterministic is True, but JAX has started without deterministic operations; "
            f"set XLA_FLAGS={FLAG}=true in the environment, or train in a process of its own"
        )


def check_deterministic(model: nn.Module, variables: Any, image_shape: tuple[int, ...]) -> None:
    """Refuses a model whose gradient needs an operation without a deterministic kernel.

    This operation is the gradient of max pooling over windows, which XLA refused to compile under
    the flag (https://github.com/google/flax/issues/4233). A maximum over the whole map does not
    need this operation.

    Args:
        model: the Flax module, from `flexpool_jax.create_model`.
        variables: ``params`` and ``batch_stats`` of the model, or their shapes.
        image_shape: (H, W, C) of the images.

    Raises:
        UserError: the model pools by the maximum over windows.
    """

    def logits_sum(images: jax.Array, variables: Any) -> jax.Array:
        return jnp.sum(model.apply(variables, images, train=False))  # type: ignore[arg-type]

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    gradient = jax.make_jaxpr(jax.grad(logits_sum))(images, variables)
    if "select_and_scatter_add" in str(gradient):
        raise UserError(
            "config.deterministic is True, and this model pools by the maximum over windows, whose "
            "gradient a GPU may add in any order; allowed: a model without max pooling, such as "
            "resnet20, or config.deterministic=False"
        )
