"""The results of docs/evidence.md: recomputed from predictions, and written from simulated runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from evidence.contrasts import (
    E1,
    EXPERIMENTS,
    Finding,
    Prediction,
    Slope,
    agreement,
    analyse,
    slope_over_length,
    verdict,
)
from evidence.experiments import slopes_in_words
from evidence.model import Contrast
from evidence.page import MARKER, README_MARKERS, write_page
from evidence.runs import read_evidence, read_probes
from evidence.words import disagreement
from flexpool_jax.errors import UserError
from flexpool_jax.report.analysis import Estimate, estimate
from tests.evidence.simulated import SOURCE, write_evidence

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/evidence.md"
RESULTS = ROOT / "results/evidence"
COLUMNS = ("avg", "avg+dropout", "flexpool", "flexpool+reg", "flexpool+reg+dropout")


def accuracies_from_predictions(e1):
    """Accuracy in per cent by column and seed, from nothing but predictions.npz."""
    found = {}
    for path in sorted(e1.glob("*/*/seed-*/predictions.npz")):
        column = re.sub(r"\+learning_rate=[^+]*", "", path.parts[-3])
        with np.load(path) as arrays:
            correct = arrays["predictions"] == arrays["labels"]
        found.setdefault(column, {})[int(path.parts[-2].removeprefix("seed-"))] = (
            100 * correct.mean()
        )
    return found


def section(text, title):
    """The rows of the tables of one section."""
    body = text.partition(f"### {title}\n")[2].partition("\n### ")[0]
    lines = [line for line in body.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def check_e1_table(page, e1):
    found = accuracies_from_predictions(e1)
    rows = {row[0].strip("`"): row for row in section(page.read_text(), E1)}
    for column, by_seed in found.items():
        values = list(by_seed.values())
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else None
        shown = f"± {half:.2f}" if half is not None else "(no interval)"
        assert rows[column][1:3] == [f"{np.mean(values):.2f} {shown}", str(len(values))]
    assert set(found) == set(rows) & set(COLUMNS)


def test_table_of_e1_is_what_its_predictions_say():
    assert len(list(RESULTS.glob("e1/**/predictions.npz"))) == 30
    check_e1_table(PAGE, RESULTS / "e1")


def without_bootstrap(text):
    """The words of a page without the bootstrap's intervals and what is said of the checks."""
    text = re.sub(r" \(As [^)]*zero\.\)", "", " ".join(text.split()))
    return re.sub(r"\| \[[^]]*\] (?=\| \[)", "| ", text)


# Few draws show everything but the bootstrap's intervals.
@pytest.mark.parametrize("draws", [20, pytest.param(10_000, marks=pytest.mark.slow)])
def test_page_and_readme_are_what_the_committed_runs_say(tmp_path, draws):
    is_whole = draws == 10_000
    (tmp_path / "docs").mkdir()
    pages = ("docs/evidence.md", "README.md")
    for name in pages:
        shutil.copy(ROOT / name, tmp_path / name)
    page, readme = (tmp_path / name for name in pages)
    _, *left_out = write_page(RESULTS, page, readme=readme, draws=draws)
    assert left_out == []
    for name in pages:
        found, expected = ((folder / name).read_text() for folder in (tmp_path, ROOT))
        if is_whole:
            assert found == expected, name
        else:
            assert without_bootstrap(found) == without_bootstrap(expected), name
    drawn = [] if is_whole else ["bootstrap_low", "bootstrap_high"]
    for name, dropped in (("runs", []), ("contrasts", drawn)):
        found, expected = (
            pd.read_csv(folder / f"docs/evidence/{name}.csv").drop(columns=dropped)
            for folder in (tmp_path, ROOT)
        )
        pd.testing.assert_frame_equal(found, expected, rtol=1e-8)
    assert len(pd.read_csv(tmp_path / "docs/evidence/runs.csv")) == len(
        list(RESULTS.glob("*/*/*/seed-*/result.json"))
    )


