import dataclasses

import numpy as np
import pytest

import flexpool_jax
import launch
from flexpool_jax.data import (
    DATASETS,
    Dataset,
    Split,
    load_dataset,
    prepare_dataset,
    read_superclass_mapping,
)
from flexpool_jax.data.arrays import check_dataset
from flexpool_jax.errors import UserError

NAMES = ["a", "b", "c"]


def arrays(count=12, shape=(10, 8, 3), seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)
    return images, np.arange(count) % 3


def splits(**options):
    return {"train": arrays(30, **options), "test": arrays(12, seed=1, **options)}


def write_npz(path, **changes):
    contents = {
        f"{letter}_{split}": array
        for split, pair in splits().items()
        for letter, array in zip("xy", pair, strict=True)
    }
    contents |= {"class_names": np.array(NAMES)} | changes
    np.savez(path, **{name: array for name, array in contents.items() if array is not None})
    return path


@pytest.fixture
def register(monkeypatch):
    """Registers a function that returns something, for one test."""

    def as_set(returned, name="mine"):
        monkeypatch.setattr("flexpool_jax.data.registry.DATASETS", DATASETS)
        monkeypatch.delitem(DATASETS, name, raising=False)
        flexpool_jax.register_dataset(name)(lambda: returned)
        return name

    before = dict(DATASETS)
    yield as_set
    DATASETS.clear()
    DATASETS.update(before)


def test_arrays_of_a_registered_function_are_a_data_set(register, tmp_path):
    given = splits()
    dataset = load_dataset(register((given, NAMES)), tmp_path / "data")
    for split, name in ((dataset.train, "train"), (dataset.test, "test")):
        np.testing.assert_array_equal(split.images, given[name][0])
        np.testing.assert_array_equal(split.labels, given[name][1])
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.image_shape == (10, 8, 3)
    np.testing.assert_allclose(dataset.mean, given["train"][0].mean((0, 1, 2)) / 255, rtol=1e-5)
    assert not (tmp_path / "data").exists()


def test_a_registered_function_is_called_once(monkeypatch):
    calls = []

    def load():
        calls.append(1)
        return splits(), NAMES

    monkeypatch.setattr("flexpool_jax.data.registry.DATASETS", DATASETS)
    flexpool_jax.register_dataset("counted")(load)
    try:
        load_dataset("counted", "data")
        load_dataset("counted", "data", image_size=16)
    finally:
        del DATASETS["counted"]
    assert len(calls) == 1


def test_arrays_are_resized_held_out_and_grouped_like_any_other_set(register, tmp_path):
    name = register((splits(), NAMES))
    whole, held = load_dataset(name, "data"), load_dataset(name, "data", holdout=0.4, image_size=5)
    assert held.train.images.shape == (18, 5, 5, 3)
    assert held.test.images.shape == (12, 5, 5, 3)
    assert whole.digest != held.digest
    # Two rows of 10 into one are averages of two pixels; 8 columns into 5 are of unequal parts.
    small = load_dataset(name, "data", image_size=2).train.images
    expected = whole.train.images.reshape(30, 2, 5, 2, 4, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(small, expected, atol=1)
    (tmp_path / "groups.txt").write_text("a,vowel\nb,consonant\nc,consonant")
    groups = read_superclass_mapping(tmp_path / "groups.txt", whole.class_names)
    assert groups.of_class.tolist() == [1, 0, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint64, np.int64])
def test_labels_may_be_integers_of_any_width(register, dtype):
    images, labels = arrays()
    given = {"train": (images, labels.astype(dtype)), "test": (images, labels.astype(dtype))}
    dataset = load_dataset(register((given, NAMES)), "data")
    assert dataset.train.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 1), (6, 6, 4)])
def test_grey_and_transparent_images_are_resized_too(register, shape):
    dataset = load_dataset(register((splits(shape=shape), NAMES)), "data", image_size=9)
    assert dataset.image_shape == (9, 9, shape[2] if len(shape) == 3 else 1)


