"""Label Studio's brush masks as bit streams; `make clients` compares with its own encoder."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.errors import ArgumentError
from app.imaging.brush_rle import decode_brush, encode_brush


def bits_of(encoded):
    return "".join(f"{byte:08b}" for byte in encoded)


def test_stream_of_a_toy_mask():
    # Two pixels off, one on: eight zeros and four times 255, in runs of at most 8 each.
    header = f"{12:032b}" + f"{7:05b}" + "0010" + "0011" + "0111" + "1111"
    runs = "1" + "00" + "111" + "00000000" + "1" + "00" + "011" + "11111111"
    bits = bits_of(encode_brush(np.array([[False, False, True]])))
    assert bits == (header + runs).ljust(len(bits), "0")
    assert len(bits) // 8 == len(header + runs) // 8 + 1


@pytest.mark.parametrize("pixels", [1, 2, 3, 4, 64, 65, 16384, 16385, 40000])
def test_runs_at_the_limits_of_the_sizes(pixels):
    mask = np.zeros((1, pixels + 1), bool)
    mask[0, :pixels] = True
    assert np.array_equal(decode_brush(encode_brush(mask), 1, pixels + 1), mask)


@settings(deadline=None)  # the kernels are compiled at their first call
@given(arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))))
def test_decoding_reverses_encoding(mask):
    assert np.array_equal(decode_brush(encode_brush(mask), *mask.shape), mask)


def test_values_that_are_not_repeated_are_read():
    # Label Studio's page writes such sections: here one pixel red at half opacity, one empty.
    header = f"{8:032b}" + f"{7:05b}" + "0010" + "0011" + "0111" + "1111"
    values = "".join(f"{value:08b}" for value in (255, 0, 0, 128, 0, 0, 0, 0))
    bits = header + "0" + "00" + "111" + values
    stream = [int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8)]
    assert decode_brush(stream, 1, 2).tolist() == [[True, False]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda stream: stream[:-3],  # breaks off
        lambda stream: [],
        lambda stream: [0, 0, 0, 9, *stream[4:]],  # another number of values
        lambda stream: [*stream[:4], 256],
        lambda stream: [*stream[:4], "x"],
        lambda stream: [stream],
    ],
)
def test_damaged_streams_are_an_error(damage):
    stream = encode_brush(np.array([[False, False, True]]))
    with pytest.raises(ArgumentError, match="rle: expected"):
        decode_brush(damage(stream), 1, 3)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 255), max_size=60))
def test_any_bytes_give_a_mask_or_an_error(tail):
    stream = [*encode_brush(np.zeros((2, 2), bool))[:4], *tail]
    with suppress(ArgumentError):
        assert decode_brush(stream, 2, 2).shape == (2, 2)
