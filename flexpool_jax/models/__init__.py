"""Backbones that return one feature map for each stage, classifier heads, and a registry."""

from flexpool_jax.models.registry import (
    MODELS,
    create_model,
    default_sac_weights,
    num_stages,
    register_model,
)

__all__ = ["MODELS", "create_model", "default_sac_weights", "num_stages", "register_model"]
