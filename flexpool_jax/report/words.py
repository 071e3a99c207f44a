"""The text of a report: its sentences and the cells of its tables.

report.md and index.html show the same text.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from flexpool_jax.report import paper
from flexpool_jax.report.analysis import Estimate
from flexpool_jax.report.results import Found, recipe_of
from flexpool_jax.report.rows import Row, Setting

PAPER_HEADS = ("data set", "", *paper.COLUMNS)
SETTING_HEADS = (
    *("SAC", "pool", "accuracy", "best epoch", "to AvgPool", "to control", "to one classifier"),
)

BESIDE_ACCURACY = (
    "Beside accuracy, likewise after the last epoch, mean ± half of the 95 % interval:"
)
OF_EACH_CLASS = "The accuracy of each class, mean over seeds; classes.csv has the intervals:"


def opening(found: Found, rows: Sequence[Row]) -> str:
    """What the report is about and what its numbers mean, in paragraphs of Markdown."""
    devices = Counter(run.device for run in found.runs)
    versions = Counter(run.versions for run in found.runs)
    hours = sum(run.seconds for run in found.runs) / 3600
    split, intervals = "the test split", "not how far another test split would"
    if any(run.test_is_drawn and not run.config.dataset.holdout for run in found.runs):
        split += " (drawn by the seed if a data set has none)"
        intervals += "; where the seed draws the test split, they include that too"
    if any(run.config.dataset.holdout for run in found.runs):
        split += ", or the held-out images that a row names"
        intervals += "; but each seed holds out other images"
    runs = f"{len(found.runs)} finished run{'s' * (len(found.runs) > 1)}"
    text = f"""\
{runs}, {hours:.1f} hours of training, on {_listed(devices)}; with
{_listed(versions)}.

