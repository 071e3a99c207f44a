"""What benchmarks/gpu.sh would run on a borrowed machine is what it says, and can be run."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs import paper_tables
from flexpool_jax import source
from flexpool_jax.sweeps import grid

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def gpu(tmp_path, *arguments, **variables):
    given = {"PYTHON": sys.executable, "WORK": str(tmp_path / "work"), **variables}
    environment = {**os.environ, **given}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True)


def commands(tmp_path, part):
    done = gpu(tmp_path, part, DRY_RUN="1")
    assert (done.returncode, list(tmp_path.iterdir())) == (0, [])
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_tables_are_sixteen_cells_a_seed_in_the_papers_setting(tmp_path):
    (command,) = commands(tmp_path, "tables")
    flags = dict(word.split("=", 1) for word in command if word.startswith("--"))
    assert flags["--config"] == "configs/paper_tables.py"
    config = paper_tables.get_config()
    config.datasets = tuple(flags["--config.datasets"].split(","))
    config.seeds = tuple(int(seed) for seed in flags["--config.seeds"].split(","))
    config.overrides = flags["--config.overrides"]
    cells = grid.expand(config, ROOT / "configs", reads_data=False)
    assert [cell.config.seed for cell in cells] == [0] * 16 + [1] * 16 + [2] * 16
    for cell in cells:
        training = cell.config
        assert (training.num_epochs, training.batch_size) == (100, 1000)
        assert (training.optimizer.name, training.learning_rate) == ("adam", 0.1)


@pytest.mark.parametrize("part", ["check", "bench"])
def test_programs_of_a_part_exist(tmp_path, part):
    programs = [command[2] for command in commands(tmp_path, part) if command[1] == "-m"]
    assert programs
    assert all(importlib.util.find_spec(program) for program in programs)


def test_wheels_have_versions_in_the_requirements():
    (names,) = re.findall(r"^WHEELS=\((.*?)\)", SCRIPT.read_text(), re.M | re.S)
    requirements = (ROOT / "requirements-cpu.txt").read_text()
    missing = [n for n in names.split() if not re.search(rf"^{n}==", requirements, re.M)]
    assert names.split()
    assert not missing


def test_sources_other_than_the_packed_ones_are_refused(tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "source.json").write_text('{"commit": null, "source_hash": "0"}')
    done = gpu(tmp_path, "setup", str(packed))
    assert done.returncode == 1
    assert "are not those that were packed" in done.stderr


def test_a_benchmark_that_fails_does_not_stop_the_others(tmp_path):
    packed, python, site = (tmp_path / name for name in ("packed", "python", "site"))
    packed.mkdir()
    (packed / "source.json").write_text(json.dumps({"source_hash": source.source_hash()}))
    python.write_text(
        f"""#!/bin/sh
        case "$*" in
          "-m benchmarks.train_step "*) exit 1 ;;
          "-m benchmarks."*) echo "$PYTHONPATH" ;;
          "launch.py "*) ;;
          *) exec {sys.executable} "$@" ;;
        esac"""
    )
    python.chmod(0o755)
    given = {"PYTHON": str(python), "TINY": "1", "PYTHONPATH": str(site)}
    done = gpu(tmp_path, "bench", str(packed), **given)
    assert done.returncode == 1
    tables = {path.stem: path.read_text() for path in (tmp_path / "work" / "out").glob("*.md")}
    assert set(tables) == {"evaluation", "epoch", "epoch_bfloat16"}
    # A wheel that the user installed is found, too.
    assert str(site) in tables["epoch"].strip().split(":")


@pytest.mark.parametrize("arguments", [(), ("benhc",), ("setup", "nowhere")])
def test_call_that_cannot_be_meant(tmp_path, arguments):
    done = gpu(tmp_path, *arguments)
    assert done.returncode == 2
    assert "gpu.sh pack" in done.stderr
