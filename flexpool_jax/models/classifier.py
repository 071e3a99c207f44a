"""From stage maps to logits: a pool, dropout and a dense layer on the last stage, or on every one.

A Simple Auxiliary Classifier is the same head on an earlier stage, with no convolution or dense
layer before its pool (the paper, section 3.2 and Fig. 3).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flexpool_jax.errors import UserError
from flexpool_jax.pooling import create_pool

Array = jax.Array


class Head(nn.Module):
    """Global pool, dropout on the pooled vector, dense layer: ``[B, H, W, C] -> [B, num_classes]``.

    Attributes:
        num_classes: width of the logits.
        pool: a name out of `flexpool_jax.pooling.POOLS`.
        dropout_rate: of the pooled vector; acts in training only.
        hidden_features: widths of dense layers with ReLU (and dropout) ahead of the last one.
        dtype: compute dtype; logits are float32.
    """

    num_classes: int
    pool: str
    dropout_rate: float = 0.0
    hidden_features: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.dtype(jnp.float32)

    @nn.compact
    def __call__(self, feature_map: Array, train: bool = False) -> Array:
        x = create_pool(self.pool, name="pool")(feature_map)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        for index, features in enumerate(self.hidden_features, start=1):
            x = nn.relu(nn.Dense(features, dtype=self.dtype, name=f"hidden{index}")(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        # Logits, and so the losses, have float32's precision whatever the network computes in.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return nn.Dense(self.num_classes, dtype=wide, name="classifier")(x)


class Classifier(nn.Module):
    """A backbone with a head on its last stage and, with SAC, one on each earlier stage.

    Attributes:
        backbone: called as ``backbone(images, train=bool)``; returns named stage maps in order.
        num_classes, pool, dropout_rate, hidden_features, dtype: of the heads, see `Head`; the
            hidden layers are the last head's alone: an auxiliary classifier is simple.
        sac: whether the earlier stages have classifiers.
        freeze_backbone: use the running statistics in training too, and let no gradient into the
            backbone.
        backbone_name: for messages.
        num_stages: of the maps that the backbone must return; None for any number.
    """

    backbone: nn.Module
    num_classes: int
    pool: str = "flexpool"
    sac: bool = False
    dropout_rate: float = 0.0
    hidden_features: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    freeze_backbone: bool = False
    backbone_name: str = ""
    num_stages: int | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Maps images ``[B, H, W, C]`` to float32 logits ``[B, num_classes]``.

        With ``sac`` and ``train`` the collection ``aux_logits`` (if mutable) receives under
        ``logits`` the tuple of the auxiliary logits, first stage first.
        """
        if images.ndim != 4:
            raise ValueError(f"images must be [B, H, W, C]; got shape {tuple(images.shape)}")
        train_backbone = train and not self.freeze_backbone
        stages = self.backbone(images.astype(self.dtype), train=train_backbone)
        self._check_stages(stages, images.shape[0])
        if self.freeze_backbone:
            stages = {name: jax.lax.stop_gradient(stage) for name, stage in stages.items()}
        head = functools.partial(
            Head, self.num_classes, self.pool, self.dropout_rate, dtype=self.dtype
        )
        *earlier, (_, last) = stages.items()
        if self.sac and (train or self.is_initializing()):
            for name, feature_map in earlier:
                logits = head(name=f"aux_head_{name}")(feature_map, train)
                if not self.is_initializing():
                    self.sow("aux_logits", "logits", logits)
        return head(hidden_features=self.hidden_features, name="head")(last, train)

    def stage_maps(self, images: Array, train: bool = False) -> Mapping[str, Array]:
        """Maps images ``[B, H, W, C]`` to the feature map of each stage by name, the last one last.

        Called as ``model.apply(variables, images, method="stage_maps")``. The last map is what the
        head pools and classifies.
        """
        stages: Mapping[str, Array] = self.backbone(images.astype(self.dtype), train=train)
        return stages

    @nn.nowrap
    def _check_stages(self, stages: Any, batch: int) -> None:
        """Checks what the backbone returned; shapes and dtypes are known when it is traced."""
        what = f"backbone {self.backbone_name!r} must return"
        if not isinstance(stages, Mapping):
            raise UserError(f"{what} {{name: [B, H, W, C] floating}}; got {_describe(stages)}")
        if not stages or self.num_stages not in (None, len(stages)):
            raise UserError(
                f"{what} {self.num_stages or 'at least one'} stage maps; got {len(stages)}: "
                f"{', '.join(map(str, stages)) or 'none'}"
            )
        for name, stage in stages.items():
            is_map = hasattr(stage, "shape") and len(stage.shape) == 4 and stage.shape[0] == batch
            if not is_map or not jnp.issubdtype(stage.dtype, jnp.floating):
                raise UserError(
                    f"{what} {{name: [B, H, W, C] floating}} with B = {batch}; got "
                    f"{_describe(stage)} for {name!r}"
                )


def _describe(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array {list(value.shape)} of {value.dtype}"
    return f"a {type(value).__name__}"
