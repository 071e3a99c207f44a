"""What may be registered twice."""

import functools

import numpy as np
import pytest

from flexpool_jax import register_dataset, register_metric, register_model
from flexpool_jax.data import DATASETS
from flexpool_jax.errors import UserError
from flexpool_jax.models import MODELS
from flexpool_jax.registration import is_same_definition
from flexpool_jax.scoring import METRICS


def by_closure(value):
    return lambda: value


def by_default(value):
    return lambda number=value: number


def by_keyword(value):
    def function(*, number=value):
        return number

    return function


def with_a_local_class(value):
    class Local:
        number = 1

    def function():
        return Local, value, function

    return function


@pytest.mark.parametrize("define", [by_closure, by_default, by_keyword, with_a_local_class])
@pytest.mark.parametrize(("one", "same", "other"), [(1, 1, 2), ([1], [1], [2]), ("a", "a", None)])
def test_functions_of_one_name_are_told_apart_by_what_they_enclose(define, one, same, other):
    assert is_same_definition(define(one), define(same))
    assert not is_same_definition(define(one), define(other))


def test_values_that_cannot_be_compared_may_be_new():
    assert is_same_definition(by_closure(np.ones(3)), by_closure(np.zeros(3)))


def test_lambdas_are_told_apart_by_what_they_do():
    assert not is_same_definition(lambda x: max(x), lambda x: min(x))
    assert not is_same_definition(lambda x: x + 1, lambda x: x + 2)


def test_a_variable_without_a_value_is_compared():
    def define():
        def function():
            return later

        if not define:
            later = 1
        return function

    assert is_same_definition(define(), define())


def test_a_function_of_a_module_may_be_edited():
    def edit(source):
        module = {"__name__": "notebook"}
        exec(source, module)
        return module["load"]

    one, other = edit("def load(): return 1"), edit("def load(): return 2")
    assert is_same_definition(one, other)


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
        # As when a sweep reads the same config file again.
        register("known_by_itself")(functools.partial(max, 1))
        with pytest.raises(UserError, match="'known_by_itself' is registered already"):
            register("known_by_itself")(other)
    finally:
        registry.clear()
        registry.update(before)
