import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.imaging import png as pieces_module
from app.imaging.decode import decode_image
from app.imaging.encode import confidence_png, heatmap_png, overlay_png
from app.imaging.png import PIECE, pieces


@given(st.integers(1, 3000), st.integers(1, 10_000_000))
def test_pieces_divide_the_rows_and_are_bounded(height, width):
    rows = [row for piece in pieces(height, width) for row in range(piece.start, piece.stop)]
    assert rows == list(range(height))
    for piece in pieces(height, width):
        assert (piece.stop - piece.start) * width <= max(PIECE, width)


# Results in pieces of a few rows equal those in one piece

HEIGHT, WIDTH = 23, 17
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
CONFIDENCE = RNG.random((HEIGHT, WIDTH), np.float32)
MASK = RNG.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8)
PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def tiff(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        lambda: decode_image(tiff(IMAGE), 1000),
        lambda: decode_image(tiff(GREY16), 1000),
        lambda: confidence_png(CONFIDENCE),
        lambda: confidence_png(CONFIDENCE, 16),
        lambda: heatmap_png(CONFIDENCE),
        lambda: overlay_png(IMAGE, MASK, PALETTE),
    ],
    ids=["rgb", "grey16", "confidence", "confidence16", "heatmap", "overlay"],
)
def test_result_does_not_depend_on_pieces(make, monkeypatch):
    whole = make()
    monkeypatch.setattr(pieces_module, "PIECE", 5 * WIDTH)
    assert np.array_equal(make(), whole)
