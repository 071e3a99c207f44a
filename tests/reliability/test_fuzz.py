"""A few of the cases of `fuzz`, which a command of its own runs by the thousand."""

import pytest

from tests.reliability import fuzz, fuzz_state

# Quick readers are given more.
CASES = {
    fuzz.prepared_records: 12,
    fuzz.kept_arrays: 12,
    fuzz.idx_file: 300,
    fuzz.gzipped_raw_file: 200,
    fuzz.image_files: 200,
    fuzz.zip_archive: 200,
    fuzz.npz_file: 200,
    fuzz.config_json: 60,
    fuzz.checkpoint: 12,
}


@pytest.mark.parametrize("make_reader", fuzz.READERS, ids=lambda reader: reader.__name__)
def test_damage_is_refused_or_does_no_harm(make_reader):
    outcomes = fuzz.fuzz(make_reader, CASES[make_reader], seed=1)
    assert set(outcomes) <= {"refused", "harmless"}
    assert outcomes["refused"] + outcomes["harmless"] == CASES[make_reader]
    # The kept arrays are read again from the records whenever they are damaged.
    assert outcomes["refused"] or make_reader is fuzz.kept_arrays


def test_a_disturbed_workdir_gives_the_right_numbers_or_is_refused():
    outcomes = fuzz_state.fuzz(cases=30, seed=1)
    assert set(outcomes) == {"right", "refused"}
