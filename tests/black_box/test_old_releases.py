"""A workdir that release 0.1 wrote is evaluated and trained on."""

import pytest

from tests.black_box.conftest import metrics, read_json, run_in_process


def test_it_evaluates_to_what_it_recorded(launcher, old_workdir):
    data_dir = f"--config.dataset.data_dir={launcher.data_dir}"
    done = run_in_process(f"--workdir={old_workdir}", "--mode=eval", data_dir)
    assert done.status == 0, done.output
    found, result = (read_json(old_workdir / f"{n}.json") for n in ("evaluation", "result"))
    assert found["accuracy"] == result["final_test_accuracy"]
    assert found["loss"] == pytest.approx(result["final_test_loss"], rel=1e-3)
    assert found["step"] == 33


def test_it_continues_where_it_is_given_more_epochs(launcher, old_workdir):
    done = run_in_process(
        f"--workdir={old_workdir}",
        "--config.num_epochs=4",
        f"--config.dataset.data_dir={launcher.data_dir}",
    )
    assert done.status == 0, done.output
    assert "step 33" in done.stderr
    assert [line["epoch"] for line in metrics(old_workdir, "test")] == [1.0, 2.0, 3.0, 4.0]
    assert read_json(old_workdir / "result.json")["epochs"] == 4
    assert read_json(old_workdir / "result.json")["final_test_accuracy"] > 0.9


def test_it_is_in_a_report(old_workdir):
    done = run_in_process("--mode=report", f"--workdir={old_workdir.parent}")
    assert done.status == 0, done.output
    assert "96.66" in (old_workdir.parent / "report/report.md").read_text()
