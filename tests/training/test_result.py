"""result.json is read back whole or not at all."""

import json
import sys

import jax
import pytest

from flexpool_jax.training import result

RESULT = {
    "final_test_accuracy": 0.5,
    "best_test_accuracy": 0.75,
    "epochs": 2,
    "seconds": 1.5,
    "split": "test",
}


def test_a_result_is_read_back(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    assert result.read_result(tmp_path) == RESULT


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"accuracy": 0.',
        "[1]",
        "\x00",
        json.dumps({"split": "test"}),
        json.dumps({**RESULT, "seconds": None}),
        json.dumps({**RESULT, "split": 1}),
    ],
)
def test_a_damaged_result_reads_as_none(tmp_path, text):
    assert result.read_result(tmp_path) is None
    (tmp_path / "result.json").write_text(text)
    assert result.read_result(tmp_path) is None


def test_versions_name_what_runs():
    versions = result.versions()
    assert versions["jax"] == jax.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "not installed" not in versions.values()
