import threading

import pytest

from flexpool_jax.data.threads import ordered_map


def test_keeps_the_order_and_runs_only_so_far_ahead():
    taken = []

    def items():
        for number in range(50):
            taken.append(number)
            yield number

    results = ordered_map(lambda number: number * number, items(), ahead=4)
    assert next(results) == 0
    assert len(taken) <= 5
    assert list(results) == [number * number for number in range(1, 50)]


def test_an_error_arrives_and_what_has_not_begun_never_does():
    begun = []
    gate = threading.Event()

    def function(number):
        begun.append(number)
        if number == 0:
            raise KeyError("zero")
        gate.wait(0.2)

    with pytest.raises(KeyError):
        list(ordered_map(function, range(1000), ahead=100))
    assert len(begun) < 50
