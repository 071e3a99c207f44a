"""What all tests share: device, compile cache, hypothesis' way of searching."""

import os
import shutil
import subprocess
import tempfile

import hypothesis
import pytest

# All of it before JAX is imported, and in the environment, so that the commands which tests start
# have it too. Each may be set from outside: JAX_PLATFORMS=cuda runs the tests on a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests and the commands they start share a GPU, so none may take most of its memory at start.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# A program that one test has compiled need not be compiled by another, or by a command of its own.
_compile_cache = tempfile.TemporaryDirectory(prefix="flexpool_jax_tests_xla_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _compile_cache.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# The first example of a property compiles, so a deadline would measure the compiler; and the same
# examples each time, so that a failure seen once is seen again.
hypothesis.settings.register_profile(
    "flexpool_jax", deadline=None, derandomize=True, max_examples=25
)
hypothesis.settings.load_profile("flexpool_jax")

# Permissions do not stop root unless these privileges are gone.
WITHOUT_PRIVILEGES = (
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
)


@pytest.fixture
def unprivileged():
    """What to put before a command so that permissions mean something to it."""
    if os.geteuid() != 0:
        return ()
    probe = [*WITHOUT_PRIVILEGES, "true"]
    if not shutil.which("setpriv") or subprocess.run(probe, check=False).returncode:
        pytest.skip("root without setpriv: no permission stops it")
    return WITHOUT_PRIVILEGES
