"""Arranges runs into the rows and cells of tables, with everything that a cell has to say.

A row is a recipe, a cell one arm of it over all its seeds. A cell that has no runs is there as well
and says so; nothing is filled in from elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from ml_collections import ConfigDict

from flexpool_jax.configuration import FIELDS
from flexpool_jax.configuration.fields import get_field
from flexpool_jax.experiments import paper
from flexpool_jax.experiments.grid import Cell
from flexpool_jax.experiments.results import Arm, Run, recipe_of
from flexpool_jax.experiments.statistics import (
    Difference,
    Estimate,
    estimate,
    holm,
    paired_difference,
)

# Two recipes are told apart in words by these fields; the arm, the seed and the folders are none.
_ARM_OR_FOLDER = ("pool", "pool_reg", "dropout_rate", "sac.", "seed", "dataset.name", "dataset.d")
_RUN_ONLY = ("eval_batch_size", "log_every", "steps_per", "tensorboard", "compilation", "dataset.r")


@dataclasses.dataclass
class Row:
    """All runs of one recipe.

    Attributes:
        config: Of one of them; what it has besides arm and seed holds for all.
        title: The data set, and what tells the recipe from another on the same data set.
        runs: By arm and seed.
        expected: The seeds that a sweep asks for, by arm.
    """

    config: ConfigDict
    title: str = ""
    runs: dict[Arm, dict[int, Run]] = dataclasses.field(default_factory=dict)
    expected: dict[Arm, set[int]] = dataclasses.field(default_factory=dict)

    @property
    def arms(self) -> list[Arm]:
        """The arms that have runs or are expected to, without SAC first, AvgPool first."""
        order = list(paper.COLUMNS)

        def key(arm: Arm) -> tuple[object, ...]:
            column = order.index(arm.column) if arm.column else len(order)
            return (len(arm.sac) > 0, arm.sac, column, arm)

        return sorted(self.runs.keys() | self.expected.keys(), key=key)

    def accuracies(self, arm: Arm) -> dict[int, float]:
        """Final test accuracy in per cent by seed, the seeds in order."""
        return {seed: run.accuracy for seed, run in sorted(self.runs.get(arm, {}).items())}

    def estimate(self, arm: Arm) -> Estimate | None:
        """The mean over the seeds and its interval; None where there are no runs."""
        values = self.accuracies(arm)
        return estimate(list(values.values())) if values else None

    def missing(self, arm: Arm) -> list[int]:
        """The seeds that are missing: those expected, or else those that another arm has."""
        seeds = self.expected.get(arm) or {s for runs in self.runs.values() for s in runs}
        return sorted(seeds - self.runs.get(arm, {}).keys())

    def difference(self, arm: Arm, baseline: Arm) -> Difference | None:
        """The difference over the seeds that both have; None for an arm itself, or without any."""
        ours, theirs = self.accuracies(arm), self.accuracies(baseline)
        seeds = [seed for seed in ours if seed in theirs]
        if arm == baseline or not seeds:
            return None
        return paired_difference([ours[s] for s in seeds], [theirs[s] for s in seeds])


def make_rows(runs: Iterable[Run], cells: Iterable[Cell] = ()) -> list[Row]:
    """Sorts runs into rows, in the order of the paper's tables.

    Args:
        runs: What has been run.
        cells: What a sweep asks for; a row or an arm that has no runs is there through them.
    """
    rows: dict[str, Row] = {}
    for cell in cells:
        row = rows.setdefault(recipe_of(cell.config), Row(cell.config))
        row.expected.setdefault(Arm.of(cell.config), set()).add(cell.config.seed)
    for run in runs:
        row = rows.setdefault(recipe_of(run.config), Row(run.config))
        row.runs.setdefault(run.arm, {})[run.seed] = run
    known = list(paper.DATASET_TITLES)

    def place(row: Row) -> tuple[int, str]:
        name = row.config.dataset.name
        return (known.index(name) if name in known else len(known), name)

    ordered = sorted(rows.values(), key=place)
    titles: Counter[str] = Counter()
    for row in ordered:
        row.title = _title(row, ordered)
        titles[row.title] += 1
        # Image folders of one name at different places, say; each has its own lines and figures.
        row.title += f" [{titles[row.title]}]" * (titles[row.title] > 1)
    return ordered


def _title(row: Row, rows: Sequence[Row]) -> str:
    name = _dataset_title(row.config)
    others = [other for other in rows if _dataset_title(other.config) == name]
    told_apart = [
        f"{field} {get_field(row.config, field)}"
        for field in FIELDS
        if not field.startswith((*_ARM_OR_FOLDER, *_RUN_ONLY))
        and len({str(_value(other.config, field)) for other in others}) > 1
    ]
    return f"{name} ({', '.join(told_apart)})" if told_apart else name


def _dataset_title(config: ConfigDict) -> str:
    name = paper.DATASET_TITLES.get(config.dataset.name, config.dataset.name)
    if config.dataset.name == "image_folder":
        name = f"Images of {PurePath(config.dataset.raw_dir).name}"
    # Not the test split: such a number must not pass for one of the paper's kind.
    return f"{name}, held-out training images" if config.dataset.holdout else name


def _value(config: ConfigDict, field: str) -> object:
    try:
        return get_field(config, field)
    except KeyError:
        return None


def table_arms(row: Row, column: str, *, sac: bool) -> list[Arm]:
    """The arms of a row that belong to a column of the paper's Table 1, or 2 with SAC.

    More than one, when runs differ in the coefficient of Eq. 2 or in the weights of Eq. 3; such
    runs are not averaged.
    """
    return [arm for arm in row.arms if arm.column == column and bool(arm.sac) is sac]


def avgpool_of(arm: Arm) -> Arm:
    """What an arm is measured against: average pooling with the same SAC, without dropout."""
    return Arm(arm.sac, "avg", 0.0, 0.0)


def without_sac(arm: Arm) -> Arm:
    """The same arm with one classifier alone."""
    return dataclasses.replace(arm, sac=())


class Comparisons:
    """All differences of a report, tested as one family.

    Args:
        rows: Of the report.

    Attributes:
        count: How many differences have a p-value.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        keys: dict[tuple[int, Arm, Arm], float] = {}
        for i, row in enumerate(rows):
            for arm in row.arms:
                for baseline in {avgpool_of(arm), without_sac(arm)}:
                    difference = row.difference(arm, baseline)
                    if difference is not None and difference.p_value is not None:
                        keys[i, arm, baseline] = difference.p_value
        self._rows = list(rows)
        self._adjusted = dict(zip(keys, holm(list(keys.values())), strict=True))
        self.count = len(keys)

    def adjusted(self, row: Row, arm: Arm, baseline: Arm) -> float | None:
        """Holm's p-value of a difference, None where it has none."""
        index = next(i for i, other in enumerate(self._rows) if other is row)
        return self._adjusted.get((index, arm, baseline))
