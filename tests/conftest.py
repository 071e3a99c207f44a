"""What all tests share: device, compile cache, hypothesis' way of searching, what is pending."""

import os
import tempfile
from pathlib import Path

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


PENDING = Path(__file__).parent / "black_box_pending.txt"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Expects the tests in black_box_pending.txt to fail: they describe what is yet to be built."""
    lines = PENDING.read_text().splitlines()
    pending = [line for line in lines if line and not line.startswith("#")]
    collected = {item.nodeid: item for item in items}
    # A file whose tests were named one by one on the command line is not collected whole.
    named = {argument.partition("::")[0] for argument in config.args if "::" in argument}
    whole = {name.partition("::")[0] for name in collected} - named
    for name in pending:
        if name in collected:
            collected[name].add_marker(pytest.mark.xfail(strict=True))
        elif name.partition("::")[0] in whole:
            raise pytest.UsageError(f"{PENDING.name} names {name}, and there is no such test")
        elif not (config.rootpath / name.partition("::")[0]).is_file():
            raise pytest.UsageError(f"{PENDING.name} names {name}, and there is no such file")
