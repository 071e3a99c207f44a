"""Reads the results of finished runs, and decides which of them may be compared.

A run is identified by the content of its result.json and not by its folder. The identity has three
parts: the arm (the fields that the tables compare, such as the pool and SAC), the seed, and the
group (all other fields, the source code, the number of devices if BatchNorm depends on it, and the
changes between two starts of the run).
Accuracies of different groups are never averaged.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flexpool_jax import configuration, files, layout
from flexpool_jax.configuration.fields import check_field, get_field
from flexpool_jax.errors import UserError, one_line
from flexpool_jax.pages.curves import finite, read_metrics
from flexpool_jax.report import paper

# The fields of `Arm`, each with the value that replaces it in `recipe_of`.
ARM_FIELDS: dict[str, Any] = {
    "pool": "avg",
    "pool_reg": 0.0,
    "dropout_rate": 0.0,
    "sac.enabled": False,
    "sac.weights": (),
    "pool_learning_rate_scale": 1.0,
}
# Titles from the paper. Other pools are shown by their names in configs.
_POOL_TITLES = {"avg": "AvgPool", "flexpool": "FlexPool"}
# A folder with one of these files is that of a run. Folders in it do not count as runs: an export
# also has a config.json, and the first phase of a run with super classing has a result.json, with
# the accuracy of the superclasses.
_OF_A_RUN = {layout.CONFIG_FILE, layout.RESULT_FILE, layout.LOCK_FILE}


@dataclasses.dataclass(frozen=True, order=True)
class Arm:
    """The fields in which the runs of a table differ.

    Attributes:
        sac: The weights of Eq. 3 of the paper, first stage first; empty without SAC.
        pool: The pool's name in the config.
        pool_reg: The coefficient of Eq. 2 of the paper.
        dropout_rate: The dropout rate, in [0, 1).
        pool_learning_rate_scale: The factor on the pool's learning rate.
    """

    sac: tuple[float, ...]
    pool: str
    pool_reg: float
    dropout_rate: float
    pool_learning_rate_scale: float = 1.0

    @classmethod
    def of(cls, config: ConfigDict) -> Arm:
        """The arm of a training config."""
        return cls(
            tuple(map(float, config.sac.weights)) if config.sac.enabled else (),
            config.pool,
            float(config.pool_reg),
            float(config.dropout_rate),
            float(config.pool_learning_rate_scale),
        )

    @property
    def title(self) -> str:
        """The arm's name in the tables, without SAC, e.g. "FlexPool + Reg"."""
        pool = _POOL_TITLES.get(self.pool) or self.pool.replace("_", " ")
        if self.pool_learning_rate_scale != 1:
            pool += f" (pool rate ×{self.pool_learning_rate_scale:g})"
        parts = [pool]
        parts += ["Reg"] * (self.pool_reg > 0) + ["Dropout"] * (self.dropout_rate > 0)
        return " + ".join(parts)

    @property
    def label(self) -> str:
        """The title with the values that distinguish arms of the same title.

        These are the coefficient of Eq. 2 and the weights of Eq. 3 of the paper, and a dropout rate
        other than the paper's.
        """
        text = self.title
        if self.pool_reg:
            text = text.replace("+ Reg", f"+ Reg {self.pool_reg:g}")
        if self.dropout_rate != paper.DROPOUT_RATE:
            text = text.replace("+ Dropout", f"+ Dropout {self.dropout_rate:g}")
        return text + (f", SAC {self.sac_weights}" if self.sac else "")

    @property
    def sac_weights(self) -> str:
        """The weights of SAC as in a sweep's `config.sac`, e.g. "0.1/0.2/0.7"; "" without SAC."""
        return "/".join(f"{weight:g}" for weight in self.sac)

    @property
    def column(self) -> str | None:
        """The column of the paper's tables to which the arm belongs, or None."""
        return self.title if self.pool in _POOL_TITLES and self.title in paper.COLUMNS else None

    @property
    def baselines(self) -> dict[str, Arm]:
        """The arms with which this arm is compared, by name.

        - "avgpool": average pooling with the same SAC, without dropout, as in the paper;
        - "control": for an arm with dropout, average pooling with the same SAC and dropout; for an
          arm with Eq. 2 of the paper and without dropout, the same arm without Eq. 2;
        - "one_classifier": the same arm without SAC.

        Baselines that are equal to the arm itself are left out.
        """
        avgpool = Arm(self.sac, "avg", 0.0, 0.0)
        control = dataclasses.replace(avgpool, dropout_rate=self.dropout_rate)
        if self.pool_reg and not self.dropout_rate:
            control = dataclasses.replace(self, pool_reg=0.0)
        found = {
            "avgpool": avgpool,
            "control": control,
            "one_classifier": dataclasses.replace(self, sac=()),
        }
        if control == avgpool:
            del found["control"]
        return {name: arm for name, arm in found.items() if arm != self}