Accuracies are those of the **last epoch** on {split},
in per cent: the mean over n seeds ± half of its 95 % interval (Student's t). The best epoch's is
higher by design, since it is chosen by looking at the same images, and is given for information in
the lists below. One seed has no interval. Differences are paired by seed: same order of examples,
same draws; their p-values are those of the paired t-test. The intervals say how far seeds differ,
{intervals}."""
    tested = sum(len(setting.adjusted) for row in rows for setting in row.settings.values())
    if tested:
        text += f"""

This report tests {tested} difference{"s" * (tested > 1)}. By chance alone, {0.05 * tested:.2g}
on average would have p < 0.05. An asterisk marks p < 0.05 after Holm's correction; the p that is
shown is not corrected."""
    if len({run.source for run in found.runs}) > 1 or any(run.changes for run in found.runs):
        text += """

Runs of other source code, and runs whose fields changed between two starts, have rows of their own;
they are not averaged or compared with others."""
    return text


def _listed(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{name} ({count} runs)" for name, count in counts.items())


def paper_lines(rows: Sequence[Row], *, sac: bool) -> list[list[str]]:
    """The lines of the paper's Table 1, or of its Table 2 with SAC: three lines for each row.

    `PAPER_HEADS` names the columns. The list is empty if no setting belongs to the table.
    """
    cells = [[row.column(column, sac=sac) for column in paper.COLUMNS] for row in rows]
    if not any(any(found) for found in cells):
        return []
    lines = []
    for row, columns in zip(rows, cells, strict=True):
        lines.append([row.title, "here", *map(_measured, columns)])
        published = [row.published(column, sac=sac) for column in paper.COLUMNS]
        shown = ["not in it" if value is None else f"{value:.2f}" for value in published]
        lines.append(["", "paper", *shown])
        differences = [
            _difference(found[0], "avgpool") if len(found) == 1 else "–" for found in columns
        ]
        lines.append(["", "difference to AvgPool", *differences])
    return lines


def _measured(settings: Sequence[Setting]) -> str:
    """The text of a table cell: the estimate of its one setting, or why there is none."""
    if len(settings) > 1:
        return f"{len(settings)} settings, see below"
    if not settings or settings[0].estimate is None:
        return "not run"
    missing = settings[0].missing
    remark = f"; without seed {', '.join(map(str, missing))}" if missing else ""
    return f"{estimate_text(settings[0].estimate)}{remark}"


def estimate_text(
    found: Estimate, mean: str = ".2f", half_width: str = ".2f", *, with_n: bool = True
) -> str:
    """A mean and its interval; `mean` and `half_width` are format specifications.

    Example:
        >>> estimate_text(Estimate(91.0, 2.484, 3, None))
        '91.00 ± 2.48 (n = 3)'
        >>> estimate_text(Estimate(91.0, 0.0, 3, None), with_n=False)
        '91.00 (all alike)'
    """
    text = f"{found.mean:{mean}}"
    remarks = [f"n = {found.n}"] * with_n
    if found.half_width is None:
        remarks.append("no interval")
    elif not found.half_width:
        remarks.append("all alike")
    else:
        text += f" ± {found.half_width:{half_width}}"
    return f"{text} ({', '.join(remarks)})" if remarks else text


def _difference(setting: Setting, baseline: str) -> str:
    if baseline not in setting.arm.baselines or not setting.runs:
        return "–"
    found = setting.differences.get(baseline)
    if found is None:
        return "nothing to pair with"
    mean = signed(found.mean)
    if found.half_width is None:
        return f"{mean} (one pair, no interval)"
    if found.p_value is None:
        return f"{mean} ({found.n} pairs, all alike)"
    pairs = "" if found.n == len(setting.runs) else f" ({found.n} pairs)"
    text = f"{mean} ± {found.half_width:.2f}, {p_text(found.p_value)}{pairs}"
    return f"{text} *" if setting.adjusted[baseline] < 0.05 else text


def setting_lines(row: Row) -> list[list[str]]:
    """A line for each setting of a row; `SETTING_HEADS` names the columns."""
    lines = []
    for arm, setting in row.settings.items():
        best = [run.best_accuracy for run in setting.runs.values()]
        control = _difference(setting, "control")
        if "control" in setting.differences:
            control = f"{arm.baselines['control'].title}: {control}"
        lines.append(
            [
                arm.sac_weights or "–",
                dataclasses.replace(arm, sac=()).label,
                _measured([setting]),
                f"{sum(best) / len(best):.2f}" if best else "–",
                _difference(setting, "avgpool"),
                control,
                _difference(setting, "one_classifier"),
            ]
        )
    return lines


def metric_lines(row: Row) -> tuple[list[str], list[list[str]]]:
    """The column heads and lines of a row's metrics beside accuracy; no lines if there are none."""
    names = list(dict.fromkeys(name for s in row.run_settings for name in s.metrics))
    lines = [
        [setting.arm.label, *(metric_text(name, setting.metrics.get(name)) for name in names)]
        for setting in row.run_settings
    ]
    return ["setting", *map(metric_title, names)], lines if names else []


def class_lines(row: Row) -> tuple[list[str], list[list[str]]]:
    """The names of a row's classes, and a line of their accuracies for each setting.

    There are no lines if no run has the accuracy of each class. Settings whose classes differ from
    those of the first setting that has classes are left out.
    """
    classes = next((list(s.classes) for s in row.run_settings if s.classes), [])
    lines = [
        [s.arm.label, *("–" if f is None else f"{f.mean:.2f}" for f in s.classes.values())]
        for s in row.run_settings
        if classes and list(s.classes) == classes
    ]
    return classes, lines


def metric_title(name: str) -> str:
    """A metric's name in words; accuracies are shown in per cent.

    Example:
        >>> metric_title("top5_accuracy"), metric_title("calibration_error")
        ('top5 accuracy in %', 'calibration error')
    """
    return name.replace("_", " ") + " in %" * name.endswith("accuracy")


def metric_text(name: str, found: Estimate | None) -> str:
    """A metric's mean and interval, in the unit that `metric_title` names.

    Example:
        >>> metric_text("calibration_error", Estimate(0.03125, 0.0012, 5, None))
        '0.03125 ± 0.0012 (n = 5)'
        >>> metric_text("top5_accuracy", Estimate(97.0, None, 1, None))
        '97.00 (n = 1, no interval)'
    """
    if found is None:
        return "–"
    if name.endswith("accuracy"):
        return estimate_text(found)
    return estimate_text(found, ".4g", ".2g")


def recipe(row: Row) -> str:
    """The main fields that all runs of a row share, in words."""
    config = row.config
    size = config.dataset.center_crop or config.dataset.image_size
    pixels = f"{size}×{size} pixels" if size else "images of the data set's default size"
    if config.dataset.center_crop:
        pixels += f" cut from {config.dataset.image_size}×{config.dataset.image_size}"
    shares = config.augment.random_resized_crop
    augment = [
        "flips" * bool(config.augment.flip),
        f"scaling {config.augment.scale[0]:g} to {config.augment.scale[1]:g}"
        * (tuple(config.augment.scale) != (1, 1)),
        f"crops of {config.augment.crop} pixels of padding" * bool(config.augment.crop),
        f"random parts of {shares[0]:g} to {shares[1]:g} of the area" if shares else "",
    ]
    optimizer = config.optimizer
    extras = [
        "BatchNorm after ReLU" * bool(config.norm_after_relu),
        "projection shortcuts" * bool(config.projection_shortcuts),
        f"momentum {optimizer.momentum:g}" * (optimizer.name == "sgd"),
        *(f"{name} {value}" for name, value in optimizer.get("kwargs", {}).items()),
        f"after {config.superclass.epochs} epochs on superclasses" * bool(config.superclass.epochs),
        f"gradients averaged over {config.grad_accum_steps} parts" * (config.grad_accum_steps > 1),
        f"gradients clipped to the norm {optimizer.clip_norm:g}" * (optimizer.clip_norm > 0),
        f"label smoothing {config.label_smoothing:g}" * (config.label_smoothing > 0),
        f"moving average of the weights with decay {config.ema_decay:g}" * (config.ema_decay > 0),
        "initial weights from a file" * bool(config.init_from),
        f"frozen {config.freeze}" * bool(config.freeze),
    ]
    return (
        f"{config.model}, {pixels}, {config.num_epochs} epoch{'s' * (config.num_epochs > 1)}, "
        f"{config.batch_size} images a step, "
        f"{optimizer.name} with learning rate {config.learning_rate:g} ({config.schedule}), "
        f"weight decay {optimizer.weight_decay:g}, "
        f"{', '.join([config.dtype, *filter(None, extras)])}; "
        f"augmentation: {', '.join(filter(None, augment)) or 'none'}."
    )


def left_out(found: Found, rows: Sequence[Row], workdir: Path) -> list[str]:
    """Lists the runs that are in no row, or not in the row where a sweep expects them."""
    lines = [f"Skipped: {entry.replace(f'{workdir}{os.sep}', '')}" for entry in found.skipped]
    lines += [
        f"Begun, not finished: {path.relative_to(workdir).as_posix()}" for path in found.unfinished
    ]
    row_of = {
        (recipe_of(row.config), arm, seed): row.title
        for row in rows
        for arm, setting in row.settings.items()
        for seed in setting.runs
    }
    for row in rows:
        for arm, setting in row.settings.items():
            seeds: dict[str, list[str]] = {}
            for seed in sorted(setting.expected - setting.runs.keys()):
                other = row_of.get((recipe_of(row.config), arm, seed))
                said = f"In the row {other}, not averaged with others" if other else "No result"
                seeds.setdefault(said, []).append(str(seed))
            lines += [
                f"{said}: {row.title}, {arm.label}, seed {', '.join(missing)}"
                for said, missing in seeds.items()
            ]
    return lines


def signed(value: float) -> str:
    """A difference with its sign and two decimals.

    Example:
        >>> signed(0.5), signed(-0.001)
        ('+0.50', '+0.00')
    """
    # The last digits of least squares differ between machines; 1.845 must not. Adding zero removes
    # the minus of a negative number that is rounded to zero.
    return f"{round(round(value, 9), 2) + 0.0:+.2f}"


def p_text(p_value: float) -> str:
    """A p-value with three decimals.

    Example:
        >>> p_text(0.0421), p_text(1e-9)
        ('p = 0.042', 'p < 0.001')
    """
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
