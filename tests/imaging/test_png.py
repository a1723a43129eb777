"""PNG files decoded by Pillow hold the values they were encoded from."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import app.imaging.png as pieces_room
from app.imaging.png import png

SIDES = st.integers(1, 40)


def read(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@given(st.data(), st.sampled_from([np.uint8, np.uint16]))
def test_grey_round_trips(data, dtype):
    pixels = data.draw(arrays.arrays(dtype, st.tuples(SIDES, SIDES)))
    image = read(png(pixels))
    assert image.mode == {1: "L", 2: "I;16"}[pixels.itemsize]
    assert np.array_equal(np.asarray(image), pixels)


@given(st.data())
def test_colours_round_trip(data):
    pixels = data.draw(arrays.arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(3))))
    image = read(png(pixels))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)


def test_indices_round_trip_with_their_palette():
    pixels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    image = read(png(pixels, palette))
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), pixels)
    assert np.array_equal(np.asarray(image.convert("RGB")), palette[pixels])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pieces_make_one_image(monkeypatch, dtype):
    monkeypatch.setattr(pieces_room, "PIECE", 100)
    pixels = np.random.default_rng(0).integers(0, 255, (50, 30)).astype(dtype)
    assert np.array_equal(np.asarray(read(png(pixels))), pixels)


def test_views_are_encoded_by_value():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30), np.uint8)
    assert np.array_equal(np.asarray(read(png(pixels[::2, 1:-1].T))), pixels[::2, 1:-1].T)


def test_checksums_are_right():
    with Image.open(io.BytesIO(png(np.zeros((5, 5), np.uint8)))) as image:
        image.verify()  # reads all chunks and compares their checksums
