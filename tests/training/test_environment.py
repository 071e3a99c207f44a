"""Settings of JAX from outside that would change the numbers of a run are refused."""

import jax
import pytest

from configs import digits
from flexpool_jax import train
from flexpool_jax.errors import UserError


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
