"""Commands that compute on a CPU get huge pages; the user's own choice stands."""

import os
import subprocess
import sys

import pytest

from flexpool_jax import huge_pages

PROGRAM = """
import os, sys
sys.path.insert(0, {root!r})
from flexpool_jax.huge_pages import restart_with_huge_pages
restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], os.getpid())
"""


def run(tmp_path, **env):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(root=os.getcwd()))  # noqa: PTH109
    environment = {k: v for k, v in os.environ.items() if k != huge_pages.VARIABLE} | env
    process = subprocess.Popen(
        [sys.executable, str(program), "--a=b c"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return output.split(" ", 1)[0], f"['--a=b c'] {process.pid}" in output


@pytest.mark.skipif(not huge_pages._applies(), reason="no glibc, or another platform is asked for")
def test_restarts_once_as_the_same_process_with_the_same_arguments(tmp_path):
    assert run(tmp_path) == (huge_pages.VALUE, True)


def test_leaves_the_users_choice_alone(tmp_path):
    assert run(tmp_path, GLIBC_TUNABLES="glibc.malloc.check=0") == ("glibc.malloc.check=0", True)


def test_leaves_runs_on_accelerators_alone(tmp_path):
    assert run(tmp_path, JAX_PLATFORMS="cuda") == ("None", True)
