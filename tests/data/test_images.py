import io
import struct
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flexpool_jax.data.images import Fit, map_in_threads, read_header, read_image
from flexpool_jax.errors import UserError

FORMATS = ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"]


def encoded(image, form, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        buffer, form, **options
    )
    return buffer.getvalue()


def noise(mode="RGB", size=(12, 10)):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("GIF", "P", {}),
        ("GIF", "L", {}),
        ("TIFF", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "L", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", "P", {}),
        ("TIFF", "1", {"compression": "group4"}),
    ],
)
def test_lossless_formats_keep_every_pixel(form, mode, options):
    image = noise(mode)
    got = read_image(encoded(image, form, **options), "x", channels=3)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_greys_are_scaled_and_not_clipped(form):
    array = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    content = encoded(array, form)
    assert read_header(io.BytesIO(content), "x").is_grey
    image = np.asarray(read_image(content, "x", channels=1))
    np.testing.assert_allclose(image, array / 257, atol=0.51)


def test_a_sixteen_bit_tiff_that_stores_white_as_zero_is_inverted():
    array = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    content = encoded(array, "TIFF", tiffinfo={262: 0})
    image = np.asarray(read_image(content, "x", channels=1))
    np.testing.assert_allclose(image, (65535 - array) / 257, atol=0.51)


def test_twelve_bit_greys_are_scaled_from_black_to_white():
    # Pillow does not write such files: a TIFF of 4 x 1 pixels by hand, two pixels in three bytes.
    entries = [
        (256, 3, 1, 4), (257, 3, 1, 1), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 134), (278, 3, 1, 1), (279, 4, 1, 6),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    for entry in entries:
        directory += struct.pack("<HHII", *entry)
    content = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0)
    content = content.ljust(134, b"\0") + bytes.fromhex("000fff800010")
    image = np.asarray(read_image(content, "x", channels=1))
    np.testing.assert_array_equal(image, [[0, 255, 128, 1]])


def test_sixteen_bit_colours_are_scaled_and_not_clipped():
    # Pillow does not write such files: a TIFF of 2 x 1 pixels by hand (TIFF 6.0, section 6).
    pixels = np.array([[[0, 256, 65535], [32768, 511, 1]]], "<u2")
    entries = [
        (256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 140), (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 12),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    for entry in entries:
        directory += struct.pack("<HHII", *entry)
    content = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0)
    content = content.ljust(134, b"\0") + struct.pack("<3H", 16, 16, 16) + pixels.tobytes()
    image = np.asarray(read_image(content, "x", channels=3))
    np.testing.assert_allclose(image, pixels / 257, atol=1)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_32_bits_are_refused_rather_than_clipped(dtype):
    content = encoded(np.full((4, 4), 300, dtype), "TIFF")
    with pytest.raises(UserError, match=r"scan.tif has 32 bits .*allowed: 8 or 16"):
        read_image(content, "scan.tif", channels=1)


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_a_file_of_several_images_is_refused_by_name(form):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 100, 200)]
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    for read in (lambda: read_image(content, "moving", 3), lambda: header(content, "moving")):
        with pytest.raises(UserError, match=r"^moving holds several images .*allowed: one"):
            read()


def header(content, name="x"):
    return read_header(io.BytesIO(content), name)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_photos_taken_on_their_side_are_turned_upright(form):
    array = np.zeros((8, 12, 3), np.uint8)
    array[:4] = 200
    image = Image.fromarray(array)
    exif = image.getexif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    content = encoded(image, form, exif=exif)
    assert (header(content).width, header(content).height) == (8, 12)
    upright = np.asarray(read_image(content, "x", channels=3))
    # Its bright top has become its right side.
    assert upright.shape == (12, 8, 3)
    assert upright[6, 6, 0] > 180 > 20 > upright[6, 1, 0]


@given(st.sampled_from(FORMATS), st.data())
def test_any_damage_to_an_image_is_refused_or_decodes(form, data):
    whole = encoded(noise(), form)
    position = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:position]
    else:
        flipped = whole[position] ^ data.draw(st.integers(1, 255))
        damaged = whole[:position] + bytes([flipped]) + whole[position + 1 :]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = read_image(damaged, "name", channels=3)
    except UserError as error:
        assert str(error).startswith("name ")  # noqa: PT017
        return
    assert image.mode == "RGB"


def test_mapping_in_threads_keeps_the_order_and_takes_a_limited_number_of_items_ahead():
    taken = []

    def items():
        for number in range(500):
            taken.append(number)
            yield number

    results = map_in_threads(lambda number: number * number, items())
    assert next(results) == 0
    assert len(taken) < 100
    assert list(results) == [number * number for number in range(1, 500)]


def test_an_error_in_a_thread_arrives_and_what_has_not_begun_never_does():
    begun = []
    gate = threading.Event()

    def function(number):
        begun.append(number)
        if number == 0:
            raise KeyError("zero")
        gate.wait(0.2)

    with pytest.raises(KeyError):
        list(map_in_threads(function, range(1000)))
    assert len(begun) < 50


def test_the_short_side_is_resized_and_the_middle_is_kept_as_torchvision_does():
    photo = noise(size=(500, 375))
    # torchvision.transforms.Resize(256) makes 341 x 256 of it, and CenterCrop(256) begins at 42.
    resized = photo.resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[:, 42 : 42 + 256]
    np.testing.assert_array_equal(np.asarray(Fit(256, crops=True)(photo)), expected)
    upright = Fit(256, crops=True)(photo.transpose(Image.Transpose.TRANSPOSE))
    # Pillow rounds after each axis.
    np.testing.assert_allclose(np.asarray(upright, int), expected.transpose(1, 0, 2), atol=1)
