"""Super classing (FlexPool paper, section 4.2): first trains on superclasses, then on the classes.

The paper names two steps, of 10 and 100 epochs, and does not say what the first step trains. That
it trains on superclasses is this project's reading.

The first phase is a run of its own in the folder ``superclass`` of the workdir. The second phase
starts from the weights of the first, with new classifiers. Each phase resumes by the command of the
whole run. Do not give the folder ``superclass`` as --workdir: that would train on the classes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from flexpool_jax.data import Dataset, Split, read_superclass_mapping
from flexpool_jax.errors import UserError


def superclass_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config of the first phase: the same config, but with ``superclass.epochs`` epochs."""
    first = copy.deepcopy(config)
    first.num_epochs = config.superclass.epochs
    first.superclass.epochs = 0
    return first


def superclass_dataset(dataset: Dataset, mapping: str = "") -> Dataset:
    """Returns the same images with their superclasses as labels.

    Args:
        dataset: data set whose labels are classes.
        mapping: path of a file for `flexpool_jax.data.read_superclass_mapping`; empty for the data
            set's own superclasses.

    Raises:
        UserError: the data set has no superclasses and no file is given, or the file is wrong.
    """
    superclasses = dataset.superclasses
    if mapping:
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


def with_new_classifiers(
    variables: Mapping[str, Any], trained: Mapping[str, Any]
) -> dict[str, Any]:
    """Combines trained weights and statistics with new classifiers.

    Args:
        variables: initial ``params`` and ``batch_stats`` of the model for classes.
        trained: ``params`` and ``batch_stats`` of the same model with another number of classes.

    Returns:
        The trained variables, with the classifiers of ``variables``.
    """

    def choose(path: tuple[Any, ...], fresh: Any, old: Any) -> Any:
        # params/head/classifier/kernel; a backbone may have layers of that name.
        return fresh if path[0].key != "backbone" and path[1].key == "classifier" else old

    params = jax.tree_util.tree_map_with_path(choose, variables["params"], trained["params"])
    return {"params": params, "batch_stats": trained["batch_stats"]}
