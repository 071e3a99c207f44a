import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from flexpool_jax.data import DATASETS, load_dataset, prepare_dataset
from flexpool_jax.data.images import encode_png
from flexpool_jax.data.load import find_prepared, memory_for_images
from flexpool_jax.data.stored import StoredImages
from flexpool_jax.errors import UserError

ROOT = Path(__file__).parents[2]
RECORDS = "digits-train.array_record-00000-of-00001"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare_dataset("digits", folder)
    return folder


def run(code, *paths, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, paths), str(ROOT)])}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, **options)


def test_digits_are_scikit_learns_enlarged(data_dir):
    dataset = load_dataset("digits", data_dir)
    assert dataset.train.images.shape == (1438, 32, 32, 1)
    assert dataset.test.images.shape == (359, 32, 32, 1)
    assert dataset.class_names == tuple("0123456789")


def test_digits_are_stored_as_scikit_learn_has_them(data_dir):
    bunch = load_digits()
    expected = zip(np.rint(bunch.images * 255 / 16).astype(np.uint8), bunch.target, strict=True)
    dataset = load_dataset("digits", data_dir, image_size=8)
    got = [
        (image.tobytes(), label)
        for split in (dataset.train, dataset.test)
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    ]
    assert sorted(got) == sorted((image.tobytes(), int(label)) for image, label in expected)


def test_neither_tensorflow_nor_jax_is_imported(tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("import os; os._exit(99)")
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("import os; os._exit(98)")
    code = (
        "from flexpool_jax.data import load_dataset, prepare_dataset\n"
        f"prepare_dataset('digits', {str(tmp_path / 'data')!r})\n"
        f"print(len(load_dataset('digits', {str(tmp_path / 'data')!r}).train))"
    )
    process = run(code, tmp_path, stdout=subprocess.PIPE)
    assert process.communicate()[0].strip() == b"1438"
    assert process.returncode == 0


def test_statistics_are_those_of_the_training_split_alone(data_dir):
    for holdout in (0.0, 0.3):
        dataset = load_dataset("digits", data_dir, holdout=holdout, seed=1)
        np.testing.assert_allclose(dataset.mean, (dataset.train.images / 255).mean(), rtol=1e-5)
        np.testing.assert_allclose(dataset.std, (dataset.train.images / 255).std(), rtol=1e-5)


def test_holdout_never_looks_at_the_test_split(data_dir):
    official = load_dataset("digits", data_dir)
    held = load_dataset("digits", data_dir, holdout=0.25, seed=3)

    def rows(images):
        return {image.tobytes() for image in images}

    assert len(held.train) + len(held.test) == len(official.train)
    assert rows(held.test.images) <= rows(official.train.images)
    other_seed = load_dataset("digits", data_dir, holdout=0.25, seed=4)
    assert not np.array_equal(held.test.images, other_seed.test.images)


@pytest.mark.parametrize("holdout", [-0.1, 1.0, float("nan")])
def test_an_impossible_holdout_is_refused(data_dir, holdout):
    with pytest.raises(UserError, match="holdout is"):
        load_dataset("digits", data_dir, holdout=holdout)


def test_kept_arrays_serve_without_the_records_being_decoded(data_dir):
    first = load_dataset("digits", data_dir)
    records = data_dir / "digits" / "1.0.0" / RECORDS
    times, whole = records.stat(), records.read_bytes()
    try:
        # The same name, size and time of change, but nothing that could be decoded.
        records.write_bytes(bytes(len(whole)))
        os.utime(records, ns=(times.st_atime_ns, times.st_mtime_ns))
        again = load_dataset("digits", data_dir)
    finally:
        records.write_bytes(whole)
    np.testing.assert_array_equal(first.train.images, again.train.images)
    np.testing.assert_array_equal(first.test.labels, again.test.labels)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "header", "shape", "stale"])
def test_damaged_or_stale_kept_arrays_are_made_anew(data_dir, damage):
    first = load_dataset("digits", data_dir)
    kept = data_dir / "digits" / "1.0.0" / "decoded_32.npz"
    content = kept.read_bytes()
    if damage == "truncated":
        kept.write_bytes(content[:-100])
    elif damage == "flipped":
        middle = len(content) // 2
        kept.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "header":
        images = content.index(b"train_images.npy")
        kept.write_bytes(content[:images] + content[images:].replace(b"), }", b" , }", 1))
    elif damage == "shape":
        kept.write_bytes(content.replace(b"(1438, 32, 32, 1)", b"(1430, 32, 32, 1)"))
    else:
        os.utime(kept.with_name(RECORDS))
        stale = np.load(kept)
        np.savez(
            kept,
            **{
                name: np.zeros_like(stale[name]) if "images" in name else stale[name]
                for name in stale.files
            },
        )
    damaged = kept.read_bytes()
    again = load_dataset("digits", data_dir)
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert kept.read_bytes() != damaged


def test_a_read_only_data_folder_is_read(data_dir, tmp_path):
    folder = data_dir / "digits" / "1.0.0"
    (folder / "decoded_16.npz").mkdir()  # Where the arrays would be kept: not even root can.
    try:
        assert load_dataset("digits", data_dir, image_size=16).image_shape == (16, 16, 1)
    finally:
        (folder / "decoded_16.npz").rmdir()


