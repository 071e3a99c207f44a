"""What goes wrong with a config file costs one line that says where."""

import pytest

from configs import default
from flexpool_jax.configuration import config_files, load_config
from flexpool_jax.errors import UserError

DEFAULT = "from configs import default\n\n"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def get_config(:\n", [":1: SyntaxError"]),
        ("\n\tx = 1\n  y = 2\n", ["IndentationError"]),
        ("x = 1\nraise ValueError('two\\nlines')\n", [":2: ValueError: two lines"]),
        ("import no_such_module\n", [":1: ModuleNotFoundError", "no_such_module"]),
        ("import sys\nsys.exit(3)\n", [":2: SystemExit"]),
        ("x = 1\n", ["no function get_config"]),
        ("get_config = 3\n", ["no function get_config"]),
        ("def get_config():\n  return {}\n", ["returned dict", "ConfigDict"]),
        ("def get_config():\n  pass\n", ["returned NoneType", "ConfigDict"]),
        ("def get_config():\n  return 1 / 0\n", [":2: ZeroDivisionError"]),
        ("def get_config(a, b):\n  pass\n", ["argument"]),
        (
            DEFAULT + "def get_config():\n  c = default.get_config()\n  c.lerning_rate = 1\n",
            [
                ":5: unknown field 'lerning_rate'; did you mean 'learning_rate'? "
                "configs/default.py explains all fields"
            ],
        ),
        (
            DEFAULT + "def get_config():\n  c = default.get_config()\n  c['qqq'] = 1\n",
            [":5: unknown field 'qqq'; configs/default.py explains all fields"],
        ),
        (
            DEFAULT + "def get_config():\n  c = default.get_config()\n  c.seed = 'x'\n",
            [":5: TypeError", "seed"],
        ),
        (DEFAULT + "def get_config():\n  return default.get_config('avg,rg')\n", ["'rg'", "'reg'"]),
        (
            "from ml_collections import ConfigDict, config_dict\n"
            "def get_config():\n"
            "  return ConfigDict({'seed': config_dict.required_placeholder(int)})\n",
            ["mine.py: RequiredValueError: "],
        ),
        ("\0", ["mine.py"]),
        ("# coding: no-such-encoding\n", ["SyntaxError"]),
    ],
)
def test_mistake_inside_a_config_file(tmp_path, source, words):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(UserError) as error:
        load_config(str(path), "configs")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("configs/digts.py", ["does not exist", "did you mean configs/digits.py"]),
        ("configs/digits", ["did you mean configs/digits.py"]),
        ("digits.py", ["did you mean configs/digits.py"]),
        ("confgs/digits.py", ["did you mean configs/digits.py"]),
        ("configs", ["is a folder"]),
        ("configs/", ["is a folder"]),
        ("", ["''"]),
        ("/", ["is a folder"]),
        ("a\0b.py", ["does not exist"]),
        ("configs/recipes.py", ["no function get_config"]),
        ("README.md", ["README.md"]),
        (":flexpool", ["''"]),
    ],
)
def test_path_of_no_config_file(argument, words):
    with pytest.raises(UserError) as error:
        load_config(argument, "configs")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_closest_file_in_the_users_own_folder(tmp_path):
    (tmp_path / "mine.py").write_text("\ndef get_config():\n  pass\n")
    with pytest.raises(UserError, match=r"did you mean .*/mine\.py"):
        load_config(str(tmp_path / "mien.py"), "configs")


def test_the_users_home_is_expanded(tmp_path, monkeypatch, request):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("from configs.digits import get_config\n")
    assert load_config("~/mine.py:max", request.config.rootpath / "configs").pool == "max"


def test_a_folder_may_have_a_colon_in_its_name(tmp_path):
    path = tmp_path / "a:b" / "mine.py"
    path.parent.mkdir()
    path.write_text("from configs.digits import get_config\n")
    assert load_config(str(path), "configs").pool == "flexpool"
    assert load_config(f"{path}:max", "configs").pool == "max"


def test_config_that_takes_no_variant(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(DEFAULT + "def get_config():\n  return default.get_config()\n")
    assert load_config(str(path), "configs").batch_size == 1000
    with pytest.raises(UserError, match="takes no argument after the colon"):
        load_config(f"{path}:flexpool", "configs")


def test_a_frozen_config_can_be_overridden_as_any_other(tmp_path):
    path = tmp_path / "mine.py"
    source = "def get_config():\n  return ml_collections.FrozenConfigDict(default.get_config())\n"
    path.write_text(f"import ml_collections\n{DEFAULT}{source}")
    config = load_config(str(path), "configs")
    config.sac.enabled = True
    assert config.is_locked
    expected = default.get_config()
    expected.sac.enabled = True
    assert config == expected


def test_project_configs_are_found_from_any_folder(tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    config = load_config("configs/digits.py:avg", request.config.rootpath / "configs")
    assert (config.dataset.name, config.pool) == ("digits", "avg")
    assert config.is_locked


def test_only_files_that_define_a_config_are_offered():
    names = config_files("configs")
    assert "digits.py" in names
    assert "recipes.py" not in names
