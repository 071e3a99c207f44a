"""Overrides mean what they say, or cost one line."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import default
from flexpool_jax.configuration import apply_overrides
from flexpool_jax.errors import UserError


def overridden(*arguments):
    config = default.get_config()
    assert apply_overrides(config, arguments) == []
    return config


@pytest.mark.parametrize(
    ("arguments", "field", "expected"),
    [
        (["--config.sac.weights=0.05,0.1,0.85"], "sac.weights", (0.05, 0.1, 0.85)),
        (["--config.sac.weights=(0.05, 0.1, 0.85)"], "sac.weights", (0.05, 0.1, 0.85)),
        (["--config.sac.weights=[0.05,0.1,0.85]"], "sac.weights", (0.05, 0.1, 0.85)),
        (["--config.sac.weights", "0.05,0.1,0.85"], "sac.weights", (0.05, 0.1, 0.85)),
        (["--config.augment.scale=1,1"], "augment.scale", (1.0, 1.0)),
        (["--config.dataset.mean=0.485,0.456,0.406"], "dataset.mean", (0.485, 0.456, 0.406)),
        (["--config.dataset.mean="], "dataset.mean", ()),
        (
            ["--config.augment.random_resized_crop=0.08,1"],
            "augment.random_resized_crop",
            (0.08, 1.0),
        ),
        (["--config.sac.weights=1,"], "sac.weights", (1.0,)),
        (["--config.tensorboard", "False"], "tensorboard", False),
        (["--config.tensorboard=false"], "tensorboard", False),
        (["--config.tensorboard=0"], "tensorboard", False),
        (["--config.tensorboard=no"], "tensorboard", False),
        (["--noconfig.tensorboard"], "tensorboard", False),
        (["--config.norm_after_relu"], "norm_after_relu", True),
        (["--config.norm_after_relu", "true"], "norm_after_relu", True),
        (["--config.batch_size=1e3"], "batch_size", 1000),
        (["--config.batch_size=64.0"], "batch_size", 64),
        (["--config.batch_size", "64"], "batch_size", 64),
        (["-config.batch_size=64"], "batch_size", 64),
        (["--config.learning_rate=1"], "learning_rate", 1.0),
        (["--config.learning_rate=1e-3"], "learning_rate", 1e-3),
        (["--config.pool_reg", "-1"], "pool_reg", -1.0),
        (["--config.dataset.raw_dir="], "dataset.raw_dir", ""),
        (["--config.dataset.raw_dir=a=b, c"], "dataset.raw_dir", "a=b, c"),
        (["--config.seed=1", "--config.seed=2"], "seed", 2),
        (["--config.optimizer.kwargs.b1=0.95"], "optimizer.kwargs.b1", 0.95),
        (["--config.optimizer.kwargs.ns_steps", "5"], "optimizer.kwargs.ns_steps", 5),
        (["--config.optimizer.kwargs.eps=1e-3"], "optimizer.kwargs.eps", 1e-3),
        (["--config.optimizer.kwargs.nesterov=True"], "optimizer.kwargs.nesterov", True),
        (["--config.optimizer.kwargs.nesterov", "false"], "optimizer.kwargs.nesterov", False),
        (["--config.optimizer.kwargs.nesterov=no"], "optimizer.kwargs.nesterov", False),
        (["--config.optimizer.kwargs.nesterov=Off"], "optimizer.kwargs.nesterov", False),
        (["--config.optimizer.kwargs.nesterov=yes"], "optimizer.kwargs.nesterov", True),
        (["--config.optimizer.kwargs.nesterov=on"], "optimizer.kwargs.nesterov", True),
        (["--config.optimizer.kwargs.ns_steps=1"], "optimizer.kwargs.ns_steps", 1),
        (["--config.optimizer.kwargs.ns_steps=0"], "optimizer.kwargs.ns_steps", 0),
        (["--config.optimizer.kwargs.mode=x,y"], "optimizer.kwargs.mode", "x,y"),
        (
            ["--config.optimizer.kwargs.b1=1", "--config.optimizer.kwargs.b1=.5"],
            "optimizer.kwargs.b1",
            0.5,
        ),
    ],
)
def test_override_means_what_the_user_wrote(arguments, field, expected):
    value = overridden(*arguments)
    for part in field.split("."):
        value = value[part]
    assert value == expected
    assert type(value) is type(expected)


def test_a_field_of_floats_that_holds_a_whole_number_takes_a_fraction():
    config = ConfigDict({"learning_rate": 1, "sac": {"weights": (1, 2)}})
    assert (
        apply_overrides(config, ["--config.learning_rate=0.5", "--config.sac.weights=.2,.8"]) == []
    )
    assert (config.learning_rate, config.sac.weights) == (0.5, (0.2, 0.8))


# More of them stand in tests/black_box/test_fields.py.
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.dataset.nmae=digits"], ["--config.dataset.name"]),
        (["--config.optimizer.kwargs=1"], ["group of fields", "--config.optimizer.kwargs.NAME"]),
        (["--config.optimizer.kwargs.b1"], ["has no value"]),
        (["--config.optimizer.kwargs.=1"], ["unknown field"]),
        (["--config.optimizer.kwargs.a.b=1"], ["unknown field"]),
        (["--config.compilation_cache=None"], ["write --config.compilation_cache="]),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(arguments, words):
    with pytest.raises(UserError) as error:
        overridden(*arguments)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_other_arguments_are_handed_back_in_order_wherever_they_stand():
    config = default.get_config()
    arguments = ["--config.seed", "3", "--mode=eval", "x", "--config.tensorboard", "y"]
    assert apply_overrides(config, arguments) == ["--mode=eval", "x", "y"]
    assert (config.seed, config.tensorboard) == (3, True)


def test_fields_that_no_flag_can_set_are_refused_by_name():
    config = ConfigDict({"names": ["a"], "nothing": None})
    for field in config:
        with pytest.raises(UserError, match=f"--config.{field} .* cannot be set"):
            apply_overrides(config, [f"--config.{field}=1"])


def test_a_tuple_that_a_file_writes_with_whole_numbers_takes_fractions():
    config = default.get_config()
    config.augment.scale = (1, 1)
    apply_overrides(config, ["--config.augment.scale=0.8,1.2"])
    assert config.augment.scale == (0.8, 1.2)


def test_a_tuple_of_names_is_split_at_commas():
    config = ConfigDict({"names": ("a",), "anything": ()})
    apply_overrides(config, ["--config.names=x, 'y'", "--config.anything=p,q"])
    assert config.names == ("x", "y")
    assert config.anything == ("p", "q")


def test_a_keyword_may_have_another_type_than_before():
    config = default.get_config()
    apply_overrides(config, ["--config.optimizer.kwargs.b1=1"])
    apply_overrides(config, ["--config.optimizer.kwargs.b1=0.5"])
    assert config.optimizer.kwargs.to_dict() == {"b1": 0.5}
    apply_overrides(config, ["--config.optimizer.kwargs.b1=1"])
    assert type(config.optimizer.kwargs.b1) is int  # As in a config that never held another type.
    with config.unlocked():
        config.optimizer.kwargs = {"b1": {"a": 1}}
    apply_overrides(config, ["--config.optimizer.kwargs.b1=1"])
    assert config.optimizer.kwargs.to_dict() == {"b1": 1}
    assert config.is_locked
    with pytest.raises(TypeError):
        config.seed = "0"


def test_a_config_of_a_release_without_keywords_takes_them():
    config = default.get_config()
    with config.unlocked():
        del config.optimizer["kwargs"]
    apply_overrides(config, ["--config.optimizer.kwargs.b1=0.5"])
    assert config.optimizer.kwargs.b1 == 0.5


@given(
    whole=st.integers(),
    number=st.floats(),
    switch=st.booleans(),
    text=st.text(),
    numbers=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1).map(tuple),
    names=st.lists(st.from_regex(r"[a-z_]+", fullmatch=True), min_size=1).map(tuple),
)
def test_any_value_survives_being_written_as_an_override(**values):
    config = ConfigDict(
        {"whole": 0, "number": 0.0, "switch": False, "text": "", "numbers": (0.0,), "names": ("",)}
    )
    written = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
    }
    apply_overrides(config, [f"--config.{name}={text}" for name, text in written.items()])
    for name, value in values.items():
        both_nan = isinstance(value, float) and math.isnan(value) and math.isnan(config[name])
        assert both_nan or config[name] == value


@given(
    st.lists(
        st.one_of(
            st.builds(
                "--config.{}={}".format,
                st.sampled_from(["seed", "learning_rate", "sac.weights", "tensorboard", "pool"]),
                st.text(),
            ),
            st.builds("--config.{}".format, st.text()),
            st.text(),
        ),
        max_size=4,
    )
)
def test_no_command_line_raises_anything_but_a_user_error(arguments):
    with contextlib.suppress(UserError):
        assert set(apply_overrides(default.get_config(), arguments)) <= set(arguments)