DAMAGE = {
    "its last byte is missing": lambda content: content[:-1],
    "most of it is missing": lambda content: content[:10],
    "it is empty": lambda content: b"",
    "its middle is zeros": lambda content: (
        content[: len(content) // 3] + bytes(len(content) // 3) + content[2 * (len(content) // 3) :]
    ),
    "it is missing": None,
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in ("dataset_info.json", "features.json", "label.labels.txt", RECORDS)
        for damage in DAMAGE
        # Without dataset_info.json the data set is not prepared yet.
        if (name, damage) != ("dataset_info.json", "it is missing")
    ],
)
def test_a_damaged_prepared_folder_says_what_to_do(name, damage, data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path, ignore=shutil.ignore_patterns("*.npz"), dirs_exist_ok=True)
    path = tmp_path / "digits" / "1.0.0" / name
    if DAMAGE[damage] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(UserError, match=r"digits/1.0.0 is damaged .*delete this folder"):
        load_dataset("digits", tmp_path)


def test_a_data_dir_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot prepare digits: .*file"):
        load_dataset("digits", tmp_path / "file")


# Slowed down, so that there is a middle to be killed in; otherwise what load_dataset does.
PREPARE_SLOWLY = """
import dataclasses, sys, time
from pathlib import Path
from flexpool_jax.data.prepare import prepare
from flexpool_jax.data.registry import DATASETS, READERS
from flexpool_jax.registration import resolve

def read(files):
    def slowly(examples):
        for index, example in enumerate(examples):
            if index == 700:
                print("in the middle", flush=True, file=sys.__stdout__)
                time.sleep(float(sys.argv[2]))
            yield example
    contents = resolve(DIGITS.read, READERS)(files)
    splits = contents.splits | {"train": slowly(contents.splits["train"])}
    return dataclasses.replace(contents, splits=splits)

DIGITS = DATASETS["digits"]
prepare(dataclasses.replace(DIGITS, read=read), Path(sys.argv[1]), None)
"""


