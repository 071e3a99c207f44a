"""The linear models and contrasts of docs/evidence.md, and their estimates from its runs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

import numpy as np

from evidence.model import BlockModel, Contrast, bootstrap_intervals
from evidence.runs import POOLS, Evidence, Key, read_correct
from flexpool_jax.report.analysis import Estimate, estimate, holm

Weights = Mapping[str, float]

WHOLE = "flexpool+reg+dropout"
# The lower end of the gain that the paper claims, and the bound of equivalence, in points.
CLAIMED = 1.0
EQUIVALENT = 0.5


def minus(column: str, baseline: str) -> dict[str, float]:
    """The weights of the contrast `column` − `baseline`."""
    return {column: 1.0, baseline: -1.0}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One linear model of docs/evidence.md.

    Attributes:
        title: The heading of the experiment.
        designs: The designs of configs/evidence.py whose runs form the model.
        family: The contrasts that Holm's correction includes.
        secondary: Contrasts that are estimated without a claim of significance.
        borrowed: Columns of another design, and the name of that design. Their runs with the seeds
            of the experiment's own designs are added to the model.
    """

    title: str
    designs: tuple[str, ...]
    family: tuple[Weights, ...]
    secondary: tuple[Weights, ...] = ()
    borrowed: tuple[tuple[str, ...], str] = ((), "")


