import io
import os
import shutil
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from flexpool_jax.data import load_dataset, prepare_dataset
from flexpool_jax.data.images import Fit
from flexpool_jax.data.readers import image_folder
from flexpool_jax.errors import UserError

CLASSES = ("cat", "dog", "Zebra crossing")


def picture(value, size=(12, 12), mode="RGB", form="PNG"):
    """An image file of one value; half of it darker, so that orientation can be seen."""
    array = np.full((size[1], size[0], 3), value, np.uint8)
    array[: size[1] // 2] //= 2
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, form)
    return buffer.getvalue()


def pages(count, form):
    frames = [Image.fromarray(np.full((12, 12, 3), 9 * n, np.uint8)) for n in range(count)]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def write_tree(root, prefixes=("train/", "test/"), count=4, **options):
    for prefix in prefixes:
        for index, class_name in enumerate(CLASSES):
            folder = root / prefix / class_name
            folder.mkdir(parents=True)
            for number in range(count):
                value = 80 * index + 8 * number + 10
                (folder / f"{number}.png").write_bytes(picture(value, **options))
    return root


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree")


def load(tree, tmp_path, **options):
    return load_dataset("image_folder", tmp_path / "data", tree, **options)


def test_two_splits_and_their_classes_are_read(tree, tmp_path):
    dataset = load(tree, tmp_path)
    assert not dataset.test_is_drawn
    assert dataset.class_names == ("Zebra crossing", "cat", "dog")
    assert dataset.train.images.shape == (12, 12, 12, 3)
    assert np.bincount(dataset.train.labels).tolist() == [4, 4, 4]
    assert np.bincount(dataset.test.labels).tolist() == [4, 4, 4]
    # The bright half of each image tells its class and number.
    bright = dataset.train.images[:, -1, 0, 0]
    expected = {0: {170, 178, 186, 194}, 1: {10, 18, 26, 34}, 2: {90, 98, 106, 114}}
    for label, values in expected.items():
        assert set(bright[dataset.train.labels == label].tolist()) == values


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Test"])
def test_the_second_split_has_several_names(tmp_path, name):
    tree = write_tree(tmp_path / "tree", ("train/", f"{name}/"))
    assert len(load(tree, tmp_path).test) == 12


def test_a_folder_of_unlabelled_test_images_is_passed_over(tmp_path, capfd):
    tree = write_tree(tmp_path / "tree", ("train/", "val/"))
    (tree / "test").mkdir()
    (tree / "test" / "0.png").write_bytes(picture(5))
    dataset = load(tree, tmp_path)
    assert np.bincount(dataset.test.labels).tolist() == [4, 4, 4]
    assert "1 images of" in capfd.readouterr().err


def test_one_tree_is_split_by_class_and_seed(tmp_path):
    tree = write_tree(tmp_path / "tree", ("",), count=10)
    datasets = [load(tree, tmp_path, seed=seed) for seed in (0, 0, 1)]
    for dataset in datasets:
        assert np.bincount(dataset.train.labels).tolist() == [8, 8, 8]
        assert np.bincount(dataset.test.labels).tolist() == [2, 2, 2]
    same, again, other = (dataset.test.images.tobytes() for dataset in datasets)
    assert same == again != other
    assert datasets[0].test_is_drawn


def test_holdout_of_one_tree_leaves_its_test_images_alone(tmp_path):
    tree = write_tree(tmp_path / "tree", ("",), count=10)
    test = {image.tobytes() for image in load(tree, tmp_path).test.images}
    held = load(tree, tmp_path, holdout=0.25)
    seen = {image.tobytes() for split in (held.train, held.test) for image in split.images}
    assert len(seen) == 24
    assert not test & seen


