"""From stage maps to logits: a head (pool, dropout, dense layer) on the last stage or each stage.

A Simple Auxiliary Classifier is such a head on an earlier stage, with no convolution or dense layer
before its pool (the paper, section 3.2 and Fig. 3).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flexpool_jax.errors import UserError
from flexpool_jax.pools import create_pool

Array = jax.Array


class Head(nn.Module):
    """Global pool, dropout on the pooled vector, dense layer: ``[B, H, W, C] -> [B, num_classes]``.

    Attributes:
        num_classes: number of classes, the width of the logits.
        pool: name of the pool, one of `flexpool_jax.pools.POOLS`.
        dropout_rate: probability that dropout sets an entry of the pooled vector, or of a hidden
            layer, to 0 in training.
        hidden_features: widths of dense layers with ReLU and dropout before the last dense layer.
        dtype: compute dtype; logits are float32 at least.
    """

    num_classes: int
    pool: str
    dropout_rate: float = 0.0
    hidden_features: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.dtype(jnp.float32)

    @nn.compact
    def __call__(self, feature_map: Array, train: bool = False) -> Array:
        x = create_pool(self.pool, name="pool")(feature_map)
        batch = feature_map.shape[0]
        if getattr(x, "ndim", 0) != 2 or x.shape[0] != batch:
            raise UserError(
                f"pool {self.pool!r} must map {list(feature_map.shape)} to [{batch}, features]; "
                f"got {_describe(x)}"
            )
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        for index, features in enumerate(self.hidden_features, start=1):
            x = nn.relu(nn.Dense(features, dtype=self.dtype, name=f"hidden{index}")(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        # Logits, and so the losses, are float32 at least, for every compute dtype.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return nn.Dense(self.num_classes, dtype=wide, name="classifier")(x)


class Classifier(nn.Module):
    """A backbone with a head on its last stage and, with SAC, a head on each earlier stage.

    Attributes:
        backbone: module that is called as ``backbone(images, train=bool)`` and returns the stage
            maps by name, first stage first.
        num_classes, pool, dropout_rate, dtype: settings of all heads, see `Head`.
        hidden_features: see `Head`; only the head on the last stage has hidden layers, because an
            auxiliary classifier is simple.
        sac: whether each earlier stage has an auxiliary classifier.
        freeze_backbone: whether the backbone stays fixed in training: BatchNorm then uses the
            running statistics, and gradients stop before the backbone.
        backbone_name: name of the backbone in error messages.
        num_stages: number of stage maps that the backbone must return; None for any number.
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
        """Maps images ``[B, H, W, C]`` to logits ``[B, num_classes]``, float32 at least.

        If ``sac`` and ``train`` are true and the collection ``aux_logits`` is mutable, auxiliary
        logits are stored there under the name ``logits``, as a tuple, first stage first.
        """
        stages = self.stage_maps(images, train=train and not self.freeze_backbone)
        self._check_stages(stages, images.shape[0])
        if self.freeze_backbone:
            stages = {name: jax.lax.stop_gradient(stage) for name, stage in stages.items()}
        head = functools.partial(
            Head, self.num_classes, self.pool, self.dropout_rate, dtype=self.dtype
        )
        *earlier, (_, last) = stages.items()
        if self.sac and (train or self.is_initializing()):
            aux_logits = tuple(
                head(name=f"aux_head_{name}")(feature_map, train) for name, feature_map in earlier
            )
            if not self.is_initializing():
                # Replaced, not appended: the variables may hold the logits of an earlier call.
                self.sow("aux_logits", "logits", aux_logits, reduce_fn=lambda old, new: new)
        return head(hidden_features=self.hidden_features, name="head")(last, train)

    def stage_maps(self, images: Array, train: bool = False) -> Mapping[str, Array]:
        """Maps images ``[B, H, W, C]`` to the feature maps of all stages by name, in order.

        Call it as ``model.apply(variables, images, method="stage_maps")``. The main head pools and
        classifies the last map.

        Raises:
            ValueError: the images have another number of axes, or are not normalised floats.
        """
        if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                "images must be [B, H, W, C] and floating, as a run's preprocess returns them; got "
                f"{images.dtype} of shape {tuple(images.shape)}"
            )
        return self.backbone(images.astype(self.dtype), train=train)

    @nn.nowrap
    def _check_stages(self, stages: Any, batch: int) -> None:
        """Raises UserError if the backbone's output is not the expected named stage maps."""
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


def prediction_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that predictions need: all but those of the auxiliary classifiers."""
    return {name: part for name, part in params.items() if not name.startswith("aux_head_")}


def _describe(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array {list(value.shape)} of {value.dtype}"
    return f"a {type(value).__name__}"
