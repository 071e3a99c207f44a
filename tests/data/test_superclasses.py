import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexpool_jax.data import read_superclass_mapping
from flexpool_jax.errors import UserError

CLASSES = ("Ankle boot", "T-shirt/top", "bag, small")
EXPECTED = (("shoe", "textile"), [0, 1, 1])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"textile": ["T-shirt/top", "bag, small"], "shoe": ["Ankle boot"]}'),
        ("b.JSON", '{"Ankle boot": "shoe", "T-shirt/top": "textile", "bag, small": "textile"}'),
        ("c.txt", "# mine\nAnkle boot\tshoe\n\nT-shirt/top\ttextile\nbag, small\ttextile\n"),
        ("d.csv", "\ufeffAnkle boot,shoe\r\n T-shirt/top , textile\r\nbag, small,textile"),
    ],
)
def test_every_format_gives_the_same_mapping(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    superclasses = read_superclass_mapping(tmp_path / name, CLASSES)
    assert (superclasses.names, superclasses.of_class.tolist()) == EXPECTED
    assert superclasses.of_class.dtype == "int32"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.txt", "Ankle boots\tshoe", r"unknown class 'Ankle boots'; did you mean 'Ankle boot'"),
        ("m.txt", "Ankle boot\tshoe\nT-shirt/top\tshoe", r"leaves out the class 'bag, small'$"),
        ("m.txt", "Ankle boot\tshoe", r"leaves out the class 'T-shirt/top' and 1 more"),
        ("m.txt", "Ankle boot\tshoe\nAnkle boot\tboot", r"names the class 'Ankle boot' twice"),
        ("m.json", '{"a": ["Ankle boot"], "a": ["Ankle boot"]}', r"'Ankle boot' twice"),
        ("m.txt", "Ankle boot shoe", r"line 1: 'Ankle boot shoe' is not a class"),
        ("m.txt", "Ankle boot\t", r"a superclass without a name"),
        ("m.txt", "", r"leaves out the class"),
        ("m.json", "{", r"is not JSON"),
        ("m.json", "[" * 100_000, r"is not JSON"),
        ("m.json", '["Ankle boot"]', r"is not a mapping"),
        ("m.json", "3", r"is not a mapping"),
        ("m.json", '{"shoe": [1]}', r"is not a mapping"),
        ("m.json", json.dumps(dict.fromkeys(CLASSES, "all")), r"one superclass only, 'all'"),
    ],
)
def test_a_wrong_file_costs_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_superclass_mapping(tmp_path / name, CLASSES)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        read_superclass_mapping(tmp_path / "missing", CLASSES)
    with pytest.raises(UserError, match="there is no file"):
        read_superclass_mapping(tmp_path, CLASSES)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not text in UTF-8"):
        read_superclass_mapping(tmp_path / "binary", CLASSES)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([*CLASSES, "shoe", "x"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*CLASSES, "shoe"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(json_values)
def test_any_json_is_a_mapping_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value))
    try:
        superclasses = read_superclass_mapping(path, CLASSES)
    except UserError:
        return
    assert len(superclasses.of_class) == len(CLASSES)
    assert set(superclasses.of_class) == set(range(len(superclasses.names)))
