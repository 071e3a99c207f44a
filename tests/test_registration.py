"""What may be registered twice."""

import functools

import pytest

from flexpool_jax import register_dataset, register_metric, register_model
from flexpool_jax.data import DATASETS
from flexpool_jax.errors import UserError
from flexpool_jax.models import MODELS
from flexpool_jax.scoring import METRICS


@pytest.mark.parametrize(
    ("register", "registry"),
    [
        (functools.partial(register_model, num_stages=1), MODELS),
        (register_dataset, DATASETS),
        (register_metric, METRICS),
    ],
)
def test_what_has_no_place_in_a_file_is_known_by_itself(register, registry):
    one, other = functools.partial(max, 1), functools.partial(max, 2)
    before = dict(registry)
    try:
        register("known_by_itself")(one)
        register("known_by_itself")(one)
        with pytest.raises(UserError, match="'known_by_itself' is registered already"):
            register("known_by_itself")(other)
    finally:
        registry.clear()
        registry.update(before)