def start_preparing(data_dir, seconds):
    code = f"import sys; sys.argv = ['', {str(data_dir)!r}, {seconds!r}]\n" + PREPARE_SLOWLY
    process = run(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in the middle\n"
    return process


def test_a_killed_preparation_leaves_nothing_that_is_taken_for_whole(tmp_path):
    process = start_preparing(tmp_path, "60")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list((tmp_path / "digits").iterdir())  # It was killed with something written.
    assert not (tmp_path / "digits" / "1.0.0").exists()
    dataset = load_dataset("digits", tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (1438, 359)
    # Nor is anything left of the lock and of the killed process.
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_a_second_process_waits_for_the_first(tmp_path, capfd):
    first = start_preparing(tmp_path, "1.5")
    datasets = []
    threads = [
        threading.Thread(target=lambda: datasets.append(load_dataset("digits", tmp_path)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "waiting for another process" in capfd.readouterr().err
    assert [len(dataset.train) for dataset in datasets] == [1438, 1438]
    assert first.wait() == 0


class Blobs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Stands for any data set that TFDS has prepared, with images of its own sizes."""

    VERSION = tfds.core.Version("2.0.1")
    splits, sizes, with_label, unlabelled = ("train", "test"), (12,), True, ()

    def __init__(self, name, data_dir, **attributes):
        self.name = name
        self.__dict__.update(attributes)
        super().__init__(data_dir=data_dir)

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3))}
        if self.with_label:
            features["label"] = tfds.features.ClassLabel(names=["round", "square"])
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.splits}

    def _generate_examples(self, split):
        import io

        for index in range(20):
            size = self.sizes[index % len(self.sizes)]
            image = encode_png(np.full((size, size, 3), 10 * index, np.uint8))
            label = -1 if split in self.unlabelled else index % 2
            example = {"image": io.BytesIO(image), "label": label}
            yield index, {key: example[key] for key in self.info.features}


def prepare_blobs(data_dir, name="blobs", file_format="array_record", **attributes):
    Blobs(name, data_dir, **attributes).download_and_prepare(file_format=file_format)


def test_what_tfds_prepared_is_read_as_it_is(tmp_path):
    prepare_blobs(tmp_path)
    dataset = load_dataset("blobs", tmp_path)
    assert dataset.image_shape == (12, 12, 3)
    assert dataset.class_names == ("round", "square")
    # Each image has one value, 10 × its index; label and index have the same parity.
    values = dataset.test.images[:, 0, 0, 0]
    assert sorted(values.tolist()) == list(range(0, 200, 10))
    np.testing.assert_array_equal(values // 10 % 2, dataset.test.labels)
    assert len(load_dataset("blobs:2.0.1", tmp_path).train) == 20
    assert prepare_dataset("blobs", tmp_path) == tmp_path / "blobs" / "2.0.1"


def test_the_newest_version_is_the_highest_number(tmp_path):
    for version in ("9.1.0", "10.0.0", "2.11.0"):
        (tmp_path / "blobs" / version).mkdir(parents=True)
        info = tmp_path / "blobs" / version / "dataset_info.json"
        info.write_text('{"fileFormat": "array_record"}')
    assert find_prepared("blobs", tmp_path) == tmp_path / "blobs" / "10.0.0"


def test_copies_of_the_images_share_the_memory_of_the_machine(monkeypatch):
    memory = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 8000}
    monkeypatch.setattr("os.sysconf", memory.__getitem__)
    assert [memory_for_images("auto", copies=copies) for copies in (1, 4)] == [2000, 500]
    assert memory_for_images("auto", device_bytes=1000, copies=4) == 250


def test_what_tfds_prepared_of_a_data_set_of_ours_is_taken(tmp_path):
    prepare_blobs(tmp_path, name="fashion_mnist")
    dataset = load_dataset("fashion_mnist", tmp_path, raw_dir=tmp_path / "nowhere")
    assert dataset.class_names == ("round", "square")


def test_a_data_set_without_test_split_gives_up_a_fifth_of_every_class(tmp_path):
    prepare_blobs(tmp_path, splits=("train",))
    dataset = load_dataset("blobs", tmp_path)
    assert np.bincount(dataset.train.labels).tolist() == [8, 8]
    assert np.bincount(dataset.test.labels).tolist() == [2, 2]


def test_a_validation_split_stands_in_for_a_test_split(tmp_path):
    prepare_blobs(tmp_path, splits=("train", "validation"))
    assert len(load_dataset("blobs", tmp_path).test) == 20


@pytest.mark.parametrize("unlabelled", ["test", "validation"])
def test_a_validation_split_replaces_a_test_split_without_labels(tmp_path, unlabelled):
    splits = ("train", "test", "validation")
    prepare_blobs(tmp_path, splits=splits, unlabelled=(unlabelled,))
    test = load_dataset("blobs", tmp_path).test
    assert np.bincount(test.labels).tolist() == [10, 10]


def test_images_that_do_not_fit_into_memory_are_not_called_damaged(tmp_path, monkeypatch):
    def too_many(*args, **kwargs):
        raise MemoryError("Unable to allocate 1.40 GiB")

    prepare_blobs(tmp_path)
    monkeypatch.setattr(StoredImages, "__array__", too_many)
    with pytest.raises(UserError, match=r"1.40 GiB.*placement=stream") as refused:
        load_dataset("blobs", tmp_path)
    assert "delete" not in str(refused.value)


def test_images_that_differ_in_size_need_an_image_size(tmp_path):
    prepare_blobs(tmp_path, sizes=(12, 9))
    with pytest.raises(UserError, match=r"differ in size .* set dataset.image_size"):
        load_dataset("blobs", tmp_path)
    assert load_dataset("blobs", tmp_path, image_size=10).image_shape == (10, 10, 3)


def test_what_cannot_be_read_or_classified_is_refused(tmp_path):
    prepare_blobs(tmp_path, name="unlabelled", with_label=False)
    with pytest.raises(UserError, match="has the features image; needed: image and label"):
        load_dataset("unlabelled", tmp_path)
    with pytest.raises(UserError, match="did you mean 'unlabelled'"):
        load_dataset("unlabeled", tmp_path)
    prepare_blobs(tmp_path, name="untrained", splits=("test",))
    with pytest.raises(UserError, match="has no training split; it has test"):
        load_dataset("untrained", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashon_mnist", "did you mean 'fashion_mnist'"),
        ("eurosat/rgb", r"needs TensorFlow.*tfds build eurosat/rgb --file_format=array_record"),
        ("noise", "unknown data set 'noise'; allowed"),  # TFDS's opinosis is not prepared.
        ("../digits", "unknown data set"),
        ("", "unknown data set"),
        ("blobs:9.9.9", "unknown data set"),
    ],
)
def test_an_unknown_name_costs_one_line_that_lists_what_is_allowed(data_dir, name, message):
    with pytest.raises(UserError, match=message) as caught:
        load_dataset(name, data_dir)
    assert all(allowed in str(caught.value) for allowed in DATASETS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["data_dir", "raw_dir"])
def test_a_web_address_is_not_a_folder(field, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {"data_dir": tmp_path / "data", field: "https://example.org/data"}
    with pytest.raises(UserError, match=rf"dataset.{field}='https://.*on this machine"):
        load_dataset("digits", **folders)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        # As ArrayRecord's writer says it.
        RuntimeError("UNKNOWN: No space left on device; writing at byte 0"),
    ],
)
def test_a_full_disk_is_an_os_error_that_names_the_folder(error, tmp_path, monkeypatch):
    def full(*args, **options):
        raise error

    monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, "download_and_prepare", full)
    with pytest.raises(OSError) as caught:
        prepare_dataset("digits", tmp_path / "data")
    assert caught.value.errno in (errno.ENOSPC, errno.EDQUOT)
    assert caught.value.filename == str(tmp_path / "data")


def test_loaded_arrays_cannot_be_changed_under_their_digest(data_dir):
    dataset = load_dataset("digits", data_dir)
    for array in (dataset.train.images, dataset.test.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