E1 = "E1: Fashion-MNIST, five columns"
E5 = "E5: Tiny ImageNet at 32×32, without and with SAC"
E7 = "E7: Tiny ImageNet at 32×32, FlexPool without dropout"
E4 = "E4: Fashion-MNIST, controls"
CIFAR = "E2 and E3: CIFAR-10 (JPEG copy), without and with SAC"
SGD = "E6, SGD: Fashion-MNIST"
PRIMARY = {
    "P1": (minus("flexpool", "avg"), "Does learning the weights help?"),
    "P2": (minus("flexpool+reg", "flexpool"), "Does Eq. 2 help?"),
    "P3": (
        minus(WHOLE, "avg+dropout"),
        "Does the whole method help, with dropout on both sides?",
    ),
}
CONTROLS = (
    *("channel_scale", "flexpool_shared", "gdconv", "flatten"),
    "flexpool+pool_learning_rate_scale=0.0204",
)
_SAC_MINUS_PLAIN = minus(f"{WHOLE}+sac", "avg+sac") | {WHOLE: -1.0, "avg": 1.0}
_WITH_DROPOUT_MINUS_WITHOUT = minus(WHOLE, "avg+dropout") | {"flexpool+reg": -1.0, "avg": 1.0}
LENGTHS = {2: "e6_2", 5: "e6_5", 10: "e1", 20: "e6_20"}
EXPERIMENTS = (
    Experiment(
        E1,
        ("e1",),
        tuple(weights for weights, _ in PRIMARY.values()),
        (
            *(minus(WHOLE, "avg"), minus("flexpool+reg", "avg")),
            *(minus("avg+dropout", "avg"), minus(WHOLE, "flexpool+reg")),
        ),
    ),
    Experiment(
        E5,
        ("e5", "e5_sac"),
        (
            *(minus(WHOLE, "avg"), minus(WHOLE, "avg+dropout")),
            *(minus(f"{WHOLE}+sac", "avg+sac"), _SAC_MINUS_PLAIN),
        ),
    ),
    Experiment(
        E7,
        ("e7",),
        (),
        (minus("flexpool+reg", "avg"), _WITH_DROPOUT_MINUS_WITHOUT),
        borrowed=(("avg", "avg+dropout", WHOLE), "e5"),
    ),
    Experiment(
        E4,
        ("e4",),
        tuple(minus(control, pool) for control in CONTROLS for pool in ("flexpool", "avg")),
        borrowed=(POOLS, "e1"),
    ),
    Experiment(
        CIFAR,
        ("e2", "e3"),
        (
            *(minus("flexpool", "avg"), minus("flexpool+reg", "flexpool")),
            minus("flexpool+reg+sac", "avg+sac"),
        ),
    ),
    *(
        Experiment(title, (design,), (minus("flexpool", "avg"), minus(WHOLE, "avg")))
        for title, design in (
            *((f"E6, {epochs} epochs: Fashion-MNIST", LENGTHS[epochs]) for epochs in (2, 5, 20)),
            (SGD, "e6_sgd"),
        )
    ),
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """A contrast and its checks.

    Attributes:
        weights: The weights of the contrast by column.
        contrast: The estimate of the linear model; None if the runs cannot estimate the contrast.
        adjusted: The p-value after Holm's correction; None outside of the family.
        bootstrap: The percentile interval of a bootstrap over seeds × images.
        paired: The estimate of the paired t-test, over the seeds that have all columns.
    """

    weights: Weights
    contrast: Contrast | None
    adjusted: float | None = None
    bootstrap: tuple[float, float] | None = None
    paired: Estimate | None = None

    @property
    def title(self) -> str:
        """The contrast in words, e.g. "`flexpool` − `avg`"."""
        plus = [f"`{column}`" for column, weight in self.weights.items() if weight > 0]
        less = [f"`{column}`" for column, weight in self.weights.items() if weight < 0]
        if len(plus) == 1:
            return f"{plus[0]} − {less[0]}"
        return f"({plus[0]} − {less[0]}) − ({less[1]} − {plus[1]})"

    @property
    def is_significant(self) -> bool:
        """Whether the contrast is in the family, and significant after Holm's correction."""
        return self.adjusted is not None and self.adjusted < 0.05


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The results of one linear model.

    Attributes:
        experiment: The experiment that the model belongs to.
        accuracies: Accuracies in per cent by column and seed.
        model: The fitted model; None if there are too few runs.
        findings: One for each contrast, the family first; empty without a model.
        missing: Cells that have no run that counts and have not failed.
        failed: Cells whose runs diverged.
    """

    experiment: Experiment
    accuracies: dict[Key, float]
    model: BlockModel | None
    findings: list[Finding]
    missing: list[Key]
    failed: list[Key]

    def of_column(self, column: str) -> list[float]:
        """The accuracies of a column in per cent; empty without runs."""
        return [value for (name, _), value in self.accuracies.items() if name == column]


def analyse(evidence: Evidence, experiment: Experiment, *, draws: int = 10_000) -> Analysis:
    """Fits an experiment's model and estimates its contrasts.

    Args:
        evidence: The runs.
        experiment: One of `EXPERIMENTS`.
        draws: The number of draws of the bootstrap.
    """
    designs = [evidence.designs[name] for name in experiment.designs]
    runs = {key: run for design in designs for key, run in design.runs.items()}
    missing = [key for design in designs for key in design.missing]
    failed = [key for design in designs for key in design.failed]
    columns, lender = experiment.borrowed
    if runs and columns:
        seeds = {seed for design in designs for _, seed in design.expected}
        other = evidence.designs[lender]
        wanted = [(column, seed) for column in columns for seed in sorted(seeds)]
        runs = {key: other.runs[key] for key in wanted if key in other.runs} | runs
        failed += [key for key in wanted if key in other.failed]
        missing += [key for key in wanted if key not in other.runs and key not in failed]
    accuracies = {key: run.accuracy for key, run in runs.items()}
    try:
        model = BlockModel.of_columns(accuracies)
    except ValueError:
        return Analysis(experiment, accuracies, None, [], missing, failed)
    contrasts = (*experiment.family, *experiment.secondary)
    estimated = [model.contrast(weights) for weights in contrasts]
    family = estimated[: len(experiment.family)]
    # A contrast that cannot be estimated yet counts too, since the protocol names it.
    adjusted = holm([1.0 if contrast is None else contrast.p_value for contrast in family])
    intervals = bootstrap_intervals(read_correct(runs), contrasts, draws=draws)
    findings = [
        Finding(
            weights,
            contrast,
            adjusted[i] if contrast is not None and i < len(family) else None,
            intervals[i],
            _paired(accuracies, weights),
        )
        for i, (weights, contrast) in enumerate(zip(contrasts, estimated, strict=True))
    ]
    return Analysis(experiment, accuracies, model, findings, missing, failed)


def _paired(accuracies: Mapping[Key, float], weights: Weights) -> Estimate | None:
    seeds = {
        seed for _, seed in accuracies if all((column, seed) in accuracies for column in weights)
    }
    sums = [
        sum(weight * accuracies[column, seed] for column, weight in weights.items())
        for seed in sorted(seeds)
    ]
    return estimate(sums) if sums else None


@dataclasses.dataclass(frozen=True)
class Slope:
    """How a column's difference to `avg` changes with training: prediction M6.

    Attributes:
        contrast: The slope over log₂(epochs) with seeds as blocks, in points for each doubling of
            the epochs; None with too few runs.
        differences: The differences in points by number of epochs and seed (0 to 2).
        by_seed: The t-test of the seeds' own slopes, of the seeds that have all lengths. It is a
            check, like the paired t-test of a contrast, because the model assumes that the
            differences scatter as much after two epochs as after twenty.
    """

    contrast: Contrast | None
    differences: dict[tuple[int, int], float]
    by_seed: Estimate | None

    @property
    def by_length(self) -> dict[int, Estimate]:
        """The mean difference over the seeds after each number of epochs, with its interval."""
        found: dict[int, list[float]] = {}
        for (epochs, _), difference in self.differences.items():
            found.setdefault(epochs, []).append(difference)
        return {epochs: estimate(values) for epochs, values in found.items()}


def slope_over_length(evidence: Evidence, column: str) -> Slope:
    """Fits a column's difference to `avg` over log₂(epochs), with seeds as blocks.

    Args:
        evidence: The runs.
        column: The column whose accuracies are compared with those of `avg`.
    """
    differences = {
        (epochs, seed): difference
        for epochs, name in LENGTHS.items()
        for seed, difference in evidence.designs[name].differences(column).items()
        if seed in (0, 1, 2)
    }
    contrast = None
    if len({epochs for epochs, _ in differences}) > 1:
        terms = [{"intercept": 1.0, "slope": float(np.log2(epochs))} for epochs, _ in differences]
        blocks = [seed for _, seed in differences]
        with contextlib.suppress(ValueError):  # Too few runs.
            model = BlockModel(list(differences.values()), terms, blocks)
            contrast = model.contrast({"slope": 1.0})
    lengths = list(LENGTHS)
    slopes = [
        float(np.polyfit(np.log2(lengths), [differences[epochs, seed] for epochs in lengths], 1)[0])
        for seed in (0, 1, 2)
        if all((epochs, seed) in differences for epochs in lengths)
    ]
    return Slope(contrast, differences, estimate(slopes) if slopes else None)


def verdict(contrast: Contrast, p_value: float) -> str:
    """The words of the protocol's table "What would support the claim, and what would refute it".

    Args:
        contrast: A primary contrast.
        p_value: The p-value after Holm's correction.

    Example:
        >>> verdict(Contrast(0.6, 0.1, 20), 0.001)
        'It helps, by less than claimed.'
        >>> verdict(Contrast(0.1, 0.6, 20), 0.9)
        'Undecided.'
    """
    low, high = contrast.interval()
    if p_value < 0.05:
        if high < 0:
            return "It harms."
        if low >= CLAIMED:
            return "It helps, by the claimed size."
        return (
            "It helps, by less than claimed."
            if high < CLAIMED
            else "It helps; the claimed size is possible."
        )
    if high >= CLAIMED:
        return "Undecided."
    text = "No difference is shown; a gain of 1 point or more is excluded."
    if contrast.equivalence_p_value(EQUIVALENT) < 0.05:
        text += " The two are equivalent within 0.5 points."
    return text


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A prediction about a difference, by one of the mechanisms M1 to M8 of docs/evidence.md.

    Attributes:
        name: The name of the mechanism, such as "M1".
        weights: The weights of the difference by column.
        expects: The prediction: "below", "above" or "not below" zero, or "equal" (within ±0.5
            points).
    """

    name: str
    weights: Weights
    expects: str

    def agrees(self, contrast: Contrast) -> str:
        """Returns whether a difference agrees with the prediction: "yes", "no" or "open".

        The 95 % interval decides; TOST decides whether "equal" gets a "yes".

        Example:
            >>> prediction = Prediction("M4", minus("gdconv", "flexpool"), "below")
            >>> prediction.agrees(Contrast(-0.9, 0.2, 12))
            'yes'
        """
        low, high = contrast.interval()
        if self.expects == "equal":
            if contrast.equivalence_p_value(EQUIVALENT) < 0.05:
                return "yes"
            return "no" if low > EQUIVALENT or high < -EQUIVALENT else "open"
        return agreement(self.expects, (low, high))


def agreement(expects: str, interval: tuple[float, float]) -> str:
    """Returns whether an interval agrees with a prediction: "yes", "no" or "open".

    Args:
        expects: "below", "above" or "not below" zero. The last one gets a "yes" if the interval
            excludes differences of -0.5 points and less.
        interval: The 95 % interval of the difference, in points.

    Example:
        >>> [agreement("not below", ends) for ends in ((-0.1, 0.3), (-0.9, 0.3), (-0.9, -0.3))]
        ['yes', 'open', 'no']
    """
    low, high = interval
    yes, no = {
        "below": (high < 0, low > 0),
        "above": (low > 0, high < 0),
        "not below": (low > -EQUIVALENT, high < 0),
    }[expects]
    return "no" if no else "yes" if yes else "open"


PREDICTIONS = (
    Prediction("M1", minus(CONTROLS[-1], "flexpool"), "below"),
    Prediction("M2", minus("channel_scale", "flexpool"), "equal"),
    Prediction("M2", minus("channel_scale", "avg"), "above"),
    Prediction("M3", minus("flexpool_shared", "flexpool"), "equal"),
    Prediction("M3", minus("flexpool_shared", "avg"), "above"),
    Prediction("M4", minus("gdconv", "flexpool"), "below"),
    Prediction("M5", minus("flatten", "flexpool"), "not below"),
    Prediction("M7", _SAC_MINUS_PLAIN, "above"),
)