def test_every_format_and_mode_is_read(tmp_path):
    tree = write_tree(tmp_path / "tree")
    folder = tree / "train" / "cat"
    for form, mode in (
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("BMP", "RGB"),
        ("WEBP", "RGB"),
        ("GIF", "L"),
        ("TIFF", "RGB"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("PNG", "LA"),
    ):
        (folder / f"{form}_{mode}.{form}").write_bytes(picture(200, mode=mode, form=form))
    (folder / "deeper").mkdir()
    (folder / "deeper" / "one.Jpeg").write_bytes(picture(200, form="JPEG"))
    dataset = load(tree, tmp_path)
    assert dataset.image_shape == (12, 12, 3)
    images = dataset.train.images[dataset.train.labels == 1]
    assert len(images) == 4 + 11
    bright = images[:, 9, 6].astype(int)
    others = [pixel for pixel in bright if pixel.max() > 60]
    assert len(others) == 11
    # All are (nearly) the grey of 200, but the one of a single bit, which is white or black.
    assert sum(abs(pixel - 200).max() <= 4 for pixel in others) >= 10


def test_grey_images_alone_have_one_channel(tmp_path):
    tree = write_tree(tmp_path / "tree", mode="L")
    assert load(tree, tmp_path).image_shape == (12, 12, 1)


def test_photos_taken_on_their_side_are_turned_upright(tmp_path):
    tree = write_tree(tmp_path / "tree", size=(8, 12))
    image = Image.open(io.BytesIO(picture(200, size=(12, 8))))
    exif = image.getexif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    image.save(tree / "train" / "cat" / "photo.jpg", exif=exif)
    images = load(tree, tmp_path).train.images
    photo = max(images, key=lambda image: image.max())
    # Its dark top has become its right side.
    assert photo.shape == (12, 8, 3)
    assert photo[6, 1, 0] > 180 > 120 > photo[6, 6, 0]


def test_images_are_shrunk_by_area_averaging(tmp_path):
    tree = write_tree(tmp_path / "tree")
    images = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    Image.fromarray(images).save(tree / "train" / "Zebra crossing" / "0.png")
    got = load(tree, tmp_path, image_size=4).train.images[0]
    expected = images.reshape(4, 3, 4, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(got, expected, atol=1)


def test_images_that_differ_in_size_need_an_image_size(tree, tmp_path):
    (tree / "test" / "dog" / "9.png").write_bytes(picture(9, size=(20, 10)))
    message = r"0.png has 12 x 12 pixels, .*9.png 20 x 10; set dataset.image_size"
    with pytest.raises(UserError, match=message):
        load(tree, tmp_path)
    assert load(tree, tmp_path, image_size=16).image_shape == (16, 16, 3)


def test_a_changed_tree_is_prepared_again_and_an_unchanged_one_is_not(tree, tmp_path):
    first = prepare_dataset("image_folder", tmp_path / "data", tree)
    status = first.stat()
    assert prepare_dataset("image_folder", tmp_path / "data", tree) == first
    assert first.stat().st_mtime_ns == status.st_mtime_ns
    path = tree / "train" / "cat" / "0.png"
    times = path.stat()
    content = picture(255)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    second = prepare_dataset("image_folder", tmp_path / "data", tree)
    assert second != first
    assert load(tree, tmp_path).train.images.max() == 255


def test_folders_with_files_of_the_same_names_sizes_and_times_are_told_apart(tmp_path):
    for place, value in (("a", 10), ("b", 200)):
        for split in ("train", "test"):
            for name in ("cat", "dog"):
                path = tmp_path / place / "pictures" / split / name / "0.bmp"
                path.parent.mkdir(parents=True)
                path.write_bytes(picture(value, form="BMP"))
                os.utime(path, (10**9, 10**9))
    brightest = [
        load(tmp_path / place / "pictures", tmp_path).train.images.max() for place in ("a", "b")
    ]
    assert brightest == [10, 200]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_zip_archive_serves_as_a_tree(tree, tmp_path, wrapped):
    base = {"root_dir": tree.parent, "base_dir": "tree"} if wrapped else {"root_dir": tree}
    archive = shutil.make_archive(tmp_path / "packed", "zip", **base)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("__MACOSX/tree/train/._cat", "x")
    from_zip, from_folder = load(archive, tmp_path), load(tree, tmp_path)
    np.testing.assert_array_equal(from_zip.train.images, from_folder.train.images)
    assert from_zip.class_names == from_folder.class_names


def test_what_systems_leave_behind_is_passed_over(tree, tmp_path):
    for name in (".DS_Store", "train/.DS_Store", "train/cat/._0.png", "train/cat/Thumbs.db"):
        (tree / name).write_bytes(b"x")
    (tree / "__MACOSX" / "cat").mkdir(parents=True)
    (tree / "README.txt").write_text("beside the classes, not among the images")
    assert len(load(tree, tmp_path).train) == 12


@pytest.mark.parametrize("name", ["README.txt", "LICENSE.md", "annotations.json"])
def test_text_in_the_folder_of_a_class_is_passed_over(tree, tmp_path, name):
    (tree / "train" / "cat" / name).write_text("text")
    assert len(load(tree, tmp_path).train) == 12


def test_images_that_belong_to_no_class_of_a_split_are_reported(tree, tmp_path, capsys):
    (tree / "val" / "cat").mkdir(parents=True)
    (tree / "val" / "cat" / "1.png").write_bytes(picture(1))
    (tree / "train" / "loose.png").write_bytes(picture(1))
    assert len(load(tree, tmp_path).train) == 12
    assert "2 images of " in capsys.readouterr().err


def test_a_zip_archive_with_folders_that_differ_by_letter_case_is_refused(tree, tmp_path):
    shutil.copytree(tree / "test", tree / "Test")
    archive = shutil.make_archive(tmp_path / "packed", "zip", root_dir=tree)
    with pytest.raises(UserError, match=r"'Test' and 'test', which differ by letter case alone"):
        load(archive, tmp_path)


def test_a_class_of_one_image_is_named(tmp_path):
    tree = write_tree(tmp_path / "tree", ("",), count=4)
    for number in range(1, 4):
        (tree / "dog" / f"{number}.png").unlink()
    with pytest.raises(UserError, match="class 'dog' has 1 training image"):
        load(tree, tmp_path)


def png_that_claims(width, height):
    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is damaged, or not a PNG, JPEG, BMP, WebP, GIF or TIFF image"),
        (b"no image at all", r"is damaged, or not a PNG, JPEG, BMP, WebP, GIF or TIFF image"),
        (picture(1, size=(64, 64), form="JPEG")[:-200], r"is a damaged image \("),
        (picture(1)[:-30], r"is a damaged image \("),
        (picture(1, form="ICO"), r"is damaged, or not a PNG, JPEG, BMP, WebP, GIF or TIFF image"),
        (pages(2, "TIFF"), r"holds several images"),
        (pages(2, "GIF"), r"holds several images"),
        (png_that_claims(12, 12), r"is a damaged image \("),
        (png_that_claims(50_000, 50_000), r"too large: .*pixels"),
        (png_that_claims(9_500, 9_500), r"9500 x 9500 pixels; at most 80,000,000"),
    ],
)
def test_a_damaged_or_huge_image_is_named_and_nothing_is_left(tree, tmp_path, content, message):
    path = tree / "train" / "dog" / "2.png"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(UserError, match=message) as caught:
            load(tree, tmp_path, image_size=8)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["train", "Val"])
