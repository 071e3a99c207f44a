"""Writes the rows and settings of a report as CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flexpool_jax import files
from flexpool_jax.report import paper
from flexpool_jax.report.analysis import Estimate
from flexpool_jax.report.results import Arm
from flexpool_jax.report.rows import Row, Setting

Record = dict[str, Any]

_RUN_VALUES = ("epochs", "seconds", "images_per_second", "parameters", "device", "config_digest")
BASELINES = ("avgpool", "control", "one_classifier")


def table_records(rows: Sequence[Row], *, sac: bool) -> list[Record]:
    """Records of the paper's Table 1, or of its Table 2 with SAC: one for each setting of a cell.

    A cell without a setting has one record with n = 0.
    """
    records = []
    for row in rows:
        for column in paper.COLUMNS:
            record: Record = {
                "dataset": row.title,
                "column": column,
                "paper": row.published(column, sac=sac),
            }
            settings = row.column(column, sac=sac)
            measured = [_measured(setting, BASELINES[:2]) for setting in settings]
            records += [record | values for values in measured or [{"n": 0}]]
    return records


def setting_records(rows: Sequence[Row]) -> list[Record]:
    """A record for each setting."""
    records = []
    for row in rows:
        for setting in row.settings.values():
            record: Record = {}
            for name, found in setting.metrics.items():
                record |= _numbers(found, name, f"{name}_half_width")
            # If a metric has the name of a column, the record keeps the column's value.
            records.append(record | {"dataset": row.title} | _measured(setting, BASELINES))
    return records


def class_records(rows: Sequence[Row]) -> list[Record]:
    """A record for each setting and class; none for settings without accuracies of the classes."""
    return [
        {
            "dataset": row.title,
            **_arm(setting.arm),
            "class": name,
            "n": found.n if found else 0,
            **_numbers(found, "accuracy", "half_width"),
        }
        for row in rows
        for setting in row.settings.values()
        for name, found in setting.classes.items()
    ]


def run_records(rows: Sequence[Row], workdir: Path) -> list[Record]:
    """A record for each run."""
    records = []
    for row in rows:
        for setting in row.settings.values():
            for seed, run in setting.runs.items():
                record: Record = {
                    "folder": run.folder.relative_to(workdir).as_posix(),
                    "dataset": row.title,
                    **_arm(setting.arm),
                    "seed": seed,
                    "final_accuracy": run.accuracy,
                    "best_accuracy": run.best_accuracy,
                    **{name: run.result.get(name) for name in _RUN_VALUES},
                }
                # If a metric has the name of a column, the record keeps the column's value.
                records.append(record | {n: v for n, v in run.metrics.items() if n not in record})
    return records


def write_csv(path: Path, records: Sequence[Record], *, digits: int = 12) -> None:
    """Writes records as CSV; empty fields are missing values.

    Args:
        path: The file.
        records: The rows.
        digits: The number of digits of floats. More would differ from one machine to another.
    """
    import pandas as pd

    def rounded(name: str, value: Any) -> Any:
        if not isinstance(value, float) or math.isnan(value):
            return value
        # Only p-values may be this small; elsewhere it is a rounding error of 0.
        is_zero = abs(value) < 1e-12 and "p" not in name.split("_")
        return 0.0 if is_zero else float(f"{value:.{digits}g}")

    table = pd.DataFrame(records, dtype=object)
    table = table.apply(lambda column: column.map(lambda value: rounded(column.name, value)))
    files.write_whole(path, table.to_csv(index=False, lineterminator="\n").encode())


def _arm(arm: Arm) -> Record:
    record: Record = {
        "sac_weights": _joined(f"{weight:g}" for weight in arm.sac),
        "pool": arm.pool,
        "pool_reg": arm.pool_reg,
        "dropout_rate": arm.dropout_rate,
    }
    # The column is left out of reports in which no run sets this factor.
    if arm.pool_learning_rate_scale != 1:
        record["pool_learning_rate_scale"] = arm.pool_learning_rate_scale
    return record


def _measured(setting: Setting, baselines: Iterable[str]) -> Record:
    record = {
        **_arm(setting.arm),
        "n": len(setting.runs),
        "seeds": _joined(setting.runs),
        "missing_seeds": _joined(setting.missing),
        **_numbers(setting.estimate, "accuracy", "half_width"),
    }
    for name in baselines:
        difference = setting.differences.get(name)
        record |= {
            **_numbers(difference, f"to_{name}", f"to_{name}_half_width"),
            f"to_{name}_p": difference.p_value if difference else None,
            f"to_{name}_p_holm": setting.adjusted.get(name),
        }
    return record


def _numbers(found: Estimate | None, mean: str, half_width: str) -> Record:
    return {
        mean: found.mean if found else None,
        half_width: found.half_width if found else None,
    }


def _joined(values: Iterable[object]) -> str:
    return " ".join(map(str, values))