def recipe_of(config: ConfigDict) -> str:
    """Returns a digest of a config without its arm and seed; equal for runs that may be compared.

    Example:
        >>> from configs import digits
        >>> one, other = digits.get_config("avg"), digits.get_config("flexpool,reg,sac")
        >>> recipe_of(one) == recipe_of(other)
        True
        >>> other.num_epochs = 100
        >>> recipe_of(one) == recipe_of(other)
        False
    """
    rest = ConfigDict(config.to_dict())
    rest.update_from_flattened_dict({**ARM_FIELDS, "seed": 0})
    return configuration.digest(rest)


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: The folder with the run's files.
        config: The run's training config.
        accuracy: Accuracy on the evaluation split after the last epoch, in per cent.
        best_accuracy: Highest accuracy of all epochs on the same split, in per cent; the split
            itself selects that epoch.
        result: The content of result.json.
    """

    folder: Path
    config: ConfigDict
    accuracy: float
    best_accuracy: float
    result: Mapping[str, Any]

    @property
    def arm(self) -> Arm:
        """The fields that the tables compare."""
        return Arm.of(self.config)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.seed

    @property
    def source(self) -> str:
        """Hash of the source code that trained the run; empty if none is recorded.

        If the code changed between two starts of the run, these are all hashes with commas between.
        """
        source = self.result.get("source_hash")
        if isinstance(source, list):
            return ", ".join(map(str, source))
        return source if isinstance(source, str) else ""

    @property
    def changes(self) -> str:
        """The fields that changed between two starts of the run, in words; empty if none did."""
        found = self.result.get("config_changes") or ()
        if not isinstance(found, list | tuple) or not all(isinstance(c, dict) for c in found):
            return "fields that its result does not name"
        return ", ".join(
            f"{change.get('field')} from {change.get('from')} to {change.get('to')} "
            f"at step {change.get('step')}"
            for change in found
        )

    @property
    def separate_devices(self) -> str:
        """The number of devices if each had batch statistics of its own, else an empty text."""
        return "" if self.config.sync_batch_norm else str(self.result.get("devices", "unknown"))

    @property
    def group(self) -> tuple[str, str, str, str]:
        """The recipe, the source code, `separate_devices` and the changes of fields.

        Runs of one group may be averaged. A run whose fields changed between two starts shares its
        group only with runs of the same seed and the same changes.
        """
        changes = self.changes and f"seed {self.seed}: {self.changes}"
        return recipe_of(self.config), self.source, self.separate_devices, changes

    @property
    def data_digest(self) -> str:
        """Digest of the run's training and test images; empty if none is recorded."""
        found = self.result.get("data_digest")
        return found if isinstance(found, str) else ""

    @property
    def test_is_drawn(self) -> bool:
        """Whether the seed drew the test images; False also if result.json does not say it."""
        return self.result.get("test_split") == "drawn"

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics beside accuracy, by name; empty if result.json has none.

        Metrics whose names end in "accuracy" are in per cent.
        """
        found = self.result.get("final_test_metrics")
        numbers = {name: finite(v) for name, v in found.items()} if isinstance(found, dict) else {}
        return {
            name: _in_report_unit(name, number)
            for name, number in numbers.items()
            if number is not None
        }

    @property
    def accuracy_per_class(self) -> dict[str, float | None]:
        """The accuracy in per cent by class, None for a class without images.

        Empty if result.json does not have it, or if two classes have the same name.
        """
        names, values = (
            self.result.get(name) for name in ("class_names", "final_test_accuracy_per_class")
        )
        if not isinstance(names, list) or not isinstance(values, list):
            return {}
        numbers = [finite(value) for value in values]
        shares = [None if number is None else 100 * number for number in numbers]
        found = dict(zip(map(str, names), shares, strict=False))
        return found if len(found) == len(names) == len(values) else {}

    @functools.cached_property
    def curves(self) -> dict[tuple[str, str], dict[int, float]]:
        """The curves in the run's metrics.jsonl: values by epoch, for each split and metric.

        Accuracies are in per cent. An epoch that is not complete is rounded up. Each line is a mean
        over the steps since the previous line; if an epoch has several lines, its value is their
        mean, weighted by these numbers of steps.
        """
        points: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
        last_steps: dict[tuple[str, str], float] = {}
        for split, step, epoch, values in read_metrics(self.folder):
            for name, value in values.items():
                key = (split, name)
                steps = max(step - last_steps.get(key, 0.0), 1)
                of_epoch = points.setdefault(key, {}).setdefault(math.ceil(epoch - 1e-9), [])
                of_epoch.append((value, steps))
                last_steps[key] = step
        return {
            (split, name): {
                at: _in_report_unit(name, statistics.fmean(*zip(*found, strict=True)))
                for at, found in by_epoch.items()
            }
            for (split, name), by_epoch in points.items()
        }

    @property
    def seconds(self) -> float:
        """The duration of the training in seconds; 0 if result.json does not have it."""
        return finite(self.result.get("seconds")) or 0.0

    @property
    def device(self) -> str:
        """The number and kind of the run's devices, in words."""
        number, kind, platform = (
            self.result.get(name, "unknown") for name in ("devices", "device", "platform")
        )
        return f"{number} × {kind}" + (f" ({platform})" if platform != kind else "")

    @property
    def versions(self) -> str:
        """The versions of the main packages, in words."""
        versions = self.result.get("versions")
        if not isinstance(versions, dict):
            return "unknown versions"
        names = ("flexpool_jax", "jax", "flax", "python")
        return ", ".join(f"{name} {versions.get(name, 'unknown')}" for name in names)


