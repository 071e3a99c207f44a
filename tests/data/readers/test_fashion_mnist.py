import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flexpool_jax.data import load_dataset
from flexpool_jax.data.prepare import prepare
from flexpool_jax.data.readers.fashion_mnist import parse_idx
from flexpool_jax.errors import UserError

REAL_FILES = Path("/usr/share/datasets/fashion-mnist")
TRAIN_IMAGES = "train-images-idx3-ubyte"


def assert_is(dataset, arrays):
    for split, prefix in ((dataset.train, "train"), (dataset.test, "t10k")):
        images = arrays[f"{prefix}-images-idx3-ubyte"]
        np.testing.assert_array_equal(split.images[..., 0], images)
        np.testing.assert_array_equal(split.labels, arrays[f"{prefix}-labels-idx1-ubyte"])
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32


def test_is_read_from_upstreams_files_in_raw_dir(fashion, tmp_path):
    files = fashion()
    dataset = load_dataset("fashion_mnist", tmp_path / "data", files.raw_dir)
    assert_is(dataset, files.arrays)
    assert dataset.class_names[9] == "Ankle boot"


def test_is_downloaded_where_no_raw_dir_is_named(fashion, tmp_path):
    files = fashion()
    assert_is(load_dataset("fashion_mnist", tmp_path / "data"), files.arrays)


@pytest.mark.parametrize("kind", ["compressed again", "not compressed"])
def test_a_copy_with_the_same_content_passes(fashion, tmp_path, kind):
    files = fashion()
    path = files.raw_dir / f"{TRAIN_IMAGES}.gz"
    content = gzip.decompress(path.read_bytes())
    if kind == "not compressed":
        path.unlink()
        (files.raw_dir / TRAIN_IMAGES).write_bytes(content)
    else:
        again = gzip.compress(content, compresslevel=1, mtime=12345)
        assert again != path.read_bytes()
        path.write_bytes(again)
    assert_is(load_dataset("fashion_mnist", tmp_path / "data", files.raw_dir), files.arrays)


def damage_truncated(packed):
    return packed[: len(packed) // 2]


def damage_altered(packed):
    content = bytearray(gzip.decompress(packed))
    content[-1] ^= 1
    return gzip.compress(bytes(content))


def damage_longer(packed):
    return gzip.compress(gzip.decompress(packed) + b"\0")


def damage_shorter(packed):
    return gzip.compress(gzip.decompress(packed)[:-1])


def damage_bit_flipped(packed):
    return packed[:200] + bytes([packed[200] ^ 0x10]) + packed[201:]


def damage_emptied(packed):
    return b""


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncated,
        damage_altered,
        damage_longer,
        damage_shorter,
        damage_bit_flipped,
        damage_emptied,
    ],
)
def test_a_damaged_file_is_refused_by_name_and_nothing_is_left(fashion, tmp_path, damage):
    files = fashion()
    path = files.raw_dir / f"{TRAIN_IMAGES}.gz"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.raises(UserError) as caught:
        prepare(files.source, tmp_path / "data", files.raw_dir)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()
    # With the file mended, the same folder serves.
    path.write_bytes(whole)
    assert_is(load_dataset("fashion_mnist", tmp_path / "data", files.raw_dir), files.arrays)


def test_a_missing_file_and_a_missing_folder_are_named(fashion, tmp_path):
    files = fashion()
    (files.raw_dir / f"{TRAIN_IMAGES}.gz").unlink()
    with pytest.raises(UserError, match=f"has no {TRAIN_IMAGES}.gz \\(nor {TRAIN_IMAGES}\\)"):
        prepare(files.source, tmp_path / "data", files.raw_dir)
    with pytest.raises(UserError, match=r"dataset.raw_dir=.*nowhere is not a folder"):
        prepare(files.source, tmp_path / "data", tmp_path / "nowhere")


