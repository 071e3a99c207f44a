"""Reads what finished runs left in their folders, and tells which of them may be compared.

Runs are known by what their result.json says, not by where it lies: by their arm (what the tables
compare: pool, Eq. 2, dropout, SAC), their seed and their recipe, which is all the rest. Numbers of
different recipes are never averaged.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flexpool_jax import configuration
from flexpool_jax.configuration.fields import check_field, get_field
from flexpool_jax.errors import UserError
from flexpool_jax.experiments import paper

_ARM_FIELDS: dict[str, Any] = {
    "pool": "avg",
    "pool_reg": 0.0,
    "dropout_rate": 0.0,
    "sac.enabled": False,
    "sac.weights": (),
    "pool_learning_rate_scale": 1.0,
}
_POOL_TITLES = {
    "avg": "AvgPool",
    "max": "MaxPool",
    "avgmax": "(Avg + Max) / 2",
    "gem": "GeM",
    "lse": "LSE",
    "softpool": "SoftPool",
    "attention": "Attention",
    "flexpool": "FlexPool",
    "flexpool_softmax": "Soft FlexPool",
    "channel_scale": "Channel scale",
    "flexpool_shared": "FlexPool, one map",
    "gdconv": "GDConv",
    "flatten": "Flatten",
}
# Folders that hold no runs' folders.
_PASSED_OVER = ("checkpoints", "tensorboard", "report")


@dataclasses.dataclass(frozen=True, order=True)
class Arm:
    """What the runs of a table differ in.

    Attributes:
        sac: The weights of Eq. 3, first stage first; empty without auxiliary classifiers.
        pool: As in the config.
        pool_reg: The coefficient of Eq. 2.
        dropout_rate: In [0, 1).
        pool_learning_rate_scale: Of the pool's weights; 1 if they learn as all others do.
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
        """Its name as in the tables, without SAC, e.g. "FlexPool + Reg"."""
        # A pool that a program of one's own has registered goes by its name.
        pool = _POOL_TITLES.get(self.pool) or self.pool.replace("_", " ")
        if self.pool_learning_rate_scale != 1:
            pool += f" (pool rate ×{self.pool_learning_rate_scale:g})"
        parts = [pool]
        parts += ["Reg"] * (self.pool_reg > 0) + ["Dropout"] * (self.dropout_rate > 0)
        return " + ".join(parts)

    @property
    def column(self) -> str | None:
        """The column of the paper's tables that it belongs to, None if to none of them."""
        return self.title if self.pool in _POOL_TITLES and self.title in paper.COLUMNS else None


def recipe_of(config: ConfigDict) -> str:
    """Names all that runs must have in common to be compared: their configs but for arm and seed.

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
    rest.update_from_flattened_dict({**_ARM_FIELDS, "seed": 0})
    return configuration.digest(rest)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Where its files are.
        config: What it was run with.
        accuracy: On the test split after the last epoch, in per cent.
        best_accuracy: The highest of all epochs, likewise; chosen by looking at test images.
        result: All of result.json.
    """

    folder: Path
    config: ConfigDict
    accuracy: float
    best_accuracy: float
    result: Mapping[str, Any]

    @property
    def arm(self) -> Arm:
        """What the tables compare."""
        return Arm.of(self.config)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.seed

    @property
    def seconds(self) -> float:
        """How long it took, 0 where the result does not say."""
        seconds = self.result.get("seconds")
        return float(seconds) if isinstance(seconds, int | float) else 0.0

    @property
    def device(self) -> str:
        """What it ran on, in words."""
        number, kind, platform = (
            self.result.get(name, "unknown") for name in ("devices", "device", "platform")
        )
        return f"{number} × {kind}" + (f" ({platform})" if platform != kind else "")

    @property
    def versions(self) -> str:
        """The packages that matter most, in words."""
        versions = self.result.get("versions")
        if not isinstance(versions, dict):
            return "unknown versions"
        names = ("flexpool_jax", "jax", "flax", "python")
        return ", ".join(f"{name} {versions.get(name, 'unknown')}" for name in names)


@dataclasses.dataclass(frozen=True)
class Found:
    """What there is under a folder.

    Attributes:
        runs: The finished runs whose results could be read, by path.
        skipped: What could not be used and why, a line each.
        unfinished: Folders of runs that have begun and have no result.
    """

    runs: list[Run]
    skipped: list[str]
    unfinished: list[Path]


def find_runs(folder: str | os.PathLike[str]) -> Found:
    """Reads every result.json under a folder; those that are damaged are named and skipped.

    Args:
        folder: Searched whole, links aside.
    """
    found = Found([], [], [])
    seen: dict[tuple[str, Arm, int], Run] = {}
    for path, names in _walk(Path(folder)):
        if "result.json" not in names:
            if "config.json" in names:
                found.unfinished.append(path)
            continue
        try:
            run = read_run(path)
        except UserError as error:
            found.skipped.append(str(error))
            continue
        key = (recipe_of(run.config), run.arm, run.seed)
        if key in seen:
            found.skipped.append(f"{path}: the same run as {seen[key].folder}, with the same seed")
        else:
            seen[key] = run
            found.runs.append(run)
    return found


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if n not in _PASSED_OVER and not n.startswith("."))
        yield Path(path), names


def read_run(folder: Path) -> Run:
    """Reads a folder's result.json.

    Raises:
        UserError: When it is damaged; names the file and what is wrong with it.
    """
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result, dict) or not isinstance(result.get("config"), dict):
            raise UserError("it holds no config")
        config = configuration.config_from_json(result["config"])
        for name in configuration.FIELDS:
            value = get_field(config, name)
            # Those that a program of one's own has registered are not known here.
            if name not in ("model", "pool"):
                check_field(name, value)
            elif not isinstance(value, str) or not re.fullmatch(r"[\w.-]+", value):
                raise UserError(f"config.{name} is {value!r}; allowed: a name")
        final, best = (
            _accuracy(result.get(f"{which}_test_accuracy")) for which in ("final", "best")
        )
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged: its config lacks a field: {error}") from error
    except (ValueError, RecursionError, TypeError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    return Run(folder, config, final, best, result)


def _accuracy(value: object) -> float:
    """A result's accuracy in per cent."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"it has an accuracy of {value!r}")
    return 100 * float(value)


def read_curve(run: Run, split: str, value: str) -> tuple[list[float], list[float]]:
    """Reads a curve from a run's metrics.jsonl: a point for each epoch.

    Several lines of one epoch, each a mean over the steps since the line before, become their mean
    over all of these steps.

    Args:
        run: Whose.
        split: "train", "test" or "validation".
        value: Such as "accuracy" or "loss".

    Returns:
        Epochs completed, and the value at each; empty where there is no such file. Lines that are
        torn, and values that are null, are left out.
    """
    try:
        lines = (run.folder / "metrics.jsonl").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    sums: dict[int, float] = {}
    steps: dict[int, float] = {}
    last_step = 0.0
    for line in lines:
        try:
            row = json.loads(line)
            step, epoch, point = float(row["step"]), float(row["epoch"]), float(row[value])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if row.get("split") != split or not all(map(math.isfinite, (step, epoch, point))):
            continue
        weight, last_step = max(step - last_step, 1.0), step
        at = math.ceil(epoch - 1e-9)
        sums[at] = sums.get(at, 0.0) + weight * point
        steps[at] = steps.get(at, 0.0) + weight
    return [float(at) for at in sums], [total / steps[at] for at, total in sums.items()]
