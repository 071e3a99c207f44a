"""What the program tells about itself."""

import re

import pytest

from tests.black_box.conftest import run_in_process, run_process

MODES = ["train", "eval", "prepare", "sweep", "report"]


def test_help_names_all_modes_and_flags():
    done = run_in_process("--help")
    assert done.status == 0
    assert done.stderr == ""
    for mode in MODES:
        assert re.search(rf"^\s*{mode}\b", done.stdout, re.MULTILINE), mode
    for name in ("--config", "--workdir", "--mode", "--step", "configs/default.py", "digits.py"):
        assert name in done.stdout


@pytest.mark.parametrize("flag", ["-h", "-help", "--helpshort", "--helpfull"])
def test_help_has_many_names(flag):
    done = run_in_process("--config=configs/digits.py", flag)
    assert done.status == 0
    assert "--workdir" in done.stdout


def test_version_is_printed():
    done = run_in_process("--version")
    assert done.status == 0
    assert re.search(r"\b\d+\.\d+\.\d+", done.stdout)


def test_the_script_runs_from_any_folder_and_exits_with_its_status(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, output = run_process("--config=configs/digits.py", "--workdir=new", "--mode=trian")
    assert status == 2
    assert "'train'" in output
    assert list(tmp_path.iterdir()) == []