def test_contents_that_do_not_fit_together_are_refused(fashion, tmp_path):
    short = bytes([0, 0, 8, 1, 0, 0, 0, 29]) + bytes(29)
    files = fashion(**{"train-labels-idx1-ubyte": short})
    with pytest.raises(UserError, match=r"has 30 images, but .* has 29 labels"):
        prepare(files.source, tmp_path / "data", files.raw_dir)
    wrong = bytes([0, 0, 8, 1, 0, 0, 0, 30]) + bytes([10] * 30)
    files = fashion(**{"train-labels-idx1-ubyte": wrong})
    with pytest.raises(UserError, match="label 10; allowed: 0 to 9"):
        prepare(files.source, tmp_path / "data", files.raw_dir)


def test_a_download_that_differs_from_its_digest_is_refused(fashion, tmp_path, server):
    files = fashion()
    path = server.folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(damage_altered(path.read_bytes()))
    with pytest.raises(UserError, match=f"{TRAIN_IMAGES}.gz is not the published file"):
        prepare(files.source, tmp_path / "data", None)


def test_a_kept_download_that_rotted_is_noticed_and_downloaded_again(fashion, tmp_path, capsys):
    files = fashion()
    data_dir = tmp_path / "data"
    folder = prepare(files.source, data_dir, None)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    (kept,) = (data_dir / "downloads" / "fashion_mnist").glob(f"*{TRAIN_IMAGES[:12]}*.gz")
    kept.write_bytes(damage_bit_flipped(kept.read_bytes()))
    capsys.readouterr()
    assert_is(load_dataset("fashion_mnist", data_dir), files.arrays)
    damaged, downloading = capsys.readouterr().err.splitlines()
    assert damaged == f"{kept} is damaged; it is deleted"
    assert downloading.startswith("downloading ")


def test_a_file_that_the_server_lacks_is_named_with_the_way_out(fashion, tmp_path, server):
    files = fashion()
    (server.folder / f"{TRAIN_IMAGES}.gz").unlink()
    with pytest.raises(UserError, match=r"cannot download http.*HTTP status 404.*raw_dir"):
        prepare(files.source, tmp_path / "new" / "data", None)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.skipif(not REAL_FILES.is_dir(), reason="needs the real Fashion-MNIST files")
def test_the_real_files_have_their_published_statistics(tmp_path):
    dataset = load_dataset("fashion_mnist", tmp_path, REAL_FILES)
    assert dataset.train.images.shape == (60_000, 28, 28, 1)
    assert np.bincount(dataset.train.labels).tolist() == [6000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    # As every collection of constants has them.
    np.testing.assert_allclose([dataset.mean, dataset.std], [[0.2860], [0.3530]], atol=5e-5)


def encode(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


arrays = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6))


@given(arrays)
def test_gives_back_what_was_encoded(array):
    np.testing.assert_array_equal(parse_idx(encode(array), "x", array.ndim), array)


@given(arrays, st.data())
def test_refuses_every_truncation_and_every_surplus(array, data):
    content = encode(array)
    cut = data.draw(st.integers(0, len(content) - 1))
    for damaged in (content[:cut], content + b"\0"):
        with pytest.raises(UserError, match="file-name"):
            parse_idx(damaged, "file-name", array.ndim)


@given(st.binary(max_size=64), st.sampled_from([1, 3]))
def test_arbitrary_bytes_are_parsed_exactly_or_refused(content, num_dims):
    try:
        array = parse_idx(content, "x", num_dims)
    except UserError:
        return
    assert encode(array) == content


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\x1f\x8b\x08\x00", "begins with 1f8b0800, not 00000803"),
        (bytes([0, 0, 0x0D, 3]), "begins with 00000d03"),  # floats
        (bytes([0, 0, 8, 1]), "begins with 00000801"),  # labels where images should be
        (b"", "begins with nothing"),
    ],
)
def test_names_a_wrong_magic_number(header, message):
    with pytest.raises(UserError, match=message):
        parse_idx(header + bytes(32), "x", 3) if header else parse_idx(b"", "x", 3)


def test_sizes_whose_product_overflows_64_bits_are_refused():
    sizes = struct.pack(">3I", 2**31, 2**31, 4)  # 2**64 elements: 0 modulo 2**64
    with pytest.raises(UserError, match="18,446,744,073,709,551,632"):
        parse_idx(bytes([0, 0, 8, 3]) + sizes, "x", 3)
