"""A run writes nothing outside the workdir, the data folder and the cache folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import SMALL

CACHE = "JAX_COMPILATION_CACHE_DIR"
ROOT = Path(__file__).parents[2]

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
