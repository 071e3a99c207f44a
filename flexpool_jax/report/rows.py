"""Arranges runs into the rows and settings of a report, and compares them.

A row holds the runs that may be compared; each of its settings holds those runs of the row that
differ only in the seed. A setting that a sweep asks for is included even if it has no runs.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from ml_collections import ConfigDict

from flexpool_jax import configuration
from flexpool_jax.configuration import FIELDS, field_names, get_field
from flexpool_jax.report import paper
from flexpool_jax.report.analysis import Estimate, estimate, holm, paired_difference
from flexpool_jax.report.results import ARM_FIELDS, Arm, FinishedRun, recipe_of, short_source
from flexpool_jax.sweeps.grid import Cell


@dataclasses.dataclass
class Setting:
    """The runs of a row that differ in the seed alone.

    Attributes:
        arm: The arm that the runs share.
        runs: The runs by seed.
        missing: The seeds without a run, among the expected ones. Without a sweep, the seeds of
            the row's other settings are expected.
        expected: The seeds that a sweep asks for.
        differences: Mean differences in accuracy to the baselines of `Arm.baselines`, paired by
            seed, by the baseline's name.
        adjusted: The p-values of these differences after Holm's correction for all differences of
            the report, by the baseline's name.
    """

    arm: Arm
    runs: dict[int, FinishedRun] = dataclasses.field(default_factory=dict)
    missing: list[int] = dataclasses.field(default_factory=list)
    expected: set[int] = dataclasses.field(default_factory=set)
    differences: dict[str, Estimate] = dataclasses.field(default_factory=dict)
    adjusted: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def accuracies(self) -> dict[int, float]:
        """Final accuracy in per cent by seed."""
        return {seed: run.accuracy for seed, run in self.runs.items()}

    @property
    def estimate(self) -> Estimate | None:
        """The mean accuracy in per cent; None without runs."""
        return estimate(list(self.accuracies.values())) if self.runs else None

    @property
    def metrics(self) -> dict[str, Estimate]:
        """The metrics beside accuracy that all runs have, by name, each in its own unit."""
        found = [run.metrics for run in self.runs.values()]
        first = found[0] if found else {}
        common = [name for name in first if all(name in metrics for metrics in found)]
        return {name: estimate([metrics[name] for metrics in found]) for name in common}

    @property
    def classes(self) -> dict[str, Estimate | None]:
        """The mean accuracy in per cent by class, None for a class without images.

        Empty if a run does not have it, or if two runs have different classes.
        """
        found = [run.accuracy_per_class for run in self.runs.values()]
        if len({tuple(of_run) for of_run in found}) != 1:
            return {}
        values = {
            name: [value for of_run in found if (value := of_run[name]) is not None]
            for name in found[0]
        }
        return {name: estimate(known) if known else None for name, known in values.items()}

    def curves(self, key: tuple[str, str]) -> list[dict[int, float]]:
        """Each run's curve for a key (split, metric); {} for a run that does not have it."""
        return [run.curves.get(key, {}) for run in self.runs.values()]


@dataclasses.dataclass
class Row:
    """Runs that may be compared: they share everything but the arm and the seed.

    Attributes:
        config: The config of one of the runs.
        source: The hash of the source code that trained the runs, see `FinishedRun.source`.
        separate_devices: See `FinishedRun.separate_devices`.
        changes: The fields that changed between two starts of the runs, in words; empty if none.
        title: The data set, and the fields that differ from other rows of the same data set.
        settings: The settings by arm. Those without SAC come first, then those with the same SAC
            weights together; the paper's columns come first in each group.
    """

    config: ConfigDict
    source: str = ""
    separate_devices: str = ""
    changes: str = ""
    title: str = ""
    settings: dict[Arm, Setting] = dataclasses.field(default_factory=dict)

    @property
    def run_settings(self) -> list[Setting]:
        """The settings that have runs."""
        return [setting for setting in self.settings.values() if setting.runs]

    @property
    def split(self) -> str:
        """The split of the accuracies: "test", or "validation" for held-out training images."""
        return "validation" if self.config.dataset.holdout else "test"

    def published(self, column: str, *, sac: bool) -> float | None:
        """The paper's test accuracy in per cent; None if it has none.

        The paper's tables are of one model and of test images, so other rows have none.
        """
        if self.split != "test" or self.config.model != paper.MODEL:
            return None
        return paper.accuracy(self.config.dataset.name, column, sac=sac)

    def column(self, column: str, *, sac: bool) -> list[Setting]:
        """The settings that belong to a column of the paper's Table 1, or of its Table 2 with SAC.

        There are several if runs differ in the dropout rate, in the coefficient of Eq. 2 of the
        paper or in the weights of its Eq. 3.
        """
        return [
            s for s in self.settings.values() if s.arm.column == column and bool(s.arm.sac) is sac
        ]


