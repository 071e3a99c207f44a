"""What training changes from step to step, as one pytree without a leading device axis."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

Array = jax.Array


@flax.struct.dataclass
class TrainState:
    """What one update turns into the next; the same on every device.

    Attributes:
        step: int32 scalar, the number of updates made.
        params: float32 parameters.
        batch_stats: float32 running statistics.
        opt_state: the optimiser's.
        ema_params: the moving average of ``params``; None where none is kept.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What is evaluated: the averaged parameters, where they are kept, and the statistics."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, "batch_stats": self.batch_stats}


def create_train_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: Array,
    image_shape: tuple[int, int, int],
    keep_average: bool = False,
) -> TrainState:
    """Initialises a model and its optimiser.

    Args:
        model: from `flexpool_jax.create_model`.
        tx: the optimiser.
        key: a typed PRNG key.
        image_shape: (H, W, C) of the images it will be trained on; FlexPool's weights have the
            shape of the feature maps that these give.
        keep_average: whether a moving average of the parameters is kept; it starts as they do.

    Returns:
        A `TrainState` at step 0.

    Example:
        >>> import jax, optax
        >>> from flexpool_jax import create_model
        >>> state = jax.eval_shape(
        ...     lambda key: create_train_state(
        ...         create_model("resnet20"), optax.sgd(0.1), key, (32, 32, 3)
        ...     ),
        ...     jax.random.key(0),
        ... )
        >>> state.step.shape
        ()
    """

    # Jitted as a whole: op by op, initialisation would compile a hundred small programs.
    @jax.jit
    def init(key: Array) -> TrainState:
        variables = model.init(key, jnp.zeros((1, *image_shape)))
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=tx.init(params),
            # A copy: the state's buffers are donated, each of them once.
            ema_params=jax.tree.map(jnp.copy, params) if keep_average else None,
        )

    return init(key)


def parameter_count(params: Any) -> int:
    """The number of trainable parameters in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
