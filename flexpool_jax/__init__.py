"""FlexPool and Simple Auxiliary Classifiers in JAX.

Names are loaded when they are first used, so `import flexpool_jax` does not import JAX. A mistake
on the command line is therefore reported at once, and a program can set environment variables for
JAX after this import.

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

# For type checkers, which cannot follow `__getattr__`.
if TYPE_CHECKING:
    from flexpool_jax.data.registry import register_dataset as register_dataset
    from flexpool_jax.evaluation import evaluate as evaluate
    from flexpool_jax.losses import sac_loss as sac_loss
    from flexpool_jax.models.registry import create_model as create_model
    from flexpool_jax.models.registry import register_model as register_model
    from flexpool_jax.models.weights import load_weights as load_weights
    from flexpool_jax.pooling import FlexPool as FlexPool
    from flexpool_jax.pooling import flexpool_regularizer as flexpool_regularizer
    from flexpool_jax.pooling import resize_flexpool as resize_flexpool
    from flexpool_jax.pools import register_pool as register_pool
    from flexpool_jax.portable.exported import load_exported as load_exported
    from flexpool_jax.scoring import register_metric as register_metric
    from flexpool_jax.trained import load_trained as load_trained
    from flexpool_jax.training import train as train

__version__ = "0.2.0.dev0"

_MODULE_OF = {
    "FlexPool": "pooling",
    "flexpool_regularizer": "pooling",
    "register_pool": "pools",
    "resize_flexpool": "pooling",
    "load_exported": "portable.exported",
    "load_weights": "models.weights",
    "register_metric": "scoring",
    "sac_loss": "losses",
    "create_model": "models.registry",
    "register_dataset": "data.registry",
    "register_model": "models.registry",
    "evaluate": "evaluation",
    "load_trained": "trained",
    "train": "training",
}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Imports the module that holds a public name when the name is first asked for (PEP 562).

    Raises:
        AttributeError: the package has no such name.
        ModuleNotFoundError: a package that the name needs is not installed; the message says how
            to install it.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs the package {error.name}, which is not installed; "
            'pip install ".[train]" in the folder of this project installs it',
            name=error.name,
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Lists the lazy names as well, for completion in an interpreter."""
    return sorted([*globals(), *_MODULE_OF])
