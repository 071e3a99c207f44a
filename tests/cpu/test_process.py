"""What a process that computes on a CPU gets before JAX starts; the user's own settings stand."""

import os
import subprocess
import sys
from unittest import mock

import pytest

from flexpool_jax.cpu import process

PROGRAM = """
import os, sys
sys.path.insert(0, {root!r})
from flexpool_jax import cpu
from flexpool_jax.cpu import process
process.PACKAGES = {packages!r}
cpu.prepare_process()
assert "jax" not in sys.modules
settings = [os.environ.get(name) for name in ("GLIBC_TUNABLES", "XLA_FLAGS")]
print(*settings, sys.argv[1:], os.getpid(), sep="|")
"""
INSTALLED, MISSING = ("numpy",), ("numpy", "not-a-package")
needs_glibc = pytest.mark.skipif(not process._has_glibc(), reason="huge pages are glibc's")


def run(tmp_path, packages=INSTALLED, **env):
    """The variables that a program has after its preparation."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(root=os.getcwd(), packages=packages))  # noqa: PTH109
    settings = (process.VARIABLE, "XLA_FLAGS")
    environment = {k: v for k, v in os.environ.items() if k not in settings} | env
    started = subprocess.Popen(
        [sys.executable, str(program), "--a=b c"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = started.communicate(timeout=60)
    assert started.returncode == 0
    *variables, arguments, process_id = output.strip().split("|")
    assert (arguments, process_id) == ("['--a=b c']", str(started.pid))
    return variables


@needs_glibc
def test_restarts_once_as_the_same_process_with_the_same_arguments(tmp_path):
    assert run(tmp_path) == [process.HUGE_PAGES, "None"]


def test_leaves_the_users_choice_of_pages_alone(tmp_path):
    assert run(tmp_path, GLIBC_TUNABLES="glibc.malloc.check=0")[0] == "glibc.malloc.check=0"


def test_leaves_runs_on_accelerators_alone(tmp_path):
    assert run(tmp_path, MISSING, JAX_PLATFORMS="cuda") == ["None", "None"]


def test_without_onednn_it_adds_the_xla_flag_to_the_users(tmp_path):
    flags = run(tmp_path, MISSING, XLA_FLAGS="--xla_cpu_enable_fast_math=false")[1]
    assert flags == f"--xla_cpu_enable_fast_math=false {process.YNNPACK}="


def test_leaves_the_users_choice_of_the_xla_flag_alone(tmp_path):
    chosen = f"{process.YNNPACK}=LIBRARY_FUSION_TYPE_REDUCE"
    assert run(tmp_path, MISSING, XLA_FLAGS=chosen)[1] == chosen


def test_an_unknown_flag_is_found_out_in_another_process():
    assert process._is_known("--xla_cpu_enable_fast_math=false")
    assert not process._is_known("--xla_cpu_no_such_flag=")


@needs_glibc
def test_continues_where_the_system_refuses_to_restart(monkeypatch):
    tried = []

    def refuse(*arguments):
        tried.append(arguments)
        raise PermissionError

    monkeypatch.setattr(os, "execv", refuse)
    monkeypatch.setattr(process, "PACKAGES", INSTALLED)
    # Removes what is added as well, which monkeypatch does not.
    with mock.patch.dict(os.environ, JAX_PLATFORMS="cpu"):
        os.environ.pop(process.VARIABLE, None)
        process.prepare_process()
    assert len(tried) == 1