def test_a_class_may_have_the_name_of_a_split(name, tmp_path):
    tree = write_tree(tmp_path / "tree", prefixes=("",))
    (tree / "cat").rename(tree / name)
    source = image_folder.open_image_folder(tree, Fit(8))
    assert (source.num_classes, source.num_examples) == (3, {"train": 12})


def spoil_empty_class(tree):
    (tree / "train" / "emu").mkdir()
    (tree / "test" / "emu").mkdir()


def spoil_class_missing_from_test(tree):
    shutil.rmtree(tree / "test" / "dog")


def spoil_class_missing_from_train(tree):
    shutil.rmtree(tree / "train" / "dog")


def spoil_one_class(tree):
    for split in ("train", "test"):
        for class_name in CLASSES[1:]:
            shutil.rmtree(tree / split / class_name)


def spoil_no_test(tree):
    shutil.rmtree(tree / "test")


def spoil_no_train(tree):
    shutil.rmtree(tree / "train")


def spoil_everything(tree):
    for path in tree.iterdir():
        shutil.rmtree(path)


def spoil_with_other_files(tree):
    (tree / "train" / "cat" / "film.mp4").write_text("x")


def spoil_with_text_alone(tree):
    for split in ("train", "test"):
        (tree / split / "emu").mkdir()
        (tree / split / "emu" / "README.txt").write_text("x")