def test_readme_shows_the_answer_of_the_page():
    answer = PAGE.read_text().partition("## Results\n\n")[2].partition("\n\n![")[0]
    start, end = README_MARKERS
    assert f"{start}\n\n{answer}\n\n{end}" in (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with simulated results of most designs, and the page written from them."""
    folder = tmp_path_factory.mktemp("simulated")
    write_evidence(folder / "results", ("e0", "e0_paper", "e1", "e4", "e6_2", "e6_5", "e6_20"))
    shutil.copy(PAGE, folder / "evidence.md")
    write_page(folder / "results", folder / "evidence.md", draws=200)
    return folder


@pytest.fixture
def small(written, tmp_path):
    """A copy of the simulated results of E0 and E1 alone, for a test to change."""
    for name in ("e0", "e1"):
        shutil.copytree(written / "results" / name, tmp_path / "results" / name)
    shutil.copy(PAGE, tmp_path / "evidence.md")
    return tmp_path


def text_of(folder):
    write_page(folder / "results", folder / "evidence.md", draws=20)
    return (folder / "evidence.md").read_text().partition(MARKER)[2]


def test_simulated_table_of_e1_is_what_its_predictions_say(written):
    check_e1_table(written / "evidence.md", written / "results/e1")


def test_answer_is_the_model_in_the_words_of_the_protocol(written):
    found = accuracies_from_predictions(written / "results/e1")
    table = np.array([[found[column][seed] for seed in range(6)] for column in COLUMNS])
    residuals = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    sd = np.sqrt((residuals**2).sum() / 20)
    half = stats.t.ppf(0.975, 20) * sd * np.sqrt(2 / 6)
    answer, table_of_primary = (
        (written / "evidence.md").read_text().partition("## Results\n\n")[2].split("\n\n")[:2]
    )
    words = {
        ("flexpool", "avg"): "It helps, by less than claimed.",
        ("flexpool+reg", "flexpool"): "The two are equivalent within 0.5 points.",
        ("flexpool+reg+dropout", "avg+dropout"): "It helps, by the claimed size.",
    }
    rows = [line.strip("|").split(" | ") for line in table_of_primary.splitlines()[2:]]
    for ((column, baseline), expected), row in zip(words.items(), rows, strict=True):
        difference = table[COLUMNS.index(column)].mean() - table[COLUMNS.index(baseline)].mean()
        assert row[1] == f"`{column}` − `{baseline}`"
        assert expected in row[6]
        assert row[3] == f"{difference:+.2f} [{difference - half:+.2f}, {difference + half:+.2f}]"
    assert [row[2] for row in rows] == ["+0.97", "+1.13", "not given"]
    answer = " ".join(answer.split())
    assert "Under this recipe a gain is shown for P1 and P3. FlexPool differs from" in answer
    assert (
        "P3 below reaches 1 point, the lower end of the paper's claim of 1 to 3 points;" in answer
    )
    assert re.search(r" P1 \(\+0\.\d\d\) and P3 \(\+1\.\d\d\) are significant\.\*\* ", answer)
    assert "n = 6 seeds" in answer
    assert (
        f"residual deviation {sd:.3f} points with 20 degrees"
        in (written / "evidence.md").read_text()
    )


@pytest.mark.parametrize(
    ("effects", "shown", "reaches", "significant"),
    [
        (
            {},
            "no gain is shown.",
            "no interval of the comparisons P1, P2 and P3 below reaches 1 point,",
            "none of them is",
        ),
        (
            {"flexpool": 1.2, "flexpool+reg": 3},
            "a gain is shown for P1 and P2.",
            "the interval of each of P1 and P2 below reaches 1 point,",
            "P1 (+1.",
        ),
        (
            {"flexpool": 0.6, "avg+dropout": 0.6},
            "a gain is shown for P1 and a loss is shown for P2 and P3.",
            "no interval of the comparisons P1, P2 and P3 below reaches 1 point,",
            "P1 (+0.",
        ),
        (
            {"avg+dropout": 0.6},
            "a loss is shown for P3.",
            "no interval of the comparisons P1, P2 and P3 below",
            "P3 (-0.",
        ),
    ],
)
def test_first_sentence_answers_the_question(small, effects, shown, reaches, significant):
    write_evidence(small / "results", ("e1",), effects=effects, sd=0.1)
    answer = " ".join(text_of(small).split("\n\n")[2].split())
    assert answer.startswith(f"**Does FlexPool help? Under this recipe {shown} FlexPool differs")
    assert f", and {reaches}" in answer
    assert f"; after Holm's correction {significant}" in answer
    assert ("does not show that there is no gain" in answer) is ("a gain is" not in answer)


def test_page_says_how_many_runs_have_not_been_probed(small):
    assert "have been probed" not in text_of(small)
    (small / "results/e1/fashion_mnist/flexpool/seed-3/probe.json").unlink()
    text = text_of(small)
    assert text.count(" 29 of E1's 30 runs have been probed; the others are not") == 1
    rows = section(text, "Weights")
    assert rows[0][1:] == [f"`{column}`" for column in COLUMNS if "flexpool" in column]
    found = [
        np.load(small / f"results/e1/fashion_mnist/flexpool/seed-{seed}/pool_weights.npz")
        for seed in range(6)
    ]
    numbers = []
    for w in (arrays["head/pool/w_fp"].astype(float) for arrays in found):
        sums, v = w.sum((0, 1)), w - w.mean((0, 1))
        eigenvalues = np.linalg.eigvalsh(np.einsum("ijk,ijl->kl", v, v))
        mirror = np.corrcoef(v.ravel(), v[:, ::-1].ravel())[0, 1]
        share = np.sum(v**2) / np.sum(w**2)
        rank_one = eigenvalues[-1] / eigenvalues.sum()
        numbers.append((sums.mean(), sums.std(), np.mean(w < 0), share, mirror, rank_one))
    assert rows[1][0] == "mean of the channel sums"
    for row, values in zip(rows[1:7], np.transpose(numbers), strict=True):
        half = stats.t.ppf(0.975, 5) * stats.sem(values)
        assert row[1] == f"{np.mean(values):+.2f} ± {half:.2f} (n = 6)", row[0]
    assert rows[-1][1] == "–"  # The simulated mean activation is the same everywhere.


def test_contrasts_without_runs_count_in_holms_correction(small):
    write_evidence(small / "results", ("e5",))
    text = text_of(small)
    rows = [row for row in section(text, EXPERIMENTS[1].title) if "−" in row[0]]
    assert [row[1] for row in rows[2:]] == ["runs are missing"] * 2
    evidence = read_evidence(small / "results")
    found = analyse(evidence, EXPERIMENTS[1], draws=20).findings
    raw = [one.contrast.p_value for one in found[:2]]
    smaller, larger = sorted(raw)
    expected = {smaller: min(1, 4 * smaller), larger: min(1, max(4 * smaller, 3 * larger))}
    assert [one.adjusted for one in found] == pytest.approx([*map(expected.get, raw), None, None])
    # No cell of these columns is missing, so both analyses have the same estimate.
    for one in found[:2]:
        assert one.paired.mean == pytest.approx(one.contrast.estimate)
    remark = "With three seeds it also understates the spread over seeds"
    assert text.count(remark) == 1
    assert remark in text.partition("### E0")[0]  # Before the first table of contrasts.


def items_of(text):
    """The items of the answer's list by their heads in bold, each item in one line."""
    answer = text.partition("## Results\n\n")[2].partition("\n\n![")[0]
    items = [" ".join(part.split()) for part in answer.split("\n\n") if part.startswith("- **")]
    return {item.split("**")[1]: item for item in items}


def test_answer_has_the_results_on_other_data_once_they_are_whole(small):
    write_evidence(small / "results", ("e5", "e5_sac"))
    (item,) = items_of(text_of(small)).values()
    e5 = [accuracies_from_predictions(path) for path in sorted((small / "results").glob("e5*"))]
    mean = {column: np.mean(list(values.values())) for one in e5 for column, values in one.items()}
    assert len(mean) == 5
    assert (
        f"Dropout alone changes average pooling by {mean['avg+dropout'] - mean['avg']:+.2f}" in item
    )
    for sac, published in (("", "+2.05"), ("+sac", "+3.88")):
        difference = mean[f"flexpool+reg+dropout{sac}"] - mean[f"avg{sac}"]
        found = item.partition(f"`flexpool+reg+dropout{sac}` − `avg{sac}`: ")[2]
        assert found.startswith(f"{difference:+.2f} points (95 % interval")
        test = r"[^)]*\), p [<=] [\d.]+ after Holm's correction\. "
        assert re.match(test + re.escape(f"The paper: {published}."), found.partition(" (")[2])
    shutil.rmtree(small / "results/e5_sac/tiny_imagenet/avg+sac/seed-2")
    assert not items_of(text_of(small))


def test_added_runs_without_dropout_are_compared_with_e5s_and_make_no_claim(small):
    write_evidence(small / "results", ("e5", "e5_sac", "e7"))
    text = text_of(small)
    item = items_of(text)["The same without dropout, added after E5's results were known (E7)"]
    mean = {
        column: np.mean(list(values.values()))
        for name in ("e5", "e7")
        for column, values in accuracies_from_predictions(small / "results" / name).items()
    }
    without = mean["flexpool+reg"] - mean["avg"]
    assert f"`flexpool+reg` − `avg`: {without:+.2f} points (95 % interval" in item
    assert re.search(r"\), p [<=] [\d.]+ without correction\. The paper: \+1\.61\.", item)
    (title,) = (one.title for one in EXPERIMENTS if one.designs == ("e7",))
    with_dropout = mean["flexpool+reg+dropout"] - mean["avg+dropout"]
    (row,) = (row for row in section(text, title) if row[0].startswith("(`flexpool+reg+dropout`"))
    assert row[1].startswith(f"{with_dropout - without:+.2f} [")
    assert row[3] == "not in the family"
    shutil.rmtree(small / "results/e5/tiny_imagenet/avg/seed-2")
    assert not items_of(text_of(small))


def test_answer_has_the_controls_once_they_are_whole(small):
    write_evidence(small / "results", ("e4",), effects={"flexpool_shared": 2.0}, sd=0.1)
    (item,) = items_of(text_of(small)).values()
    assert "Of the 10 differences" in item
    assert "`flexpool_shared` − `avg`: +" in item
    assert "`channel_scale` − `avg`" not in item  # Not significant.
    (small / "results/e4/fashion_mnist/flatten/seed-1/result.json").unlink()
    assert not items_of(text_of(small))


def test_answer_has_the_training_length_once_all_lengths_are_there(written):
    page = (written / "evidence.md").read_text()
    assert "`flexpool` − `avg`, seeds 0 to 2, 12 of 12 pairs: slope" in page
    items = items_of(page)
    assert list(items) == [
        "Controls that change one property of FlexPool, on Fashion-MNIST (E4)",
        "Training length, on Fashion-MNIST (E6)",
    ]
    item = [*items.values()][1]
    assert "n = 3 seeds after each of 2, 5, 10 and 20 epochs." in item
    change = (
        r"`flexpool` − `avg` is ([+-]\d\.\d\d, ){2}[+-]\d\.\d\d and [+-]\d\.\d\d points\. "
        r"Of those after 2, 5 and 20 epochs, significant after Holm's correction: [^.]*\. "
        r"The slope of a straight line over log₂\(epochs\) is "
        r"[+-]\d\.\d\d points \(95 % interval [^)]*\) for each doubling of the epochs, p"
    )
    assert re.search(change, item)


def test_answer_says_which_differences_are_not_significant(small):
    write_evidence(small / "results", ("e6_sgd",), effects={"flexpool": 0.0}, sd=0.3)
    (item,) = items_of(text_of(small)).values()
    insignificant = (
        r"p = [01]\.\d+ after Holm's correction\. The paper: \+0\.97\. Detectable difference: \d"
    )
    assert re.search(r"`flexpool` − `avg`: [^)]*\), " + insignificant, item)


def test_page_says_that_there_is_nothing_to_explain_without_a_difference(small):
    sentence = "No primary contrast of E1 is significant, so there is no effect to explain."
    assert sentence not in text_of(small)
    write_evidence(small / "results", ("e1",), effects={}, sd=0.1)
    assert sentence in text_of(small)


def test_unfinished_experiments_agree_with_no_prediction(small):
    write_evidence(small / "results", ("e4",))
    whole = section(text_of(small), "Which part of it")
    (small / "results/e4/fashion_mnist/flatten/seed-1/result.json").unlink()
    rows = section(text_of(small), "Which part of it")
    agrees = {row[1]: row[4] for row in rows if row[0] == "M2"}
    assert set(agrees.values()) == {"runs are missing"}
    assert "runs are missing" not in {row[4] for row in whole if row[0] == "M2"}


def test_slope_is_for_each_doubling_of_the_epochs_over_the_seeds_of_all_lengths(written):
    evidence = read_evidence(written / "results")
    slope = slope_over_length(evidence, "flexpool")
    found = [
        accuracies_from_predictions(written / "results" / name)
        for name in ("e6_2", "e6_5", "e1", "e6_20")
    ]
    table = [[one["flexpool"][seed] - one["avg"][seed] for one in found] for seed in range(3)]
    centred = np.log2([2, 5, 10, 20]) - np.log2([2, 5, 10, 20]).mean()
    slopes = table @ centred / (centred @ centred)
    assert slope.contrast.estimate == pytest.approx(slopes.mean())
    assert (slope.contrast.df, len(slope.differences)) == (8, 12)
    t_test = stats.ttest_1samp(slopes, 0)
    assert slope.by_seed.p_value == pytest.approx(t_test.pvalue)
    assert slope.by_seed.interval == pytest.approx(tuple(t_test.confidence_interval()))
    assert list(slope.by_length) == [2, 5, 10, 20]
    means = [one.mean for one in slope.by_length.values()]
    assert means == pytest.approx(np.mean(table, axis=0))
    assert not evidence.missing("e6_2", "e6_5", "e1", "e6_20")
    del evidence.designs["e6_5"].runs["avg", 2]
    assert evidence.missing("e6_5")


def test_a_check_of_the_slope_that_disagrees_is_named():
    slopes = {"flexpool": Slope(Contrast(-0.2, 0.07, 8), {}, estimate([-0.1, -0.2, -0.3]))}
    (sentence,) = slopes_in_words(slopes)
    assert sentence.endswith("the seeds' own slopes contains zero: -0.45 to +0.05.)")
    agreeing = {"flexpool": Slope(Contrast(-0.2, 0.07, 8), {}, estimate([-0.19, -0.2, -0.21]))}
    assert slopes_in_words(agreeing)[0].endswith("8 degrees of freedom.")


def test_predictions_paired_by_seed_have_the_sign_that_their_titles_say(small):
    write_evidence(small / "results", ("e6_sgd",), effects={"flexpool": -1.0})
    for seed in range(6):
        path = small / f"results/e1/fashion_mnist/flexpool/seed-{seed}/probe.json"
        probe = json.loads(path.read_text())
        for entry in probe["perturbations"]:
            if entry.get("pixels") == 4:
                entry["accuracy"] -= 0.01 * (1 + seed)
        path.write_text(json.dumps(probe))
    text = text_of(small)
    sgd, adam = (accuracies_from_predictions(small / "results" / e) for e in ("e6_sgd", "e1"))
    under = [
        np.array([one["flexpool"][seed] - one["avg"][seed] for seed in range(3)])
        for one in (sgd, adam)
    ]
    rows = {row[1]: row[3:] for row in section(text, "Which part of it")}
    for title, values in {
        "`flexpool` − `avg`, under SGD − under Adam": under[0] - under[1],
        "change by a shift of 4 pixels, `flexpool` − `avg`": -np.arange(1.0, 7.0),
    }.items():
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        shown = f"{np.mean(values):+.2f} ± {half:.2f} (n = {len(values)})"
        assert rows[title] == [shown, "yes"]


def test_slope_over_some_of_the_lengths_agrees_with_no_prediction(small):
    write_evidence(small / "results", ("e6_2",))
    (row,) = (r for r in section(text_of(small), "Which part of it") if r[0] == "M6")
    assert "points" in row[3]
    assert row[4] == "runs are missing"


def test_cell_with_a_result_has_not_failed(small):
    cell = "e1/fashion_mnist/avg/seed-3"
    with pytest.raises(UserError, match=f"--failed={cell} has a result"):
        write_page(small / "results", small / "evidence.md", failed=[cell])


def test_disagreeing_checks_are_named_next_to_the_estimate():
    def remark(estimate, bootstrap, paired):
        checks = {"bootstrap": bootstrap, "paired": Estimate(estimate, paired, 6, 0.5)}
        return disagreement(Finding({}, Contrast(estimate, 0.1, 20), 0.5, **checks))

    assert remark(0.1, (-0.1, 0.3), 0.2) == ""
    assert remark(0.1, (-0.1, 0.3), 0.05) == (
        " (As a check, without correction, the interval of the paired t-test excludes zero.)"
    )
    assert remark(0.9, (-0.1, 0.3), 1) == (
        " (As checks, the intervals of the bootstrap and of the paired t-test contain zero.)"
    )


def test_page_keeps_the_protocol_and_is_the_same_when_written_again(written):
    before = (written / "evidence.md").read_bytes()
    write_page(written / "results", written / "evidence.md", draws=200)
    assert (written / "evidence.md").read_bytes() == before
    protocol = PAGE.read_text().partition(MARKER)[0].rstrip()
    assert before.decode().startswith(protocol)
    assert before.decode().count(MARKER) == 1


def test_readme_gets_the_answer_between_its_markers(written, tmp_path):
    readme = tmp_path / "README.md"
    start, end = README_MARKERS
    readme.write_text(f"before\n{start}\nold\n{end}\nafter\n")
    write_page(written / "results", written / "evidence.md", readme=readme, draws=200)
    results = (written / "evidence.md").read_text().partition("## Results\n\n")[2]
    answer = results.partition("\n\n![")[0]
    assert readme.read_text() == f"before\n{start}\n\n{answer}\n\n{end}\nafter\n"


def test_page_that_is_no_markdown_file_is_refused(small):
    notes = (small / "evidence.md").rename(small / "notes")
    with pytest.raises(UserError, match=r"notes is not an \.md file"):
        write_page(small / "results", notes, draws=20)


def test_no_rate_is_selected_if_all_runs_of_a_pool_diverged(small):
    shutil.rmtree(small / "results/e1")
    cells = sorted((small / "results/e0/fashion_mnist").glob("avg+*/seed-0"))
    failed = [str(cell.relative_to(small / "results")) for cell in cells]
    for cell in cells:
        (cell / "result.json").unlink()
    note = write_page(small / "results", small / "evidence.md", failed=failed, draws=20)[0]
    assert "no rate is selected yet" in note


def test_readme_without_markers_is_refused_before_anything_is_written(small):
    page, readme = small / "evidence.md", small / "README.md"
    before = page.read_bytes()
    readme.write_text("no markers\n")
    with pytest.raises(UserError, match="has no place for the answer"):
        write_page(small / "results", page, readme=readme, draws=20)
    assert (page.read_bytes(), readme.read_text()) == (before, "no markers\n")


def test_figures_are_pictures(written):
    names = {path.name for path in (written / "evidence").glob("*.png")}
    assert names == {"contrasts.png", "weights.png", "perturbations.png", "length.png"}
    for name in names:
        assert f"(evidence/{name})" in (written / "evidence.md").read_text()
        assert (
            np.asarray(Image.open(written / "evidence" / name).convert("L")) < 128
        ).mean() > 0.002


def test_designs_without_runs_say_so_and_make_no_claim(written):
    text = (written / "evidence.md").read_text()
    for experiment in EXPERIMENTS:
        without = experiment.designs[0] in ("e2", "e5", "e6_sgd", "e7")
        assert (f"\n- {experiment.title}\n" in text) is without
        assert (f"\n### {experiment.title}\n" in text) is not without
    assert "runs are missing" in text.partition("### Which part of it")[2]


def test_controls_are_analysed_with_e1s_columns_of_the_same_seeds(written):
    (title,) = (one.title for one in EXPERIMENTS if one.designs == ("e4",))
    rows = {row[0]: row for row in section((written / "evidence.md").read_text(), title)}
    assert rows["`flexpool`"][2] == "3"
    e4 = accuracies_from_predictions(written / "results/e4")
    e1 = accuracies_from_predictions(written / "results/e1")
    difference = np.mean([e4["gdconv"][seed] - e1["flexpool"][seed] for seed in range(3)])
    assert rows["`gdconv` − `flexpool`"][1].startswith(f"{difference:+.2f} [")


def test_note_names_the_selected_rates(written):
    note = write_page(written / "results", written / "evidence.md", draws=20)[0]
    assert "`avg=0.01,flexpool=0.01`" in note


def test_no_claim_before_e1_is_whole(small):
    (small / "results/e1/fashion_mnist/flexpool/seed-3/result.json").unlink()
    text = text_of(small)
    assert "**No answer yet.** E1 has 29 of its 30 runs." in text
    assert "It helps" not in text
    assert "with 19 degrees of freedom" in text
    assert "`flexpool` seed 3" in text


def test_no_claim_while_e1_has_too_few_seeds_for_its_residual_deviation(small):
    write_evidence(small / "results", ("e1",), sd=0.6)
    text = text_of(small)
    assert "**No answer yet.** E1 has 30 of its 50 runs." in text
    assert "above 0.248, so seeds 6 to 9 are added." in text
    write_evidence(small / "results", ("e1",), sd=0.6, seeds=tuple(range(10)))
    text = text_of(small)
    assert "**Does FlexPool help? " in text
    assert "n = 10 seeds" in text
    assert "with 36 degrees of freedom" in text


def test_seeds_that_the_stopping_rule_does_not_ask_for_do_not_count(small):
    before = text_of(small)
    write_evidence(small / "results", ("e1",), seeds=(7,))
    text = text_of(small)
    answer, left_out = text.split("\n\n![")[0], text.partition("that are not used")[2]
    assert answer == before.split("\n\n![")[0]
    assert left_out.count("the stopping rule does not ask for it") == len(COLUMNS)


def test_literal_recipe_that_diverged_is_a_result(small):
    names = read_evidence(small / "results").designs["e0_paper"].expected
    (name,) = (cell.name for (column, _), cell in names.items() if column.startswith("avg"))
    write_page(small / "results", small / "evidence.md", failed=[f"e0_paper/{name}"], draws=20)
    text = (small / "evidence.md").read_text()
    assert "it diverged. The paper's literal recipe does not train here." in text
    assert "Rate 0.1 at batch 1000: not run." not in text


def test_rate_at_which_a_run_diverged_is_not_selected(small):
    cell = "e0/fashion_mnist/avg+learning_rate=0.01/seed-1"
    (small / "results" / cell / "result.json").unlink()
    rates = read_evidence(small / "results", [cell]).rates
    assert rates["flexpool"] == 0.01
    assert rates["avg"] in (0.003, 0.03)


def test_images_behind_a_rate_are_those_of_all_its_seeds(written):
    e0 = read_evidence(written / "results").designs["e0"]
    assert {e0.images(column) for column in e0.columns} == {2 * 6000}


def test_seeds_have_the_same_images_unless_they_draw_them(small):
    for path in (small / "results").glob("e?/*/*/seed-*/result.json"):
        seed = int(path.parent.name.removeprefix("seed-"))
        digest = f"{path.parts[-5]} seed {seed}" if path.parts[-5] == "e0" or seed == 4 else "same"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data_digest": digest}))
    evidence = read_evidence(small / "results")
    assert evidence.designs["e0"].missing == []
    assert {seed for _, seed in evidence.designs["e1"].missing} == {4}


def test_nothing_counts_before_e0_has_selected_the_rates(small):
    (small / "results/e0/fashion_mnist/avg+learning_rate=0.03/seed-1/result.json").unlink()
    text = text_of(small)
    assert "E0 has 11 of 12 runs: no rate is selected yet." in text
    assert "E1 has 0 of its 30 runs" in text


def test_diverged_runs_are_counted_and_do_not_hold_the_answer_back(small):
    cell = "e1/fashion_mnist/avg/seed-3"
    (small / "results" / cell / "result.json").unlink()
    write_page(small / "results", small / "evidence.md", failed=[cell], draws=20)
    text = (small / "evidence.md").read_text()
    assert "**Does FlexPool help?" in text
    rows = {row[0]: row for row in section(text, E1)}
    assert rows["`avg`"][2:] == ["5", "–", "3"]
    (small / "results" / cell.replace("seed-3", "seed-1") / "result.json").unlink()
    evidence = read_evidence(small / "results", [cell.replace("seed-3", "seed-1")])
    (controls,) = (one for one in EXPERIMENTS if one.designs == ("e4",))
    evidence.designs["e4"].runs["gdconv", 0] = evidence.designs["e1"].runs["avg", 0]
    found = analyse(evidence, controls, draws=20)
    assert ("avg", 1) in found.failed
    assert not {("avg", seed) for seed in range(6)} & set(found.missing)
    with pytest.raises(UserError, match=r"did you mean e1/fashion_mnist/avg/seed-3"):
        write_page(small / "results", small / "evidence.md", failed=["e1/avg/seed-3"])


MARKS = {
    "source": ({"source_hash": "other"}, "its source_hash is other"),
    "sources": ({"source_hash": [SOURCE, "other"]}, "its source_hash is 00000000, other, not 0000"),
    "changed": (
        {"config_changes": [{"step": 7, "field": "learning_rate", "from": 0.1, "to": 0.2}]},
        "changed midway: learning_rate",
    ),
    "images": ({"data_digest": "other"}, "other images than most runs of its data set"),
}


@pytest.mark.parametrize("mark", MARKS)
def test_runs_that_do_not_count_are_marked_and_left_out(small, mark):
    fields, words = MARKS[mark]
    path = small / "results/e1/fashion_mnist/avg/seed-0/result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    text = text_of(small)
    assert "E1 has 29 of its 30 runs" in text
    assert words in text.partition("### Results that are not used")[2]


@pytest.mark.parametrize("field", ["step", "config_digest"])
def test_probe_of_another_checkpoint_does_not_count(small, field):
    path = small / "results/e1/fashion_mnist/flexpool/seed-0/probe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: 7}))
    probes = read_probes(read_evidence(small / "results").designs["e1"])
    assert 0 not in probes["flexpool"]
    assert len(probes["flexpool"]) == 5


def test_run_of_another_config_does_not_count(small):
    path = small / "results/e1/fashion_mnist/flexpool/seed-0/result.json"
    result = json.loads(path.read_text())
    result["config"]["learning_rate"] = 0.02
    path.write_text(json.dumps(result))
    evidence = read_evidence(small / "results")
    assert ("flexpool", 0) in evidence.designs["e1"].missing
    (line,) = evidence.left_out
    assert "learning_rate is 0.02, the protocol has 0.01" in line
    result["config"]["learning_rate"] = 0.01
    result["config"]["optimizer"]["kwargs"] = {"b1": 0.5}
    path.write_text(json.dumps(result))
    (line,) = read_evidence(small / "results").left_out
    assert "optimizer.kwargs are {'b1': 0.5}, the protocol has {}" in line


def test_predictions_that_contradict_the_result_are_refused(small):
    path = small / "results/e1/fashion_mnist/avg/seed-2/predictions.npz"
    with np.load(path) as arrays:
        np.savez(path, labels=arrays["labels"], predictions=arrays["labels"])
    with pytest.raises(UserError, match=r"seed-2/predictions.npz: its accuracy is not that"):
        text_of(small)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"seed-2/predictions.npz is damaged"):
        text_of(small)


