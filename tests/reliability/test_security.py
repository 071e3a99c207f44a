"""What the package must not do: run what it reads, unpickle, start a shell, write elsewhere."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import SMALL

CACHE = "JAX_COMPILATION_CACHE_DIR"
ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for pattern in ("launch.py", "flexpool_jax/**/*.py", "configs/*.py", "evidence/*.py")
    for path in ROOT.glob(pattern)
)

# Modules that build objects from bytes, run programs, or unpack archives without asking; and calls
# that turn text into code.
FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
    "pty", "popen2", "commands", "ctypes", "torch", "yaml",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    "system", "popen", "spawnl", "spawnv", "execv", "execve", "execl", "fork",
    "extractall", "unpack_archive", "mktemp", "read_pickle", "to_pickle",
}  # fmt: skip
# Where a rule is broken on purpose: a config is Python and is run, as docs/reliability.md says; a
# command may replace itself by the same command with another environment; and ctypes calls oneDNN,
# which comes as a package.
ALLOWED = {
    ("flexpool_jax/configuration/loading.py", "exec_module"),
    ("flexpool_jax/cpu/process.py", "execv"),
    ("flexpool_jax/cpu/onednn.py", "import ctypes"),
}


def faults(tree):
    """Yields line and reason for everything in a module's tree that must not be there."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module)):
                modules = [module]
            case _:
                modules = []
        for module in modules:
            if module.partition(".")[0] in FORBIDDEN_MODULES:
                yield node.lineno, f"import {module}"
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id=name) if name in FORBIDDEN_CALLS:
                yield node.lineno, name
            case ast.Attribute(attr=name) if name in FORBIDDEN_ATTRIBUTES:
                yield node.lineno, name
            case ast.Attribute(value=ast.Name(id="np"), attr="load"):
                safe = any(
                    keyword.arg == "allow_pickle"
                    and isinstance(keyword.value, ast.Constant)
                    and keyword.value.value is False
                    for keyword in node.keywords
                )
                if not safe:
                    yield node.lineno, "np.load without allow_pickle=False"
        for keyword in node.keywords:
            if keyword.arg == "shell":
                yield node.lineno, "shell"


def test_the_converter_of_pytorchs_files_runs_no_code_of_a_file():
    tree = ast.parse((ROOT / "scripts/convert_torch.py").read_bytes())
    calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (load,) = (call for call in calls if call.startswith("torch.load("))
    assert "weights_only=True" in load


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_no_eval_and_no_shell(path):
    name = str(path.relative_to(ROOT))
    found = [(name, what) for _, what in faults(ast.parse(path.read_bytes(), name))]
    assert set(found) <= ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import os; os.system('x')",
        "eval('x')",
        "exec('x')",
        "import numpy as np; np.load('x')",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "zipfile.ZipFile('x').extractall()",
        "run('x', shell=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(line):
    assert len(list(faults(ast.parse(line)))) == 1


def test_code_is_run_from_config_files_alone():
    runs_code = ("exec_module", "run_path", "execv")
    found = {
        (str(path.relative_to(ROOT)), node.attr)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Attribute) and node.attr in runs_code
    }
    assert found == {(path, what) for path, what in ALLOWED if what in runs_code}
    assert "`--config` is executed" in (ROOT / "docs" / "reliability.md").read_text()


# In a view of the file system of its own, all of which is read-only but three folders (and the
# devices, for /dev/null is written to). What follows the folders is run twice.
READ_ONLY = """
set -e
for folder in "$1" "$2" "$3"; do mount --bind "$folder" "$folder"; done
mount -o remount,bind,ro /
findmnt --noheadings --list --output TARGET | while read -r target; do
  case "$target" in /|/dev|/dev/*|/proc|/proc/*|/sys|/sys/*|"$1"|"$2"|"$3") ;;
  *) mount -o remount,bind,ro "$target" ;; esac
done
! touch "$4/probe" 2>/dev/null || { echo "not read-only"; exit 9; }
shift 4
"$@"
"$@" --mode=eval
"""


def may_mount():
    try:
        probe = ["unshare", "--mount", "mount", "--bind", "/tmp", "/tmp"]
        return subprocess.run(probe, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not may_mount(), reason="may not mount file systems")
def test_with_all_else_read_only_a_run_does_what_it_should(tmp_path):
    home = tmp_path / "home"
    folders = [tmp_path / "workdir", tmp_path / "data", Path(os.environ[CACHE])]
    for folder in (home, *folders):
        folder.mkdir(exist_ok=True)
    command = [
        sys.executable,
        str(ROOT / "launch.py"),
        *SMALL,
        "--config.tensorboard=True",
        f"--workdir={folders[0]}",
        f"--config.dataset.data_dir={folders[1]}",
    ]
    arguments = [*map(str, folders), str(tmp_path), *command]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=home,
        env=os.environ | {"HOME": str(home)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trained, advice, evaluated, *_ = done.stdout.splitlines()
    assert trained.startswith("final test accuracy")
    assert "--mode=eval" in advice
    assert evaluated.startswith("test accuracy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "home", "workdir"]
    assert not any(home.iterdir())