def spoil_with_letter_case(tree):
    shutil.copytree(tree / "train", tree / "Train")


def spoil_with_letter_case_of_a_class(tree):
    for split in ("train", "test"):
        shutil.copytree(tree / split / "cat", tree / split / "CAT")


def spoil_with_unprintable_name(tree):
    for split in ("train", "test"):
        (tree / split / "cat").rename(tree / split / "c\nat")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_empty_class, r"train/emu has no images"),
        (spoil_class_missing_from_test, r"tree/test has no folder for the class 'dog'"),
        (spoil_class_missing_from_train, r"tree/train has no folder for the class 'dog'"),
        (spoil_one_class, r"has 1 folders of classes; at least 2"),
        (spoil_no_test, r"has a folder train, but no test nor val"),
        (spoil_no_train, r"has a folder test, but no train"),
        (spoil_everything, r"has 0 folders of classes"),
        (spoil_with_other_files, r"film.mp4 is not an image; allowed .*\.png"),
        (spoil_with_text_alone, r"train/emu has no images"),
        (spoil_with_letter_case, r"the folders 'Train' and 'train', which differ by letter case"),
        (spoil_with_letter_case_of_a_class, r"'test/CAT' and 'test/cat', which differ by letter"),
        (spoil_with_unprintable_name, r"a class named 'c\\nat'"),
    ],
)
def test_a_tree_of_the_wrong_shape_costs_one_line(tree, tmp_path, spoil, message):
    spoil(tree)
    with pytest.raises(UserError, match=message) as caught:
        load(tree, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_the_folder_has_to_be_named(tmp_path):
    with pytest.raises(UserError, match=r"the images: --config.dataset.raw_dir=FOLDER"):
        load("", tmp_path)
    with pytest.raises(UserError, match=r"no folder or zip archive .*nowhere"):
        load(tmp_path / "nowhere", tmp_path)


def test_images_that_keep_their_proportions_are_stored_as_they_are(tmp_path):
    tree = write_tree(tmp_path / "tree", size=(30, 20))
    jpeg = picture(250, size=(40, 20), form="JPEG")
    (tree / "train" / "cat" / "photo.JPEG").write_bytes(jpeg)
    image = Image.open(io.BytesIO(picture(250, size=(40, 20))))
    exif = image.getexif()
    exif[274] = 6
    image.save(tree / "train" / "dog" / "on_its_side.jpg", exif=exif)
    dataset = load(tree, tmp_path, image_size=10, resize="crop")
    assert dataset.image_shape == (10, 10, 3)
    folder = prepare_dataset("image_folder", tmp_path / "data", tree, image_size=8, resize="crop")
    assert folder.parent.parent == tmp_path / "data" / "image_folder"
    assert len(list(folder.parent.parent.iterdir())) == 1, "another size was prepared again"
    records = b"".join(path.read_bytes() for path in folder.glob("*train.array_record*"))
    assert b"JFIF" in records
    stored = load(tree, tmp_path, image_size=10, resize="crop", max_bytes=0)
    assert stored.digest == dataset.digest
    # The dark top of the one on its side has become its right side; both keep their middle.
    upright = max(dataset.train.images[dataset.train.labels == 1], key=lambda image: image.max())
    turned = max(dataset.train.images[dataset.train.labels == 2], key=lambda image: image.max())
    assert upright[9, 5, 0] > 240 > 130 > upright[0, 5, 0]
    assert turned[5, 0, 0] > 240 > 130 > turned[5, 9, 0]


@pytest.mark.parametrize("names", [("Training", "Testing"), ("seg_train", "seg_test", "seg_pred")])
def test_splits_of_another_name_are_not_taken_for_classes(names, tmp_path):
    tree = write_tree(tmp_path / "tree", names)
    with pytest.raises(UserError, match=rf"{sorted(names)[-1]}, which hold folders .* rename them"):
        load(tree, tmp_path)
    assert not (tmp_path / "data").exists()
