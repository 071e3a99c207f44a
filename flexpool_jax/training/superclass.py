"""Super classing (the paper, section 4.2): first train on superclasses, then on the classes.

The first step is a run of its own, in the folder ``superclass`` of the workdir; the second starts
from its weights with new classifiers. Each resumes as any run does.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from flexpool_jax.data import Dataset, Split
from flexpool_jax.errors import UserError
from flexpool_jax.training.steps import TrainState

FOLDER = "superclass"


def superclass_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config of the first step: that of the whole, for ``superclass.epochs`` epochs."""
    first = copy.deepcopy(config)
    first.num_epochs = config.superclass.epochs
    first.superclass.epochs = 0
    return first


def superclass_dataset(dataset: Dataset, mapping: str = "") -> Dataset:
    """The same images with their superclasses for labels.

    Args:
        dataset: labelled by class.
        mapping: a file for `flexpool_jax.data.read_superclass_mapping`; empty for the data set's
            own superclasses.

    Raises:
        UserError: the data set has no superclasses and no file gives any, or the file is wrong.
    """
    superclasses = dataset.superclasses
    if mapping:
        from flexpool_jax.data import read_superclass_mapping

        superclasses = read_superclass_mapping(mapping, dataset.class_names)
    if superclasses is None:
        raise UserError(
            f"config.superclass.epochs needs superclasses, and {dataset.name} has none of its own; "
            "name a file that maps its classes to some: --config.superclass.mapping=FILE"
        )

    def relabel(split: Split) -> Split:
        return Split(split.images, superclasses.of_class[split.labels])

    return dataclasses.replace(
        dataset,
        train=relabel(dataset.train),
        test=relabel(dataset.test),
        class_names=superclasses.names,
        superclasses=None,
    )


def with_new_classifiers(state: TrainState, trained: Mapping[str, Any]) -> TrainState:
    """A fresh state with trained weights everywhere but in its classifiers.

    Args:
        state: at step 0, of the model for classes.
        trained: ``params`` and ``batch_stats`` of the same model with another number of classes.

    Returns:
        The state with the trained weights and statistics; the classifiers and the optimizer stay
        as they are.
    """

    def choose(path: tuple[Any, ...], fresh: Any, old: Any) -> Any:
        return fresh if any(part.key == "classifier" for part in path) else old

    params = jax.tree_util.tree_map_with_path(choose, state.params, trained["params"])
    average = None if state.ema_params is None else jax.tree.map(jnp.array, params)
    return dataclasses.replace(
        state, params=params, batch_stats=trained["batch_stats"], ema_params=average
    )