def make_rows(runs: Iterable[FinishedRun], cells: Iterable[Cell] = ()) -> list[Row]:
    """Sorts runs into rows, in the order of the paper's tables, and compares their settings.

    Args:
        runs: Finished runs.
        cells: The cells of a sweep. Cells without runs get rows and settings, too.
    """
    groups: dict[tuple[str, str, str, str], Row] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        row = groups.setdefault(run.group, Row(run.config, *run.group[1:]))
        row.settings.setdefault(run.arm, Setting(run.arm)).runs[run.seed] = run
    for cell in cells:
        recipe = recipe_of(cell.config)
        # The cell belongs to the row of this recipe that has the most runs.
        same = [row for group, row in groups.items() if group[0] == recipe and not row.changes]
        row = max(same, key=_number_of_runs, default=None) or Row(cell.config)
        groups.setdefault((recipe, row.source, row.separate_devices, ""), row)
        arm = Arm.of(cell.config)
        row.settings.setdefault(arm, Setting(arm)).expected.add(cell.config.seed)
    known = list(paper.DATASET_TITLES)

    def place(row: Row) -> tuple[int, str]:
        name = row.config.dataset.name
        return (known.index(name) if name in known else len(known), name)

    rows = sorted(groups.values(), key=place)
    titles: Counter[str] = Counter()
    for row in rows:
        row.title = _title(row, rows)
        titles[row.title] += 1
        # Two titles can be equal, for example for a keyword that is 1 and one that is "1".
        row.title += f" [{titles[row.title]}]" * (titles[row.title] > 1)
    for row in rows:
        _compare_settings(row)
    _adjust_p_values(rows)
    return rows


def _number_of_runs(row: Row) -> int:
    return sum(len(setting.runs) for setting in row.settings.values())


def _compare_settings(row: Row) -> None:
    order = list(paper.COLUMNS)

    def place(arm: Arm) -> tuple[object, ...]:
        column = order.index(arm.column) if arm.column else len(order)
        return (len(arm.sac) > 0, arm.sac, column, arm)

    row.settings = {arm: row.settings[arm] for arm in sorted(row.settings, key=place)}
    all_seeds = {seed for setting in row.settings.values() for seed in setting.runs}
    for arm, setting in row.settings.items():
        setting.missing = sorted((setting.expected or all_seeds) - setting.runs.keys())
        for name, baseline in arm.baselines.items():
            other = row.settings.get(baseline)
            if other is not None and setting.runs.keys() & other.runs.keys():
                setting.differences[name] = paired_difference(setting.accuracies, other.accuracies)


def _adjust_p_values(rows: Iterable[Row]) -> None:
    tested = [
        (setting, name, found.p_value)
        for row in rows
        for setting in row.settings.values()
        for name, found in setting.differences.items()
        if found.p_value is not None
    ]
    adjusted = holm([p_value for *_, p_value in tested])
    for (setting, name, _), p_value in zip(tested, adjusted, strict=True):
        setting.adjusted[name] = p_value


def _title(row: Row, rows: Sequence[Row]) -> str:
    name = _dataset_title(row.config)
    others = [other for other in rows if _dataset_title(other.config) == name]
    own, *values = map(_values, (row.config, *(other.config for other in others)))
    # First the known fields, in their usual order, then optimizer keywords, which some may lack.
    names = dict.fromkeys((*FIELDS, *(name for one in values for name in one)))
    told_apart = [
        f"{field} {'none' if value in ('', (), None) else value}"
        for field in names
        if configuration.has_effect(field, row.config)
        and field not in (*ARM_FIELDS, "seed")
        and len({str(one.get(field)) for one in values}) > 1
        for value in [own.get(field)]
    ]
    if len({other.source for other in others}) > 1:
        told_apart.append(f"source code {short_source(row.source) or 'unknown'}")
    if row.separate_devices and len({other.separate_devices for other in others}) > 1:
        told_apart.append(f"devices {row.separate_devices}")
    if row.changes:
        told_apart.append(f"changed midway, {row.changes}")
    return f"{name} ({', '.join(told_apart)})" if told_apart else name


def _values(config: ConfigDict) -> dict[str, Any]:
    return {name: get_field(config, name) for name in field_names(config)}


def _dataset_title(config: ConfigDict) -> str:
    name = paper.DATASET_TITLES.get(config.dataset.name, config.dataset.name)
    if configuration.has_effect("dataset.raw_dir", config):
        name = f"Images of {PurePath(config.dataset.raw_dir).name}"
    # The paper's numbers, which are of the test split, cannot be compared with such a row.
    return f"{name}, held-out training images" if config.dataset.holdout else name
