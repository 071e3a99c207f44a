"""The answer with which the results begin, and which the README shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from evidence.contrasts import (
    CIFAR,
    CLAIMED,
    E4,
    E5,
    E7,
    LENGTHS,
    PRIMARY,
    SGD,
    WHOLE,
    Analysis,
    Finding,
    Slope,
    minus,
    verdict,
)
from evidence.runs import Evidence
from evidence.words import (
    DETECTABLE,
    bracket,
    cells,
    disagreement,
    p_number,
    points,
    slope_disagreement,
    wrapped,
)
from flexpool_jax.pages.markdown import markdown_table
from flexpool_jax.report import paper
from flexpool_jax.report.words import p_text, signed

# The experiments beside E1 that are in the answer, in words, and their data set in the paper.
_ABOUT = {
    E5: ("Tiny ImageNet at 32×32, batch 250 (E5)", "tiny_imagenet"),
    E7: ("The same without dropout, added after E5's results were known (E7)", "tiny_imagenet"),
    E4: ("Controls that change one property of FlexPool, on Fashion-MNIST (E4)", "fashion_mnist"),
    CIFAR: ("A JPEG copy of CIFAR-10 (E2, E3)", "cifar10"),
    SGD: ("Fashion-MNIST with SGD (E6)", "fashion_mnist"),
}
# The columns of the runs that are those of the paper's tables, in the order of `paper.COLUMNS`.
_PAPER_COLUMNS = ("avg", "flexpool", "flexpool+reg", WHOLE)
_LIMITS = (
    "This holds for ResNet20 on Fashion-MNIST with one-cycle Adam, batch 125 and 10 epochs, "
    "n = {n} seeds. The intervals are about other seeds on this one test set. They say nothing "
    "about other networks, other data or longer training."
)
_NO_GAIN = (
    " This does not show that there is no gain under the paper's recipe (100 epochs at batch 1000 "
    "and rate 0.1)."
)


def answer_of(e1: Analysis) -> str:
    """A paragraph, and the table of the primary contrasts in the words of the protocol."""
    if e1.missing or e1.model is None:
        done = len(e1.accuracies)
        return (
            f"**No answer yet.** E1 has {done} of its {done + len(e1.missing) + len(e1.failed)} "
            "runs. The page makes no claim before all are there; what follows is what was found so "
            "far."
        )
    primary = dict(zip(PRIMARY, e1.findings, strict=False))
    rows = []
    for name, finding in primary.items():
        _, question = PRIMARY[name]
        contrast, p_value = finding.contrast, finding.adjusted
        row = [f"{name}. {question}", finding.title, _published(finding, "fashion_mnist")]
        if contrast is None or p_value is None:
            rows.append([*row, "its runs failed", *["–"] * 3])
            continue
        rows.append(
            [
                *(*row, bracket(contrast.estimate, contrast.interval())),
                *(p_number(p_value), f"{contrast.detectable():.2f}"),
                verdict(contrast, p_value) + disagreement(finding),
            ]
        )
    heads = [
        *("", "difference", "the paper", "here, 95 % interval, in points", "p (Holm)"),
        *(DETECTABLE, "conclusion, in the protocol's words"),
    ]
    n = len({seed for _, seed in e1.accuracies})
    paragraph = f"**Does FlexPool help? {_summary(primary)}** {_LIMITS.format(n=n)}"
    paragraph += _NO_GAIN * (not _significant(primary, 1))
    if e1.failed:
        paragraph += f" Failed runs, which are not in these numbers: {cells(e1.failed)}."
    return f"{wrapped(paragraph)}\n\n{markdown_table(heads, rows)}"


def _summary(primary: Mapping[str, Finding]) -> str:
    """Two sentences: whether a gain or a loss is shown; how large FlexPool's difference is."""
    gains, losses = _significant(primary, 1), _significant(primary, -1)
    shown = [
        f"{what} is shown for {_and(names)}"
        for what, names in (("a gain", gains), ("a loss", losses))
        if names
    ]
    contrasts = {name: f.contrast for name, f in primary.items() if f.contrast is not None}
    reach = [name for name, contrast in contrasts.items() if contrast.interval()[1] >= CLAIMED]
    claimed = "1 point, the lower end of the paper's claim of 1 to 3 points"
    size = (
        f"the interval of {'each of ' * (len(reach) > 1)}{_and(reach)} below reaches {claimed}"
        if reach
        else f"no interval of the comparisons {_and([*contrasts])} below reaches {claimed}"
    )
    first = (
        f"FlexPool differs from average pooling by {points(contrasts['P1'])}"
        if "P1" in contrasts
        else "The runs of P1 failed"
    )
    significant = [
        f"{name} ({signed(contrast.estimate)})"
        for name, contrast in contrasts.items()
        if name in gains + losses
    ]
    verb = "is" if len(significant) < 2 else "are"
    return (
        f"Under this recipe {' and '.join(shown) or 'no gain is shown'}. {first}, and {size}; "
        f"after Holm's correction {_and(significant) or 'none of them'} {verb} significant."
    )


