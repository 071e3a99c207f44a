"""Speeds up XLA's CPU backend: kernels for convolution, BatchNorm and ReLU; process settings.

The other modules of this folder are private. Names are loaded when they are first used, since
`prepare_process` must run before JAX is imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexpool_jax.cpu.convolution import conv_general_dilated as conv_general_dilated
    from flexpool_jax.cpu.norm import batch_norm as batch_norm
    from flexpool_jax.cpu.norm import relu as relu
    from flexpool_jax.cpu.onednn import describe as describe
    from flexpool_jax.cpu.process import prepare_process as prepare_process

_MODULE_OF = {
    "batch_norm": "norm",
    "conv_general_dilated": "convolution",
    "describe": "onednn",
    "prepare_process": "process",
    "relu": "norm",
}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Imports the module that holds a public name when the name is first used (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
