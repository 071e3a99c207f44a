"""FlexPool and Simple Auxiliary Classifiers in JAX.

Names are loaded when they are first used: `import flexpool_jax` does not import JAX, so that a
mistake on the command line is answered at once and a program may set JAX's environment before it
loads.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from flexpool_jax import FlexPool
    >>> feature_map = jnp.ones((2, 8, 8, 64))
    >>> pooled, variables = FlexPool().init_with_output(jax.random.key(0), feature_map)
    >>> pooled.shape, variables["params"]["w_fp"].shape
    ((2, 64), (8, 8, 64))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexpool_jax.data.registry import register_dataset
    from flexpool_jax.evaluation import evaluate
    from flexpool_jax.losses import sac_loss
    from flexpool_jax.models.registry import create_model, register_model
    from flexpool_jax.models.weights import load_weights
    from flexpool_jax.pooling import (
        FlexPool,
        flexpool_regularizer,
        register_pool,
        resize_flexpool,
    )
    from flexpool_jax.portable.export import load_exported
    from flexpool_jax.scoring import register_metric
    from flexpool_jax.trained import load_trained
    from flexpool_jax.training import train

__version__ = "0.2.0.dev0"

__all__ = [
    "FlexPool",
    "create_model",
    "evaluate",
    "flexpool_regularizer",
    "load_exported",
    "load_trained",
    "load_weights",
    "register_dataset",
    "register_metric",
    "register_model",
    "register_pool",
    "resize_flexpool",
    "sac_loss",
    "train",
]

_MODULE_OF = {
    "FlexPool": "flexpool_jax.pooling",
    "flexpool_regularizer": "flexpool_jax.pooling",
    "register_pool": "flexpool_jax.pooling",
    "resize_flexpool": "flexpool_jax.pooling",
    "load_exported": "flexpool_jax.portable.export",
    "load_weights": "flexpool_jax.models.weights",
    "register_metric": "flexpool_jax.scoring",
    "sac_loss": "flexpool_jax.losses",
    "create_model": "flexpool_jax.models.registry",
    "register_dataset": "flexpool_jax.data.registry",
    "register_model": "flexpool_jax.models.registry",
    "evaluate": "flexpool_jax.evaluation",
    "load_trained": "flexpool_jax.trained",
    "train": "flexpool_jax.training",
}


def __getattr__(name: str) -> Any:
    """Imports the module that holds a public name when the name is first asked for (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Lists the lazy names as well, for completion in an interpreter."""
    return sorted([*globals(), *_MODULE_OF])
