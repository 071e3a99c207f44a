"""Files are whole or absent, whatever happens while they are written."""

import functools
import json
import math

import numpy as np
import pytest

from flexpool_jax import files
from flexpool_jax.errors import UserError


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "result.json"
    files.write_json(path, {"accuracy": 0.5, "weights": (0.1, 0.9)})
    files.write_json(path, {"accuracy": np.float32(0.75), "loss": math.nan, "device": "cpu"})
    assert json.loads(path.read_text()) == {"accuracy": 0.75, "loss": None, "device": "cpu"}
    assert list(tmp_path.iterdir()) == [path]


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    files.write_json(path, {"accuracy": 0.5})
    with pytest.raises(TypeError):
        files.write_json(path, {"accuracy": object()})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch, error):
    path = tmp_path / "config.json"
    files.write_whole(path, b"old")

    def fail(descriptor):
        raise error

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(type(error)) as caught:
        files.write_whole(path, b"new")
    if isinstance(error, OSError):
        assert (caught.value.errno, caught.value.filename) == (28, str(path))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_that_was_to_be_written(tmp_path):
    path = tmp_path / "missing" / "config.json"
    with pytest.raises(FileNotFoundError) as caught:
        files.write_whole(path, b"new")
    assert caught.value.filename == str(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b"\0" * 64]
)
def test_a_json_file_that_is_damaged_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged") as error:
        files.read_json(path)
    assert "\n" not in str(error.value)


def test_a_json_file_may_be_missing_and_a_folder_is_not_one(tmp_path):
    assert files.read_json(tmp_path / "absent" / "config.json") is None
    with pytest.raises(UserError, match="is not a file"):
        files.read_json(tmp_path)


def test_an_object_of_a_depth_that_no_run_writes_does_not_match():
    deep = functools.reduce(lambda inner, _: [inner], range(700), 0)
    assert not files.digest_matches({"accuracy": deep, "sha256": "0" * 64})
