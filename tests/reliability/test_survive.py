"""Ten of the runs of `survive`, which a command of its own does by the hundred."""

import pytest

from tests.reliability import survive


@pytest.mark.slow
def test_killed_runs_end_bit_by_bit_as_if_they_had_not_been(tmp_path):
    survived, kills = survive.survive(runs=10, seed=0, folder=tmp_path)
    assert survived == 10
    assert kills.total() >= 10
