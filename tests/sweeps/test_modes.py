"""`--mode=sweep` and `--mode=report` on the command line: mistakes cost one line."""

import re

import pytest

import launch
from tests.sweeps.conftest import small_sweep

SWEEP = "--config=configs/paper_tables.py"
ONE_CELL = ("--mode=sweep", SWEEP, "--config.columns=avg", "--config.sac=off", "--config.seeds=0")
MISTAKES = [
    (["--mode=sweep", SWEEP, "--workdir={file}"], ["is a file"]),
    (["--mode=sweep", SWEEP, "--workdir={new}", "--config.model=vgg11"], ['"model=VALUE"']),
    (["--mode=sweep", SWEEP, "--workdir={new}", "--config.seeds=a"], ["config.seeds='a'"]),
    (["--mode=sweep", SWEEP, "--workdir={new}", "--config.overrides=x=1"], ["cifar10/avg/seed-0"]),
    (["--mode=sweep", SWEEP, "--workdir={new}", "--shard=2/2"], ["--shard=2/2", "0 to N - 1"]),
    (
        [*ONE_CELL, "--workdir={new}", "--config.datasets=image_folder"],
        ["image_folder/avg/seed-0: image_folder needs the folder of the images"],
    ),
    (
        [
            *(*ONE_CELL, "--workdir={new}", "--config.datasets=npz"),
            "--config.overrides=dataset.raw_dir=nowhere",
        ],
        [
            "npz/avg/seed-0: npz needs a file: --config.dataset.raw_dir=FILE.npz; there is no file",
            "nowhere",
        ],
    ),
    (
        ["--mode=report", SWEEP, "--workdir={new}", "--shard=0/2"],
        ["--shard=0/2 is a flag of --mode=sweep"],
    ),
    (["--mode=report", "--workdir={new}", "--config=configs/digits.py"], ["configs/paper_tables"]),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_mistake_costs_one_line_and_nothing_is_written(arguments, words, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    names = {"new": tmp_path / "new", "file": tmp_path / "file"}
    assert launch.main([argument.format(**names) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"launch\.py: .+\n", output.err)
    for word in words:
        assert word in output.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_report_names_what_it_skipped(write_sweep, capsys):
    folder = write_sweep(small_sweep(num_epochs=1, seeds=(0, 1)), lambda cell: 0.9)
    (folder / "digits/avg/seed-1/result.json").write_text("{")
    assert launch.main(["--mode=report", f"--workdir={folder}"]) == 0
    output = capsys.readouterr()
    assert re.fullmatch(r"skipped: digits/avg/seed-1/result.json is damaged: .+\n", output.err)
    report = folder / "report"
    assert output.out == f"see {report / 'index.html'} or {report / 'report.md'}\n"


def test_report_on_a_sweep_does_not_ask_for_its_data(write_sweep, tmp_path, capsys):
    folder = write_sweep(small_sweep(num_epochs=1, columns=("avg",)), lambda cell: 0.9)
    overrides = f"--config.overrides=dataset.raw_dir={tmp_path / 'missing.npz'}"
    command = [SWEEP, "--config.datasets=npz", overrides, f"--workdir={folder}"]
    assert launch.main(["--mode=report", *command]) == 0
    assert launch.main(["--mode=sweep", *command]) == 2
    assert "missing.npz" in capsys.readouterr().err


def test_report_on_a_single_run_leaves_its_config_alone(write_sweep, capsys):
    folder = write_sweep(small_sweep(num_epochs=1, columns=("avg",)), lambda cell: 0.9)
    assert launch.main(["--mode=report", f"--workdir={folder / 'digits/avg/seed-0'}"]) == 0
    assert "90.00 (n = 1" in (folder / "digits/avg/seed-0/report/report.md").read_text()