def test_splits_of_different_sizes_need_an_image_size(register):
    name = register(({"train": arrays(), "test": arrays(shape=(5, 5, 3))}, NAMES))
    with pytest.raises(UserError, match=r"differ in size .*set dataset.image_size"):
        load_dataset(name, "data")
    assert load_dataset(name, "data", image_size=8).image_shape == (8, 8, 3)


GOOD = arrays()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "must return a pair, .*got NoneType"),
        ({"train": GOOD, "test": GOOD}, "must return a pair, .*got dict"),
        (({"train": GOOD}, NAMES), "must have the splits 'train' and 'test'; got 'train'"),
        (({"train": GOOD, "test": GOOD, "x": GOOD}, NAMES), "got 'train', 'test', 'x'"),
        (([GOOD, GOOD], NAMES), "must have the splits .*got list"),
        (({"train": GOOD, "test": GOOD}, "abc"), "class names 'abc'; allowed: a list"),
        (({"train": GOOD, "test": GOOD}, ["a", "a", "b"]), "allowed: a list of at least 2 diff"),
        (
            ({"train": GOOD, "test": GOOD}, ["a", "b"]),
            "train labels are from 0 to 2; allowed: 0 to 1",
        ),
        (({"train": GOOD, "test": GOOD}, [1, 2, 3]), "allowed: a list"),
        (({"train": GOOD[0], "test": GOOD}, NAMES), "the train images must come in a pair"),
        (
            ({"train": (GOOD[0] / 255, GOOD[1]), "test": GOOD}, NAMES),
            "train images are float64",
        ),
        (
            ({"train": (GOOD[0][0, 0], GOOD[1]), "test": GOOD}, NAMES),
            r"images are uint8 \[8, 3\]",
        ),
        (({"train": (GOOD[0][..., :2], GOOD[1]), "test": GOOD}, NAMES), "allowed: .*C 1, 3 or 4"),
        (
            ({"train": GOOD, "test": (GOOD[0][:0], GOOD[1][:0])}, NAMES),
            r"test images are .*\[0,",
        ),
        (
            ({"train": (GOOD[0], GOOD[1] * 1.0), "test": GOOD}, NAMES),
            "labels are float64 .*integers",
        ),
        (
            ({"train": (GOOD[0], GOOD[1][:-1]), "test": GOOD}, NAMES),
            r"labels are int64 \[11\] for 12",
        ),
        (
            ({"train": (GOOD[0], GOOD[1] - 1), "test": GOOD}, NAMES),
            "train labels are from -1 to 1",
        ),
        (({"train": GOOD, "test": arrays(shape=(10, 8))}, NAMES), "3 channels in train and 1 in"),
    ],
)
def test_arrays_that_are_not_a_data_set_cost_one_line(register, returned, message):
    with pytest.raises(UserError, match=message) as caught:
        load_dataset(register(returned), "data")
    assert "\n" not in str(caught.value)


def test_an_error_in_the_users_function_arrives_as_it_is(monkeypatch):
    def load():
        raise ZeroDivisionError("mine")

    monkeypatch.setitem(DATASETS, "broken", load)
    with pytest.raises(ZeroDivisionError, match="mine"):
        load_dataset("broken", "data")


def test_a_name_is_registered_once_unless_its_definition_is_run_again():
    def define(returned):
        def load():
            return returned

        return load

    try:
        flexpool_jax.register_dataset("again")(define((splits(), NAMES)))
        flexpool_jax.register_dataset("again")(define((splits(shape=(4, 4)), NAMES)))
        assert load_dataset("again", "data").image_shape == (4, 4, 1)
        with pytest.raises(UserError, match="'again' is registered already"):
            flexpool_jax.register_dataset("again")(lambda: None)
    finally:
        del DATASETS["again"]
    for name in ("digits", "npz"):
        with pytest.raises(UserError, match=f"{name!r} is registered already"):
            flexpool_jax.register_dataset(name)(lambda: None)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "a:1", ".x", 3, None])
