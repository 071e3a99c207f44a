"""Reads the runs of docs/evidence.md, and decides which of them count."""

from __future__ import annotations

import dataclasses
import math
import statistics
import zipfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from evidence.model import BlockModel
from flexpool_jax import configuration, files, layout
from flexpool_jax.configuration.fields import field_names, get_field
from flexpool_jax.errors import UserError, closest_name
from flexpool_jax.insight.probe_report import read_probe
from flexpool_jax.report.results import FinishedRun, find_runs, short_source
from flexpool_jax.sweeps import grid

Key = tuple[str, int]  # column and seed
Probes = dict[str, dict[int, dict[str, Any]]]  # content of probe.json, by column and seed

CONFIGS_DIR = "configs"
POOLS = ("avg", "flexpool")
# E1 has six seeds. If their residual deviation is above EXTENSION points, it needs seeds 6 to 9.
FIRST_SEEDS = 6
EXTENSION = 0.248


@dataclasses.dataclass
class Design:
    """One sweep of the protocol and its runs.

    Attributes:
        expected: The cells of the sweep by column and seed.
        failed: The cells whose runs diverged.
        runs: The finished runs that count, in the order of the columns, then of the seeds.
    """

    expected: dict[Key, grid.Cell]
    failed: list[Key]
    runs: dict[Key, FinishedRun]

    @property
    def missing(self) -> list[Key]:
        """Cells that have no run that counts and have not failed, in the order of their seeds."""
        missing = self.expected.keys() - self.runs.keys() - set(self.failed)
        return sorted(missing, key=lambda key: key[::-1])

    @property
    def columns(self) -> list[str]:
        """The columns in the order of the sweep."""
        return list(dict.fromkeys(column for column, _ in self.expected))

    def of_column(self, column: str) -> dict[int, FinishedRun]:
        """Returns the runs of a column, with their seeds as keys."""
        return {seed: run for (c, seed), run in self.runs.items() if c == column}

    def accuracies(self, column: str) -> dict[int, float]:
        """The final accuracies of a column in per cent, by seed."""
        return {seed: run.accuracy for seed, run in self.of_column(column).items()}

    def differences(self, column: str) -> dict[int, float]:
        """The differences of a column to `avg` in points, by the seeds that both have."""
        values, baseline = self.accuracies(column), self.accuracies("avg")
        return {seed: values[seed] - baseline[seed] for seed in values if seed in baseline}

    def images(self, column: str) -> int:
        """The number of evaluation images of a column, summed over its seeds."""
        return sum(int(run.result["test_images"]) for run in self.of_column(column).values())


@dataclasses.dataclass
class Evidence:
    """All runs of the protocol that were found.

    Attributes:
        designs: The designs by name.
        rates: The peak rates that E0 selects, by pool; empty while E0 is not complete.
        source: The `source_hash` of most runs; runs with another one are left out.
        left_out: A line on each result that is not used.
    """

    designs: dict[str, Design]
    rates: dict[str, float]
    source: str
    left_out: list[str]

    def missing(self, *designs: str) -> bool:
        """Whether one of the designs lacks a run of `avg` or `flexpool` with a seed up to 2."""
        return any(
            column in POOLS and seed < 3
            for name in designs
            for column, seed in self.designs[name].missing
        )


