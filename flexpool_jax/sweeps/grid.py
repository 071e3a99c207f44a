"""Expands a sweep's config into its runs: a name and a training config for each.

Configs of sweeps, such as configs/paper_tables.py, have the fields of `SWEEP_FIELDS`. A run's
config is the config file of one data set with a variant, as on the command line, and with the
fields that a column or the sweep sets. So a cell of a sweep is equal to the same run started by
hand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from flexpool_jax import configuration
from flexpool_jax.configuration import variants
from flexpool_jax.data import check_raw_dir
from flexpool_jax.errors import UserError, unknown_name

# Each field's type, the type of its entries if it is a tuple, and its allowed values in words.
SWEEP_FIELDS: dict[str, tuple[type, type | None, str]] = {
    "datasets": (tuple, str, "names of files in configs/ without .py, e.g. digits,cifar10"),
    "columns": (tuple, str, "variants joined by +, e.g. avg,flexpool+reg,flexpool+reg=0.01"),
    "sac": (tuple, str, "off, on, or weights joined by /, e.g. off,0.1/0.2/0.7"),
    "seeds": (tuple, int, "whole numbers from 0, e.g. 0,1,2"),
    "num_epochs": (int, None, "a whole number from 1, or 0 for each data set's own"),
    "overrides": (str, None, 'FIELD=VALUE with blanks between, e.g. "batch_size=64 model=vgg11"'),
    "probe": (bool, None, "True or False"),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: The cell's folder in the sweep's folder, e.g. "digits/flexpool+reg+sac/seed-0".
        dataset: The entry of `datasets` that the cell belongs to.
        config: The training config.
        arguments: The command line that results in this config: the data set's config file with the
            words of the column after the colon, and the fields that the sweep sets. A process that
            gets these arguments runs the config file, and so has the pools, models and data sets
            that the file registers.
    """

    name: str
    dataset: str
    config: ConfigDict
    arguments: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The digest of the config; see `configuration.digest`."""
        return configuration.digest(self.config)


def expand(
    config: ConfigDict,
    configs_dir: str | os.PathLike[str],
    workdir: str | os.PathLike[str] | None = None,
    *,
    reads_data: bool = True,
) -> list[Cell]:
    """Lists the runs of a sweep, all of them checked.

    Seeds are the outermost loop: a sweep that is stopped early leaves complete tables of fewer
    seeds.

    Args:
        config: A sweep's config.
        configs_dir: The folder with the data sets' config files.
        workdir: The sweep's folder. Runs that have begun in it need no `init_from`, see
            `configuration.resolve_training_files`.
        reads_data: Whether the runs' files must exist: their data sets, see
            `configuration.resolve`, those of the user's own (image_folder, npz) in
            `dataset.raw_dir`, and the files that `configuration.resolve_training_files` checks.

    Raises:
        UserError: The sweep or one of its runs is not valid, or two runs are the same; the message
            names the run.

    Example:
        >>> from configs import paper_tables
        >>> config = paper_tables.get_config()
        >>> config.datasets, config.sac, config.seeds = ("digits",), ("on",), (7,)
        >>> cells = expand(config, "configs")
        >>> [cell.name for cell in cells]
        ['digits/avg+sac/seed-7', 'digits/flexpool+sac/seed-7', \
'digits/flexpool+reg+sac/seed-7', 'digits/flexpool+reg+dropout+sac/seed-7']
        >>> cells[2].config.pool_reg > 0, cells[2].config.sac.enabled, cells[2].config.seed
        (True, True, 7)
    """
    _check_fields(config)
    names = configuration.config_files(configs_dir)
    for dataset in config.datasets:
        if f"{dataset}.py" not in names:
            files = [name.removesuffix(".py") for name in names]
            raise unknown_name("config.datasets entry", dataset, files)
        # Load this file before any column is read: it may register a pool that a column names.
        configuration.load_config(f"{Path(configs_dir) / dataset}.py:", configs_dir)
    cells = []
    names_of: dict[str, str] = {}
    grid = itertools.product(config.seeds, config.datasets, config.sac, config.columns)
    for seed, dataset, sac, column in grid:
        name = f"{dataset}/{_folder(column, sac)}/seed-{seed}"
        try:
            arguments = _arguments(config, dataset, column, sac, seed, configs_dir)
            training = configuration.load_config(
                arguments[0].removeprefix("--config="), configs_dir
            )
            configuration.apply_overrides(training, arguments[1:])
            training = configuration.resolve(training, reads_data=reads_data)
            folder = None if workdir is None else Path(workdir) / name
            if reads_data:
                configuration.resolve_training_files(training, folder)
                check_raw_dir(training.dataset.name, training.dataset.raw_dir)
            else:
                # Sets the normalisation that belongs to `init_from`, if it can be found.
                with contextlib.suppress(UserError):
                    configuration.resolve_training_files(training, folder)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        cell = Cell(name, dataset, training, tuple(arguments))
        same = names_of.setdefault(cell.digest, name)
        if same != name:
            raise UserError(f"{same} and {name} are the same run; a sweep needs one of them")
        cells.append(cell)
    return cells


def take_shard(
    cells: Sequence[Cell], shard: str, environment: Mapping[str, str] = os.environ
) -> list[Cell]:
    """Takes part I of N of a sweep, so that all parts finish a seed together.

    Each part takes one of every N consecutive runs. Its place among the N moves on each time.
    Otherwise one machine could train the same column of every seed, and a difference between
    columns could be one between machines.

    Args:
        cells: The cells, from `expand`.
        shard: "I/N", with I from 0 to N − 1; or "auto", which takes I and N from the variables that
            SLURM sets for a task of an array.
        environment: The environment variables.

    Raises:
        UserError: `shard` is neither, a variable of SLURM is missing, or there are fewer runs than
            parts.

    Example:
        >>> from configs import paper_tables
        >>> config = paper_tables.get_config()
        >>> config.datasets, config.sac, config.seeds = ("digits",), ("off",), (0, 1)
        >>> [cell.name for cell in take_shard(expand(config, "configs"), "1/4")]
        ['digits/flexpool/seed-0', 'digits/avg/seed-1']
    """
    if shard == "auto":
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
        try:
            task, first, count = (int(environment[name]) for name in names)
        except (KeyError, ValueError):
            raise UserError(
                f"--shard=auto needs {', '.join(names)}, which SLURM sets for the tasks of an "
                "array (sbatch --array=0-3); or write --shard=I/N"
            ) from None
        index, given = task - first, f"auto (task {task} of {count}, from {first})"
    else:
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
        index, count = map(int, match.groups()) if match else (0, 0)
        given = shard
    if not 0 <= index < count:
        raise UserError(
            f"--shard={given}; allowed: auto, or I/N with I from 0 to N - 1, e.g. 0/4; an array's "
            "tasks must be numbered without gaps"
        )
    if count > len(cells):
        raise UserError(f"--shard={given}: the sweep has {len(cells)} runs; allowed: N up to that")
    return [cell for i, cell in enumerate(cells) if (i + i // count) % count == index]


def _check_fields(config: ConfigDict) -> None:
    """Raises UserError about the first field that is unknown, missing or not valid."""
    if "datasets" not in config or "seeds" not in config:
        raise UserError(
            "--config names a single run; allowed: the config of a sweep, e.g. "
            "--config=configs/paper_tables.py (--mode=report needs no --config)"
        )
    for name in config:
        if name not in SWEEP_FIELDS:
            raise unknown_name(
                "field", f"config.{name}", [f"config.{field}" for field in SWEEP_FIELDS]
            )
    for name, (kind, entry, allowed) in SWEEP_FIELDS.items():
        if name not in config:
            raise UserError(f"the sweep has no config.{name}; start from configs/paper_tables.py")
        value = config[name]
        values = value if entry is not None and isinstance(value, tuple) else (value,)
        right = isinstance(value, kind) and bool(values)
        right &= all(type(part) is (entry or kind) for part in values)
        if not right or any(isinstance(part, int) and part < 0 for part in values):
            raise UserError(f"config.{name} is {value!r}; allowed: {allowed}")
        if entry is not None and len(set(value)) < len(value):
            raise UserError(f"config.{name} is {value!r}, which names one twice")


def _folder(column: str, sac: str) -> str:
    if sac == "off":
        return column
    return f"{column}+sac" + ("" if sac == "on" else "-" + sac.replace("/", "-"))


def _arguments(
    sweep: ConfigDict,
    dataset: str,
    column: str,
    sac: str,
    seed: int,
    configs_dir: str | os.PathLike[str],
) -> list[str]:
    """Returns the flags of a run: the config file first, and last the overrides, which win."""
    overrides = _split_overrides(sweep, sac)
    _check_column(column, sweep, sac, overrides)
    words = [*column.split("+"), *["sac"] * (sac != "off")]
    path = (Path(configs_dir) / f"{dataset}.py").absolute()
    arguments = [f"--config={path}:{','.join(words)}", f"--config.seed={seed}"]
    if sac not in ("off", "on"):
        arguments.append(f"--config.sac.weights={','.join(map(str, _sac_weights(sac)))}")
    if sweep.num_epochs:
        arguments.append(f"--config.num_epochs={sweep.num_epochs}")
    return [*arguments, *(f"--config.{part}" for part in overrides)]


def _check_column(column: str, sweep: ConfigDict, sac: str, overrides: Sequence[str]) -> None:
    """Raises UserError if a column cannot name a folder, or sets a field that the sweep sets."""
    if "/" in column or "," in column:
        raise UserError(
            f"column {column!r} names a folder; allowed: words and values without / and comma"
        )
    if not column.strip():
        raise UserError("a column is empty; allowed: e.g. avg, flexpool+reg")
    settings = variants.read_variant(column, "+", kind="column")
    elsewhere = {part.partition("=")[0]: "config.overrides" for part in overrides}
    elsewhere |= _set_by_fields(sweep)
    if sac != "off":
        elsewhere["sac.enabled"] = elsewhere["sac.weights"] = "config.sac"
    for setting in settings:
        # The overrides may change what `reg` and `dropout` stand for, not what a column spells out.
        by_word = setting.value is None and elsewhere.get(setting.field) == "config.overrides"
        if setting.field in elsewhere and not by_word:
            raise UserError(
                f"column {column!r} sets {setting.field}; leave that to {elsewhere[setting.field]}"
            )


def _set_by_fields(sweep: ConfigDict) -> dict[str, str]:
    """The fields of a run that fields of the sweep set, each with the sweep's field."""
    fields = {"seed": "config.seeds", "dataset.name": "config.datasets"}
    return fields | ({"num_epochs": "config.num_epochs"} if sweep.num_epochs else {})


def _sac_weights(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split("/"))
    except ValueError:
        raise UserError(f"config.sac has {text!r}; allowed: {SWEEP_FIELDS['sac'][2]}") from None


def _split_overrides(sweep: ConfigDict, sac: str) -> list[str]:
    """Splits the overrides; raises UserError if one is not FIELD=VALUE, or is set by the sweep."""
    text = sweep.overrides
    elsewhere = _set_by_fields(sweep) | {"sac.enabled": "config.sac"}
    if sac not in ("off", "on"):
        elsewhere["sac.weights"] = "config.sac"
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise UserError(f"config.overrides is {text!r}: {error}") from error
    for part in parts:
        if "=" not in part or part.startswith("-"):
            raise UserError(
                f"config.overrides has {part!r}; allowed: {SWEEP_FIELDS['overrides'][2]}"
            )
        field = part.partition("=")[0]
        if field in elsewhere:
            raise UserError(f"config.overrides sets {field}; leave that to {elsewhere[field]}")
    return parts
