"""Backbones that yield one feature map per stage, the heads on them, and a registry by name."""

from flexpool_jax.models.registry import (
    MODELS,
    create_model,
    default_sac_weights,
    num_stages,
    register_model,
)

__all__ = ["MODELS", "create_model", "default_sac_weights", "num_stages", "register_model"]