@pytest.mark.parametrize(
    ("estimate", "p_value", "words"),
    [
        (1.5, 0.001, "It helps, by the claimed size."),
        (1.1, 0.001, "It helps; the claimed size is possible."),
        (0.5, 0.001, "It helps, by less than claimed."),
        (-0.5, 0.001, "It harms."),
        (0.1, 0.5, "No difference is shown; a gain of 1 point or more is excluded. The two are"),
        (0.4, 0.06, "No difference is shown; a gain of 1 point or more is excluded."),
        (0.9, 0.06, "Undecided."),
    ],
)
def test_verdicts_are_those_of_the_protocols_table(estimate, p_value, words):
    found = verdict(Contrast(estimate, 0.15, 20), p_value)
    assert found.startswith(words)
    assert ("equivalent" in found) == ("The two" in words)
    protocol = " ".join(PAGE.read_text().partition(MARKER)[0].split())
    assert found.partition(" The two")[0] in protocol


def test_predictions_agree_only_where_the_interval_does():
    below = Prediction("M4", {"gdconv": 1, "flexpool": -1}, "below")
    assert [below.agrees(Contrast(d, 0.1, 12)) for d in (-1, 0, 1)] == ["yes", "open", "no"]
    ends = ((-0.4, 0.2), (-0.6, 0.2), (-0.4, -0.2))
    assert [agreement("not below", interval) for interval in ends] == ["yes", "open", "no"]
    equal = Prediction("M2", {"channel_scale": 1, "flexpool": -1}, "equal")
    assert [equal.agrees(Contrast(d, 0.1, 12)) for d in (0, 0.5, 1)] == ["yes", "open", "no"]


def test_command_line_says_in_one_line_what_is_wrong(tmp_path):
    command = [sys.executable, "-m", "evidence", str(tmp_path)]
    done = subprocess.run(
        [*command, f"--page={tmp_path}/page.md"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert re.fullmatch(r"evidence: --page=\S+ does not exist.*\n", done.stderr)
