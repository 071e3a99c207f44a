"""The numbers of a report as CSV, unrounded; an empty field is a number that there is not."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flexpool_jax.experiments import paper, tables
from flexpool_jax.experiments.results import Arm
from flexpool_jax.experiments.tables import Comparisons, Row, avgpool_of, without_sac

Record = dict[str, Any]

_RUN_VALUES = ("epochs", "seconds", "images_per_second", "parameters", "device", "config_digest")


def of_table(rows: Sequence[Row], comparisons: Comparisons, *, sac: bool) -> list[Record]:
    """A record for each cell of Table 1, or 2 with SAC; several if its runs differ in settings."""
    records = []
    for row in rows:
        for column in paper.COLUMNS:
            published = paper.accuracy(row.config.dataset.name, column, sac=sac)
            record: Record = {
                "dataset": row.title,
                "column": column,
                "paper": None if row.config.dataset.holdout else published,
            }
            arms = tables.table_arms(row, column, sac=sac)
            records += [record | _measured(row, arm, comparisons) for arm in arms]
            if not arms:
                records.append(record | {"n": 0})
    return records


def of_settings(rows: Sequence[Row], comparisons: Comparisons) -> list[Record]:
    """A record for each arm of each row."""
    return [
        {"dataset": row.title}
        | _measured(row, arm, comparisons)
        | _compared(row, arm, without_sac(arm), "one_classifier", comparisons)
        for row in rows
        for arm in row.arms
    ]


def of_runs(rows: Sequence[Row], workdir: Path) -> list[Record]:
    """A record for each run."""
    return [
        {
            "folder": run.folder.relative_to(workdir).as_posix(),
            "dataset": row.title,
            **_arm(arm),
            "seed": seed,
            "final_accuracy": run.accuracy,
            "best_accuracy": run.best_accuracy,
            **{name: run.result.get(name) for name in _RUN_VALUES},
        }
        for row in rows
        for arm in row.arms
        for seed, run in sorted(row.runs.get(arm, {}).items())
    ]


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """Writes records as CSV; their fields are the columns, in the order of their first coming."""
    names = list(dict.fromkeys(name for record in records for name in record))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _rounded(value) for name, value in r.items()} for r in records)


def _rounded(value: Any) -> Any:
    """Without the last bits of rounding, which would differ from one machine to another."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.12g}") if abs(value) > 1e-12 else 0.0


def _arm(arm: Arm) -> Record:
    record: Record = {
        "sac_weights": _joined(f"{weight:g}" for weight in arm.sac),
        "pool": arm.pool,
        "pool_reg": arm.pool_reg,
        "dropout_rate": arm.dropout_rate,
    }
    # Reports whose runs all have the usual rate do without the column, as they always have.
    if arm.pool_learning_rate_scale != 1:
        record["pool_learning_rate_scale"] = arm.pool_learning_rate_scale
    return record


def _measured(row: Row, arm: Arm, comparisons: Comparisons) -> Record:
    found = row.estimate(arm)
    return {
        **_arm(arm),
        "n": found.n if found else 0,
        "seeds": _joined(row.accuracies(arm)),
        "missing_seeds": _joined(row.missing(arm)),
        "accuracy": found.mean if found else None,
        "half_width": found.half_width if found else None,
        **_compared(row, arm, avgpool_of(arm), "avgpool", comparisons),
    }


def _compared(row: Row, arm: Arm, baseline: Arm, name: str, comparisons: Comparisons) -> Record:
    found = row.difference(arm, baseline)
    return {
        f"to_{name}": found.mean if found else None,
        f"to_{name}_half_width": found.half_width if found else None,
        f"to_{name}_p": found.p_value if found else None,
        f"to_{name}_p_holm": comparisons.adjusted(row, arm, baseline),
    }


def _joined(values: Iterable[object]) -> str:
    return " ".join(map(str, values))