def read_evidence(folder: Path, failed: Sequence[str] = ()) -> Evidence:
    """Reads all runs under a folder and keeps those that the protocol asks for.

    A run counts if its config is that of a cell of its design, its `source_hash` is that of most
    runs, its images are those of most runs of its data set, and no field changed between two
    starts. Of two runs of a cell the first counts. Seeds 6 to 9 of E1 are cells of the protocol
    only if its stopping rule asks for them.

    Args:
        folder: The folder that holds one folder for each design. Runs of designs that use E0's
            rates count only if E0 is complete.
        failed: Cells whose runs diverged, such as "e1/fashion_mnist/avg/seed-3".

    Raises:
        UserError: An entry of `failed` is not a cell of the protocol, or has a result.
    """
    from configs import evidence as sweeps

    found = {name: find_runs(folder / name) for name in sweeps.DESIGNS}
    source, data = _usual([run for one in found.values() for run in one.runs])
    left_out = [line for one in found.values() for line in one.skipped]
    known: list[str] = []

    def read(name: str, argument: str) -> Design:
        config = sweeps.get_config(argument)
        if name == "e1":
            config.seeds = tuple(range(10))
        cells = grid.expand(config, CONFIGS_DIR, reads_data=False)
        expected = {(_column(cell, name), cell.config.seed): cell for cell in cells}
        names = {f"{name}/{cell.name}": key for key, cell in expected.items()}
        known.extend(names)
        runs: dict[Key, FinishedRun] = {}
        for run in found[name].runs:
            key, reason = _place(run, expected, source)
            if not reason and run.data_digest != data[_data_key(run)]:
                reason = "it has other images than most runs of its data set"
            elif not reason and key in runs:
                reason = f"{runs[key].folder} is a run of the same cell"
            if reason:
                left_out.append(f"{run.folder}: {reason}")
            else:
                runs[key] = run
        design = Design(expected, [names[cell] for cell in failed if cell in names], {})
        if name == "e1" and not _is_extended(design, runs):
            design.expected = {key: cell for key, cell in expected.items() if key[1] < FIRST_SEEDS}
            design.failed = [key for key in design.failed if key in design.expected]
            for key in runs.keys() - design.expected.keys():
                left_out.append(f"{runs.pop(key).folder}: the stopping rule does not ask for it")
        order = design.columns
        ordered = sorted(runs.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
        design.runs.update(ordered)
        for key in design.runs.keys() & set(design.failed):
            cell = f"{name}/{design.expected[key].name}"
            raise UserError(f"--failed={cell} has a result; leave it out of --failed")
        return design

    designs = {name: read(name, name) for name in sweeps.WITHOUT_RATES}
    rates = selected_rates(designs["e0"])
    for name in sweeps.DESIGNS:
        if name in designs:
            continue
        given = rates or dict.fromkeys(POOLS, 0.01)
        argument = ",".join([name, *(f"{pool}={rate:g}" for pool, rate in given.items())])
        designs[name] = read(name, argument)
        if not rates and designs[name].runs:
            left_out.append(f"{folder / name}: E0 is not complete, so no rate is selected")
            designs[name].runs.clear()
    for cell in failed:
        if cell not in known:
            match = closest_name(cell, known)
            raise UserError(f"--failed={cell} is not a cell of the protocol; did you mean {match}?")
    left_out = [line.replace(f"{folder}/", "") for line in left_out]
    return Evidence({name: designs[name] for name in sweeps.DESIGNS}, rates, source, left_out)


def _usual(runs: Sequence[FinishedRun]) -> tuple[str, dict[Key, str]]:
    """The source_hash of most runs, and the digest of most runs' images by `_data_key`."""
    # A run whose code changed midway has several hashes, and never counts.
    sources = Counter(run.source for run in runs if "," not in run.source)
    digests: dict[Key, Counter[str]] = defaultdict(Counter)
    for run in runs:
        digests[_data_key(run)][run.data_digest] += 1
    data = {key: counts.most_common(1)[0][0] for key, counts in digests.items()}
    return sources.most_common(1)[0][0] if sources else "", data


def _is_extended(e1: Design, runs: Mapping[Key, FinishedRun]) -> bool:
    """Whether the protocol's stopping rule extends E1 to seeds 6 to 9."""
    first = [key for key in e1.expected if key[1] < FIRST_SEEDS]
    deviation = first_deviation({key: run.accuracy for key, run in runs.items()})
    is_complete = all(key in runs or key in e1.failed for key in first)
    return is_complete and deviation is not None and deviation > EXTENSION


def first_deviation(accuracies: Mapping[Key, float]) -> float | None:
    """The residual deviation of seeds 0 to 5, in points; None with too few runs."""
    first = {key: accuracy for key, accuracy in accuracies.items() if key[1] < FIRST_SEEDS}
    try:
        return BlockModel.of_columns(first).sd
    except ValueError:
        return None


def _column(cell: grid.Cell, design: str) -> str:
    """The name of a cell's column; the rate is left out of the name, except in E0."""
    words = cell.name.split("/")[1].split("+")
    if design != "e0":
        words = [word for word in words if not word.startswith("learning_rate=")]
    return "+".join(words)


def _place(run: FinishedRun, expected: Mapping[Key, grid.Cell], source: str) -> tuple[Key, str]:
    """Returns the cell closest to a run, and why the run does not count ("" if it does)."""
    differences = {key: _differences(cell.config, run.config) for key, cell in expected.items()}
    key = min(differences, key=lambda key: len(differences[key]))
    if run.source != source:
        return key, f"its source_hash is {short_source(run.source) or 'missing'}, not {source[:8]}"
    if run.changes:
        return key, f"it changed midway: {run.changes}"
    return key, "; ".join(differences[key])


def _data_key(run: FinishedRun) -> Key:
    """What says which images a run has: its data set and, if the seed drew them, the seed."""
    return run.config.dataset.name, run.seed if run.config.dataset.holdout else -1


def _differences(asked: ConfigDict, config: ConfigDict) -> list[str]:
    # Another version may have other fields; only those that both configs have are compared.
    shared = set(field_names(config)) & set(field_names(asked))
    given, wanted = (dict(one.optimizer.get("kwargs", {})) for one in (config, asked))
    keywords = [f"optimizer.kwargs are {given}, the protocol has {wanted}"] * (given != wanted)
    return keywords + [
        f"{name} is {get_field(config, name)}, the protocol has {get_field(asked, name)}"
        for name in sorted(shared)
        if get_field(config, name) != get_field(asked, name)
        and configuration.has_effect(name, config)
    ]


def selected_rates(e0: Design) -> dict[str, float]:
    """The peak rates by pool that `select_rate` takes; empty while E0 is not complete.

    The accuracy at a rate is the mean over its seeds. A rate at which a run diverged is not
    selected. If all rates of a pool diverged, no rate is selected for any pool.
    """
    if e0.missing:
        return {}
    rates = {}
    diverged = {column for column, _ in e0.failed}
    for pool in POOLS:
        columns = [c for c in e0.columns if c.split("+")[0] == pool and c not in diverged]
        if not columns:
            return {}
        means = {
            float(column.rpartition("=")[2]): statistics.fmean(e0.accuracies(column).values()) / 100
            for column in columns
        }
        rates[pool] = select_rate(means, min(map(e0.images, columns)))
    return rates


def select_rate(accuracies: Mapping[float, float], images: int) -> float:
    """Selects a peak learning rate by the rule of docs/evidence.md.

    Rates whose accuracy is at most one standard error below the best accuracy p count as tied; the
    standard error is ``√(p (1 − p) / images)``. The rate 0.01 is selected if it is among the tied
    rates, otherwise the smallest of them.

    Args:
        accuracies: Mean validation accuracy in [0, 1] by rate.
        images: Number of held-out images behind each mean, summed over the seeds.

    Example:
        >>> select_rate({0.003: 0.9087, 0.01: 0.9133, 0.03: 0.9098}, 12_000)
        0.01
        >>> select_rate({0.003: 0.91, 0.01: 0.90, 0.03: 0.912}, 12_000)
        0.003
    """
    best = max(accuracies.values())
    error = math.sqrt(best * (1 - best) / images)
    tied = [rate for rate, accuracy in accuracies.items() if accuracy >= best - error]
    return 0.01 if 0.01 in tied else min(tied)


def read_correct(runs: Mapping[Key, FinishedRun]) -> dict[Key, np.ndarray]:
    """Reads from predictions.npz which test images each run classified correctly.

    Runs without this file are left out.

    Raises:
        UserError: A file is damaged, its accuracy differs from that in result.json, or two runs
            have different test labels.
    """
    found: dict[Key, np.ndarray] = {}
    labels: np.ndarray | None = None
    for key, run in runs.items():
        path = run.folder / layout.PREDICTIONS_FILE
        if not path.exists():
            continue
        arrays = _load(path)
        if not {"labels", "predictions"} <= arrays.keys():
            raise UserError(f"{path} is damaged: it lacks labels or predictions")
        own, predictions = arrays["labels"], arrays["predictions"]
        labels = own if labels is None else labels
        if not np.array_equal(own, labels):
            raise UserError(f"{path}: its labels are not those of the other runs")
        found[key] = own == predictions
        if abs(100 * found[key].mean() - run.accuracy) > 1e-6:
            raise UserError(f"{path}: its accuracy is not that of result.json")
    return found


def read_probes(design: Design) -> Probes:
    """Reads each run's probe.json, by column of the sweep and seed.

    A probe.json is left out if it is of another config or step than the run's result.json, for
    example of the step with the best accuracy.
    """
    found: Probes = {}
    for (column, seed), run in design.runs.items():
        probe = read_probe(run.folder)
        is_same = probe.get("config_digest") == run.result.get("config_digest")
        if probe and is_same and files.measures_same_model(probe, run.result):
            found.setdefault(column, {})[seed] = probe
    return found


def read_weights(design: Design) -> dict[str, list[np.ndarray]]:
    """Reads each run's FlexPool weights [H, W, C], by column; the runs must be without SAC."""
    found: dict[str, list[np.ndarray]] = {}
    for (column, _), run in design.runs.items():
        path = run.folder / layout.POOL_WEIGHTS_FILE
        if not path.exists():
            continue
        for array in _load(path).values():
            found.setdefault(column, []).append(np.asarray(array, np.float64))
    return found


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}") from error
