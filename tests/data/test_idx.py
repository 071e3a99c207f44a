import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flexpool_jax.data.idx import parse_idx
from flexpool_jax.errors import UserError


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