def short_source(source: str) -> str:
    """The first eight digits of each hash in a `FinishedRun.source`."""
    return ", ".join(part[:8] for part in source.split(", "))


@dataclasses.dataclass(frozen=True)
class Found:
    """The runs under a folder.

    Attributes:
        runs: The finished runs whose results could be read, by path.
        skipped: A line on each result that could not be used.
        unfinished: Folders of runs that have begun and have no result.
    """

    runs: list[FinishedRun]
    skipped: list[str]
    unfinished: list[Path]


def find_runs(folder: str | os.PathLike[str]) -> Found:
    """Reads every result.json under a folder; skips those that cannot be compared with the others.

    A result is skipped if it is damaged, if its run is a repetition, or if its run had other images
    than most runs of the same group, for example because images were added to a folder. The images
    of two seeds are compared only if both runs used an official test split, since a seed can also
    draw the test images.

    Args:
        folder: The folder, which is searched recursively. Links to folders are not followed; these
            and folders that cannot be read are skipped.
    """
    found = Found([], [], [])
    runs: list[FinishedRun] = []

    def skip(path: Path | str, reason: str | None) -> None:
        # A report is UTF-8, and names of folders may hold other bytes.
        name = os.fsencode(path).decode(errors="backslashreplace")
        found.skipped.append(f"{name}: {reason}")

    def on_error(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # A missing folder has no runs.
            skip(error.filename, error.strerror)

    for place, folders, names in os.walk(folder, onerror=on_error):
        passed_over = layout.FOLDERS if _OF_A_RUN.intersection(names) else ()
        folders[:] = sorted(n for n in folders if n not in passed_over and not n.startswith("."))
        path = Path(place)
        try:
            place.encode()
        except UnicodeEncodeError:
            skip(path, "its name is not UTF-8")
            folders.clear()
            continue
        for name in folders:
            if (path / name).is_symlink():
                skip(path / name, "a link to a folder, which is not followed")
        if layout.RESULT_FILE not in names:
            if layout.CONFIG_FILE in names:
                found.unfinished.append(path)
            continue
        try:
            runs.append(read_run(path))
        except UserError as error:
            found.skipped.append(str(error))
    usual = _first_on_usual_data(runs)
    seen: dict[object, FinishedRun] = {}
    for run in runs:
        known = usual.get(_data_key(run), run)
        if run.data_digest and run.data_digest != known.data_digest:
            skip(run.folder, f"trained on other data than {known.folder}")
            continue
        first = seen.setdefault((run.group, run.arm, run.seed), run)
        if first is run:
            found.runs.append(run)
        else:
            skip(run.folder, f"the same run as {first.folder}, with the same seed")
    return found


def read_run(folder: Path) -> FinishedRun:
    """Reads a folder's result.json.

    Raises:
        UserError: The file is missing or damaged; the message says what is wrong with it.
    """
    path = folder / layout.RESULT_FILE
    result = files.read_json(path)
    if result is None:
        raise UserError(f"{path}: there is no such file")
    try:
        if not isinstance(result.get("config"), dict):
            raise UserError("it holds no config")
        if not files.digest_matches(result):
            raise UserError("its numbers are not those that were written")
        config = configuration.config_from_json(result["config"])
        for name in configuration.FIELDS:
            value = get_field(config, name)
            # Models and pools that a user's own program registered are not known here.
            if name not in ("model", "pool"):
                check_field(name, value)
            elif not isinstance(value, str) or not re.fullmatch(r"[\w.-]+", value):
                raise UserError(f"config.{name} is {value!r}; allowed: a name")
        # Titles, and the paper's numbers beside them, are those of the data that were used. The
        # characters that a config's names can have stay: `recipe_of` depends on the name.
        if isinstance(result.get("dataset"), str):
            config.dataset.name = re.sub(r"[^\w .+/:-]", "_", result["dataset"])
        final, best = (
            _accuracy(result.get(f"{which}_test_accuracy")) for which in ("final", "best")
        )
    except (KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged: its config lacks a field: {error}") from error
    except (ValueError, RecursionError, TypeError) as error:
        raise UserError(f"{path} is damaged: {one_line(error, limit=None)}") from error
    return FinishedRun(folder, config, final, best, result)


def _first_on_usual_data(runs: Sequence[FinishedRun]) -> dict[object, FinishedRun]:
    """For each `_data_key`, the first run on the data that most runs have.

    Repetitions of a run count once. Of two data sets with as many runs, the first counts.
    """
    by_digest: dict[object, dict[str, dict[object, FinishedRun]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for run in runs:
        if run.data_digest:
            by_digest[_data_key(run)][run.data_digest].setdefault((run.arm, run.seed), run)
    return {
        key: next(iter(max(found.values(), key=len).values())) for key, found in by_digest.items()
    }


def _data_key(run: FinishedRun) -> object:
    """Runs with equal keys should have the same images."""
    return run.group, None if run.result.get("test_split") == "official" else run.seed


def _in_report_unit(metric: str, value: float) -> float:
    """Converts a metric whose name ends in "accuracy" to per cent."""
    return 100 * value if metric.endswith("accuracy") else value


def _accuracy(value: object) -> float:
    """A result's accuracy in per cent."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"it has an accuracy of {value!r}")
    return 100 * float(value)
