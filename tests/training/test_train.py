"""What `flexpool_jax.train` checks before it imports the rest."""

import pytest

from configs import digits
from flexpool_jax import train
from flexpool_jax.errors import UserError


def test_a_home_folder_is_checked_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=f"{tmp_path}/run is a file; allowed: a folder"):
        train(digits.get_config(), "~/run")


@pytest.mark.parametrize(("name", "character"), [("a[b]", r"\["), ("a*b", r"\*"), ("a?b", r"\?")])
def test_a_folder_whose_checkpoints_could_not_be_read_is_refused(tmp_path, name, character):
    with pytest.raises(UserError, match=rf"/run has a {character} in its path.*allowed: "):
        train(digits.get_config(), tmp_path / name / "run")
    assert list(tmp_path.iterdir()) == []
