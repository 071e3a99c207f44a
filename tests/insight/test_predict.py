"""Predictions of image files are those of the network, whatever the files are like."""

import csv
import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import launch
from flexpool_jax import layout
from flexpool_jax.configuration import read_config
from flexpool_jax.data import images, load_dataset
from flexpool_jax.errors import UserError
from flexpool_jax.insight import predict
from flexpool_jax.insight.contact_sheet import RIGHT, WRONG, Tile, contact_sheet
from flexpool_jax.insight.predict import find_images, predict_files, read_image
from flexpool_jax.pages.figures import INK
from flexpool_jax.trained import load_trained
from flexpool_jax.training import identity

ROOT = Path(__file__).parents[2]
OLD_WORKDIR = ROOT / "tests/fixtures/workdir_0_1"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset("digits", str(tmp_path_factory.mktemp("data")), image_size=8)


@pytest.fixture(scope="module")
def workdir(dataset, tmp_path_factory):
    """A trained run with a data.json, as later releases than 0.1 write it."""
    folder = shutil.copytree(OLD_WORKDIR, tmp_path_factory.mktemp("run") / "run")
    identity.begin(folder, read_config(folder), dataset)
    return folder


@pytest.fixture(scope="module")
def photos(dataset, tmp_path_factory):
    """The first forty test images in folders named like their classes."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(40):
        name = folder / str(dataset.test.labels[index]) / f"{index:02}.png"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(dataset.test.images[index, :, :, 0]).save(name)
    return folder


def rows_of(workdir):
    with (workdir / "predict/predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def probabilities_of(workdir, pixels):
    trained = load_trained(workdir)
    x = (pixels / np.float32(255) - trained.mean) / trained.std
    logits = trained.model.apply(trained.variables, jnp.asarray(x, jnp.float32))
    return np.asarray(jax.nn.softmax(logits))


@pytest.mark.parametrize("batch", [7, 1000])
def test_probabilities_are_those_of_the_network(batch, workdir, photos, dataset):
    trained = load_trained(workdir)
    config = trained.config.copy_and_resolve_references()
    config.eval_batch_size = batch
    found = predict_files(workdir, str(photos), top_k=10, config=config)
    expected = probabilities_of(workdir, dataset.test.images[:40])
    rows = {int(Path(row["file"]).stem): row for row in rows_of(workdir)}
    assert len(rows) == 40
    for index, row in rows.items():
        classes = [int(row[f"class_{rank}"]) for rank in range(1, 11)]
        given = [float(row[f"probability_{rank}"]) for rank in range(1, 11)]
        assert sorted(classes) == list(range(10))
        assert given == sorted(given, reverse=True)
        np.testing.assert_allclose(given, expected[index][classes], atol=2e-6)
        assert row["label"] == str(dataset.test.labels[index])
    predictions = expected.argmax(axis=1)
    correct = np.count_nonzero(predictions == dataset.test.labels[:40])
    assert (found.files, found.unreadable, found.labelled, found.correct) == (40, 0, 40, correct)
    assert correct > 0


def test_unreadable_files_are_reported_and_the_others_predicted(workdir, photos, tmp_path, capsys):
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "3/broken.png").write_bytes(b"not an image")
    (folder / "3/cut.png").write_bytes((photos / "3").glob("*.png").__next__().read_bytes()[:60])
    (folder / "3/folder.png").mkdir()
    (folder / "3/notes.txt").write_text("text")
    (folder / "3/gone.png").symlink_to(tmp_path / "nothing")
    found = predict_files(workdir, str(folder))
    assert (found.files, found.unreadable) == (43, 3)
    reported = capsys.readouterr().err
    for name in ("broken.png", "cut.png", "gone.png"):
        assert name in reported
        (row,) = (row for row in rows_of(workdir) if row["file"].endswith(name))
        assert name in row["error"]
        assert row["class_1"] == ""
    assert sum(row["error"] == "" for row in rows_of(workdir)) == 40


def test_images_of_any_size_mode_and_orientation_are_read_as_in_training(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise by a quarter
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(pixels, -1)
    assert (read_image(tmp_path / "turned.png", (6, 4, 1))[..., 0] == upright).all()
    shrunk = read_image(tmp_path / "turned.png", (3, 2, 1))[..., 0]
    means = upright.reshape(3, 2, 2, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(shrunk, means, atol=1)
    Image.fromarray(np.dstack([pixels] * 3 + [pixels])).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png", (4, 6, 3)) == pixels[..., None]).all()
    wide = np.full((4, 6), 65535, np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", (4, 6, 1)) == 255).all()


def test_files_folders_and_globs_are_listed_once_in_order(tmp_path):
    for name in ("b/2.PNG", "b/1.jpg", "a.webp", "b/.hidden.png", ".git/x.png", "b/c/3.tiff"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b/notes.txt").write_text("")
    (tmp_path / "odd").write_bytes(b"")

    def listed(pattern):
        return [str(path.relative_to(tmp_path)) for path in find_images(f"{tmp_path}/{pattern}")]

    everything = ["a.webp", "b/1.jpg", "b/2.PNG", "b/c/3.tiff"]
    assert listed("") == listed("**") == listed("*") == everything
    assert listed("b/*") == listed("b") == everything[1:]
    assert listed("*.webp") == ["a.webp"]
    assert listed("odd") == ["odd"]  # a file that is named counts whatever its ending
    (tmp_path / "[1].png").write_bytes(b"")
    assert listed("[1].png") == ["[1].png"]


def test_linked_folders_are_listed_once_and_circles_end(tmp_path):
    for name in ("photos/cat/1.png", "photos/z/2.png", "elsewhere/3.png", "elsewhere/in/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    photos = tmp_path / "photos"
    (photos / "dog").symlink_to(tmp_path / "elsewhere")
    (photos / "cat" / "up").symlink_to(photos)
    (photos / "a").symlink_to(photos / "z")
    (tmp_path / "elsewhere" / "all").symlink_to(tmp_path)
    listed = [str(path.relative_to(photos)) for path in find_images(str(photos))]
    assert listed == ["cat/1.png", "dog/3.png", "dog/in/4.png", "z/2.png"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "cat").mkdir()
    (tmp_path / "1.png").write_bytes(b"")
    scandir = os.scandir

    def forbidding(path):
        if Path(path) == tmp_path / "cat":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    assert find_images(str(tmp_path)) == [tmp_path / "1.png"]
    expected = f"skipped: cannot list {tmp_path}/cat: Permission denied\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("phtos", ["no such file", "did you mean", "photos"]),
        ("*.gif", ["matches no image", ".png"]),
        ("empty", ["has no image files", ".png"]),
    ],
)
def test_a_pattern_without_images_is_one_clear_line(pattern, words, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        find_images(f"{tmp_path}/{pattern}")
    for word in words:
        assert word in str(error.value)


def test_a_run_of_release_0_1_says_how_to_get_its_data_file(dataset, tmp_path, photos, capsys):
    old = shutil.copytree(OLD_WORKDIR, tmp_path / "old run")
    predicting = [f"--workdir={old}", "--mode=predict", f"--images={photos}"]
    assert launch.main(predicting) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert "no data.json" in message
    assert f"`python launch.py --workdir='{old}'`" in message
    # What the message says helps: training calls this first, and then sees that it is finished.
    identity.begin(old, read_config(old), dataset)
    assert load_trained(old).class_names == tuple("0123456789")


def test_the_command_prints_a_table_and_says_where_the_files_are(workdir, photos, capsys):
    arguments = [f"--workdir={workdir}", "--mode=predict", f"--images={photos}/*", "--top_k=2"]
    assert launch.main(arguments) == 0
    output = capsys.readouterr().out
    assert f"see {workdir}/predict" in output
    assert "and 20 more" in output
    assert "40 images predicted" in output
    assert rows_of(workdir)[0].keys() == {
        "file", "label", "class_1", "probability_1", "class_2", "probability_2", "error",
    }  # fmt: skip
    sheet = Image.open(workdir / "predict/contact_sheet.png")
    assert sheet.mode == "RGB"
    assert sorted(path.name for path in (workdir / "predict").iterdir()) == [
        "contact_sheet.png", "predictions.csv",
    ]  # fmt: skip


MISTAKES = [
    (["--mode=predict"], ["--images=PATH_OR_GLOB"]),
    (["--mode=predict", "--images={photos}"], ["--workdir"]),
    (["--mode=predict", "--workdir={run}"], ["--images=PATH_OR_GLOB"]),
    (["--mode=predict", "--workdir={run}", "--images="], ["--images"]),
    (["--mode=predict", "--workdir={run}", "--images={photos}", "--top_k=0"], ["--top_k=0"]),
    (["--mode=predict", "--workdir={run}", "--images={photos}", "--top_k=11"], ["1 to 10"]),
    (["--mode=predict", "--workdir={run}", "--images={photos}", "--step=5"], ["--step=5"]),
    (["--mode=eval", "--workdir={run}", "--images={photos}"], ["flag of --mode=predict"]),
    (["--mode=predict", "--workdir={run}", "--images={run}/config.json"], ["none of 1 files"]),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_mistake_costs_one_line(arguments, words, workdir, photos, capsys):
    names = {"run": workdir, "photos": photos}
    assert launch.main([argument.format(**names) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    lines = [line for line in output.err.splitlines() if line.startswith("launch.py: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_nothing_is_left_where_no_file_can_be_read(workdir, photos, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("predict"))
    with pytest.raises(UserError, match="none of 1 files"):
        predict_files(run, str(run / "config.json"))
    assert not (run / "predict").exists()
    predict_files(run, str(photos))
    with pytest.raises(UserError, match="none of 1 files"):
        predict_files(run, str(run / "config.json"))
    assert len(rows_of(run)) == 40


@pytest.mark.parametrize("channels", [2, 5])
def test_a_network_whose_images_are_not_those_of_files_is_refused(
    channels, workdir, photos, monkeypatch
):
    trained = dataclasses.replace(load_trained(workdir), image_shape=(8, 8, channels))
    monkeypatch.setattr(predict, "load_trained", lambda *arguments: trained)
    with pytest.raises(UserError, match=f"images of {channels} channels; allowed: 1, 3 or 4"):
        predict_files(workdir, str(photos))


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"image_shape": [8, 8], "digest": "x"}'])
def test_a_damaged_data_file_is_refused(damage, workdir, photos, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    (run / layout.DATA_FILE).write_text(damage)
    with pytest.raises(UserError, match=r"data\.json"):
        predict_files(run, str(photos))


def test_a_data_file_that_was_changed_by_hand_is_refused(workdir, photos, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    data = json.loads((run / layout.DATA_FILE).read_text())
    data["class_names"].reverse()
    (run / layout.DATA_FILE).write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"data\.json is not what was written"):
        predict_files(run, str(photos))


def test_a_deviation_of_zero_in_the_data_file_is_refused(workdir, photos, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    data = json.loads((run / layout.DATA_FILE).read_text())
    del data["sha256"]  # A file without a digest is read as it is.
    data["std"] = [0.0 for _ in data["std"]]
    (run / layout.DATA_FILE).write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"data\.json .*do not fit together"):
        predict_files(run, str(photos))


def test_the_class_is_green_in_a_folder_of_its_name_and_red_in_another():
    image = np.zeros((8, 8, 1), np.uint8)

    def drawn(folder):
        label = folder if folder in "cat dog" else ""
        found = predict.Prediction(Path(folder, "1.png"), label, ("cat",), (0.9,))
        return predict._tile(found, image).captions[0][1]

    assert [drawn("cat"), drawn("dog"), drawn("photos")] == [RIGHT, WRONG, INK]
    sheet = contact_sheet([Tile(image, [("cat", RIGHT), ("cat/1.png", INK)])])
    colours = {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in sheet.getcolors(sheet.size[0] ** 2)}
    assert RIGHT in colours
    assert WRONG not in colours


def test_classes_that_differ_in_case_alone_are_told_apart():
    found = [predict._class_of(name, ("A", "a", "Cat")) for name in ("A", "a", "cat", "CAT", "b")]
    assert found == ["A", "a", "Cat", "Cat", ""]


def test_many_files_do_not_take_more_memory(workdir, photos, monkeypatch):
    """At no time are more images held than in two batches, two for each thread and tiles."""
    held = {"now": 0, "most": 0}

    class Counted(np.ndarray):
        def __del__(self):
            if self.base is not None and getattr(self, "counted", False):
                held["now"] -= 1

    def counting(path, shape, fit):
        image = read_image(path, shape, fit).view(Counted)
        image.counted = True
        held["now"] += 1
        held["most"] = max(held["most"], held["now"])
        return image

    (file, *_) = sorted(photos.rglob("*.png"))
    monkeypatch.setattr(predict, "find_images", lambda pattern: [file] * 3000)
    monkeypatch.setattr(predict, "read_image", counting)
    found = predict_files(workdir, "all")
    assert found.files == 3000
    assert held["most"] <= 2 * (predict._MAX_BATCH + images.thread_count()) + predict._MAX_TILES
