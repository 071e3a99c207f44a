"""Settings of JAX from outside that would change the numbers of a run are refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import digits
from flexpool_jax import train
from flexpool_jax.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (lambda: jax.enable_x64(True), "JAX_ENABLE_X64 is True, .* allowed: False"),
        (lambda: jax.default_prng_impl("rbg"), "JAX_DEFAULT_PRNG_IMPL is rbg, .* threefry2x32"),
        (lambda: jax.threefry_partitionable(False), "JAX_THREEFRY_PARTITIONABLE is False"),
    ],
)
def test_training_is_refused_where_a_seed_would_draw_other_numbers(tmp_path, setting, words):
    with setting(), pytest.raises(UserError, match=words):
        train(digits.get_config(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("platforms", ["tpuu", "cuda"])
def test_a_platform_that_jax_cannot_use_costs_one_line(tmp_path, platforms):
    if platforms == "cuda" and Path("/dev/nvidia0").exists():
        pytest.skip("JAX may be able to use this platform here")
    old = ROOT / "tests/fixtures/workdir_0_1"
    environment = os.environ | {"JAX_PLATFORMS": platforms}
    for arguments in (
        ["--config=configs/digits.py", f"--workdir={tmp_path / 'run'}"],
        [f"--workdir={old}", "--mode=eval"],
    ):
        command = [sys.executable, "launch.py", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert re.fullmatch(rf"launch\.py: JAX_PLATFORMS={platforms}: .+\n", done.stderr)
    assert list(tmp_path.iterdir()) == []