def test_what_cannot_be_a_name_is_refused(name):
    with pytest.raises(UserError, match="cannot be named"):
        flexpool_jax.register_dataset(name)


def test_a_data_set_that_needs_an_argument_is_refused():
    refusal = r"data set 'by_split': missing .*'split'; allowed: a function"
    with pytest.raises(UserError, match=refusal):
        flexpool_jax.register_dataset("by_split")(lambda split: None)
    assert "by_split" not in DATASETS


def test_an_npz_file_is_a_data_set(tmp_path):
    path = write_npz(tmp_path / "mine.npz")
    dataset = load_dataset("npz", tmp_path / "data", path)
    np.testing.assert_array_equal(dataset.train.images, splits()["train"][0])
    np.testing.assert_array_equal(dataset.test.labels, splits()["test"][1])
    assert dataset.class_names == ("a", "b", "c")
    assert prepare_dataset("npz", tmp_path / "data", path) is None
    assert not (tmp_path / "data").exists()
    unnamed = write_npz(tmp_path / "unnamed.npz", class_names=None)
    assert load_dataset("npz", "data", unnamed).class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"has no y_test; needed: x_train, .*it has 'x_train', 'y_train', 'x_t"),
        ({"x_train": arrays()[0]}, r"mine.npz: y_train are int64 \[30\] for 12 images"),
        ({"x_test": np.array([[1, "x"]], object)}, r"file of plain arrays; cannot read x_test"),
        ({"class_names": np.array(["a"])}, "class names"),
        ({"class_names": np.array(NAMES, object)}, "file of plain arrays; cannot read class_names"),
        ({"class_names": np.array([1, 2, 3])}, "class names"),
        ({"class_names": np.array("abc")}, "class names 'abc'"),
        ({"y_train": np.full(30, 0.5), "class_names": None}, "y_train are float64"),
        (
            {"y_train": np.arange(30) * 10**8, "class_names": None},
            "has 30 labels y_train up to 2900000000 and no class_names",
        ),
        (
            {"y_train": np.zeros(30, int), "class_names": None},
            "y_train up to 0 and no class_names",
        ),
        ({"y_test": np.full(12, 2**32, np.uint64)}, "y_test are from 2147483647 to"),
        ({"y_test": np.full(12, 2**64 - 1, np.uint64)}, "y_test are from -1 to -1"),
    ],
)
def test_an_npz_file_that_is_not_a_data_set_costs_one_line(tmp_path, changes, message):
    path = write_npz(tmp_path / "mine.npz", **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_dataset("npz", tmp_path / "data", path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_set_has_no_more_classes_than_predictions_can_name(tmp_path):
    path = write_npz(tmp_path / "mine.npz", class_names=np.arange(32_769).astype(str))
    with pytest.raises(UserError, match="has 32,769 classes; allowed: at most 32,768"):
        load_dataset("npz", tmp_path / "data", path)


@pytest.mark.parametrize(
    "damage", ["cut", "emptied", "flipped", "header", "text", "npy", "folder", "none"]
)
def test_a_damaged_npz_file_costs_one_line(tmp_path, damage):
    path = write_npz(tmp_path / "mine.npz")
    content = path.read_bytes()
    half = len(content) // 2
    path.unlink()
    if damage == "npy":
        with path.open("wb") as file:
            np.save(file, arrays()[0])
    elif damage == "folder":
        path.mkdir()
    elif damage != "none":
        path.write_bytes(
            {
                "cut": content[:half],
                "emptied": b"",
                "flipped": content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
                "header": content.replace(b"), }", b" , }", 1),
                "text": b"not an archive",
            }[damage]
        )
    with pytest.raises(UserError, match=r"mine.npz") as caught:
        load_dataset("npz", tmp_path / "data", path)
    assert "\n" not in str(caught.value)


def test_npz_needs_a_file():
    with pytest.raises(UserError, match=r"npz needs a file: --config.dataset.raw_dir=FILE.npz$"):
        load_dataset("npz", "data")


def test_a_config_file_may_register_its_data_set(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\n"
        "from configs import digits\n"
        "from flexpool_jax import register_dataset\n"
        "@register_dataset('of_a_config')\n"
        "def load():\n"
        "    images, labels = np.zeros((8, 8, 8), np.uint8), np.arange(8) % 2\n"
        "    return {'train': (images, labels), 'test': (images, labels)}, ['even', 'odd']\n"
        "def get_config(variant=''):\n"
        "    config = digits.get_config(variant)\n"
        "    config.dataset.name = 'of_a_config'\n"
        "    return config\n"
    )
    try:
        for _ in range(2):  # A second command in the same process runs the file again.
            assert launch.main([f"--config={path}", "--mode=prepare"]) == 0
    finally:
        DATASETS.pop("of_a_config", None)
    assert "of_a_config is read as it is, without preparation" in capsys.readouterr().out


def test_an_npz_config_without_its_file_is_a_mistake_of_one_line(tmp_path, capsys):
    arguments = ["--config=configs/npz.py", f"--workdir={tmp_path / 'run'}"]
    assert launch.main(arguments) == 2
    assert "npz needs a file: --config.dataset.raw_dir=FILE.npz" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def given(**changes):
    one = np.ones(3, np.float32)
    train, test = (Split(*pair) for pair in splits().values())
    return dataclasses.replace(Dataset("mine", train, test, tuple(NAMES), one, one), **changes)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (arrays(30)[0], np.arange(30) % 4, "labels are from 0 to 3; allowed: 0 to 2"),
        (arrays(30)[0], np.arange(30) % 3 - 1, "labels are from -1 to 1"),
        (arrays(30)[0], np.zeros(40, int), r"labels are int64 \[40\] for 30 images"),
        (arrays(30)[0], np.eye(3)[np.arange(30) % 3], "labels are float64"),
        (
            np.zeros((30, 3, 10, 8), np.uint8),
            np.arange(30) % 3,
            "8 channels in train and 3 in test",
        ),
        (
            np.zeros((30, 10, 8, 3), np.float32),
            np.arange(30) % 3,
            r"images are float32 .*; allowed: uint8 \[N, H, W, C\], or",
        ),
    ],
)
def test_arrays_that_a_program_passes_are_checked(images, labels, words):
    with pytest.raises(UserError, match=words):
        check_dataset(given(train=Split(images, labels)))


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": np.ones(1, np.float32)},
        {"mean": np.ones(3, int)},
        {"mean": ["a", "b", "c"]},
        {"mean": np.full(3, np.nan)},
        {"std": np.array([1.0, 0.0, 1.0])},
    ],
)
def test_normalisation_that_a_program_passes_is_checked(changes):
    with pytest.raises(UserError, match=rf"{next(iter(changes))} is .*; allowed: 3 finite floats"):
        check_dataset(given(**changes))


def test_what_a_program_passes_gets_the_types_of_a_loaded_data_set():
    checked = check_dataset(given(class_names=NAMES, mean=[0.5, 0.25, 0.0]))
    assert (checked.class_names, checked.train.labels.dtype) == (tuple(NAMES), np.int32)
    np.testing.assert_array_equal(checked.mean, np.float32([0.5, 0.25, 0]))
    # Other numbers of channels than those of image files are allowed.
    five = Split(np.zeros((6, 4, 4, 5), np.uint8), np.arange(6) % 3)
    one = np.ones(5, np.float32)
    assert check_dataset(given(train=five, test=five, mean=one, std=one)).image_shape == (4, 4, 5)