def _significant(primary: Mapping[str, Finding], sign: int) -> list[str]:
    """The primary contrasts of a sign that are significant after Holm's correction."""
    return [
        name
        for name, finding in primary.items()
        if finding.contrast is not None
        and finding.is_significant
        and sign * finding.contrast.estimate > 0
    ]


def _and(names: Sequence[str]) -> str:
    """Lists names in words, e.g. "P1, P2 and P3"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def other_experiments(
    evidence: Evidence, analyses: Sequence[Analysis], slopes: Mapping[str, Slope]
) -> list[str]:
    """The list of the experiments beside E1 of which all runs are there, and its first line."""
    items = [
        _item(analysis)
        for analysis in analyses
        if analysis.experiment.title in _ABOUT and not analysis.missing and not analysis.failed
    ]
    if not evidence.missing(*LENGTHS.values()):
        *lengths, longest = map(str, LENGTHS)
        head = (
            "**Training length, on Fashion-MNIST (E6)**, n = 3 seeds after each of "
            f"{', '.join(lengths)} and {longest} epochs. Prediction M6: if FlexPool makes early "
            "progress faster, the difference falls with longer training."
        )
        changes = [
            _change(column, slope, analyses)
            for column, slope in slopes.items()
            if slope.contrast is not None and len(slope.differences) == 3 * len(LENGTHS)
        ]
        if changes:
            items.append(_list(head, changes))
    intro = "Smaller experiments. They suggest hypotheses; they do not support claims:"
    return [wrapped(intro), *items] if items else []


def _change(column: str, slope: Slope, analyses: Sequence[Analysis]) -> str:
    """A column's mean differences to `avg` after each length, and the slope over the lengths."""
    assert slope.contrast is not None
    *means, last = (signed(found.mean) for found in slope.by_length.values())
    # Those after 10 epochs are of E1's seeds 0 to 2, for which the protocol has no test.
    tested = {design: str(epochs) for epochs, design in LENGTHS.items() if design != "e1"}
    significant = [
        tested[design]
        for analysis in analyses
        for design in analysis.experiment.designs
        for finding in analysis.findings
        if design in tested and finding.weights == minus(column, "avg") and finding.is_significant
    ]
    return (
        f"`{column}` − `avg` is {', '.join(means)} and {last} points. "
        f"Of those after {_and([*tested.values()])} epochs, significant after Holm's correction: "
        f"{_and(significant) or 'none'}. The slope of a straight line over log₂(epochs) is "
        f"{points(slope.contrast)} for each doubling of the epochs, "
        f"{p_text(slope.contrast.p_value)} without correction." + slope_disagreement(slope)
    )


def _item(analysis: Analysis) -> str:
    """An item of the list: what was compared, and below it the differences."""
    title = analysis.experiment.title
    about, dataset = _ABOUT[title]
    # A difference of differences is in the experiment's own table alone.
    shown = [finding for finding in analysis.findings if len(finding.weights) == 2]
    head = f"**{about}**, n = {len({seed for _, seed in analysis.accuracies})} seeds."
    if title == E5:
        dropout = analysis.model.contrast(minus("avg+dropout", "avg")) if analysis.model else None
        assert dropout is not None
        head += (
            f" Dropout alone changes average pooling by {points(dropout)}, so a difference to a "
            "baseline without dropout is about two changes at once. FlexPool without dropout is "
            "E7."
        )
    if title == E4:
        shown = [finding for finding in shown if finding.is_significant]
        power = max(f.contrast.detectable() for f in analysis.findings if f.contrast is not None)
        head += (
            f" Of the {len(analysis.findings)} differences of a control to `flexpool` or `avg`, "
            f"{len(shown) or 'none'} {'is' if len(shown) < 2 else 'are'} significant after Holm's "
            f"correction; the detectable difference is {power:.2f} points."
        )
    return _list(head, [_sentence(finding, dataset) for finding in shown])


def _list(head: str, entries: Iterable[str]) -> str:
    """An item of a Markdown list that has a list of its own."""
    return "\n".join([wrapped(head, "- "), *(wrapped(entry, "  - ") for entry in entries)])


def _sentence(finding: Finding, dataset: str) -> str:
    """A difference with its interval, the paper's difference, and whether it is significant."""
    contrast, published = finding.contrast, _published(finding, dataset)
    assert contrast is not None
    p_value, how = contrast.p_value, "without correction"
    if finding.adjusted is not None:
        p_value, how = finding.adjusted, "after Holm's correction"
    text = f"{finding.title}: {points(contrast)}, {p_text(p_value)} {how}"
    text += "." if published == "not given" else f". The paper: {published}."
    if not finding.is_significant:
        text += f" Detectable difference: {contrast.detectable():.2f}."
    return text + disagreement(finding)


def _published(finding: Finding, dataset: str) -> str:
    """The paper's difference; its columns are those of the runs but for `avg+dropout`."""
    published = dict(zip(_PAPER_COLUMNS, paper.TABLE_1[dataset], strict=True))
    with_sac = zip(_PAPER_COLUMNS, paper.TABLE_2[dataset], strict=True)
    published |= {f"{column}+sac": accuracy for column, accuracy in with_sac}
    if not finding.weights.keys() <= published.keys():
        return "not given"
    return signed(sum(weight * published[c] for c, weight in finding.weights.items()))
