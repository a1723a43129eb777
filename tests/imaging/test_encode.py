import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from app.imaging.colormap import HEAT
from app.imaging.encode import (
    confidence_png,
    full_palette,
    heatmap_png,
    mask_png,
    npz,
    overlay_png,
    run_lengths,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
PALETTE = [RED, GREEN, BLUE]
MASK = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    return image


def many_colors(count: int) -> list[tuple[int, int, int]]:
    return [(k % 251, k // 251, 7) for k in range(count)]


# Masks


def test_mask_is_indexed_with_ids_as_values():
    image = opened(mask_png(MASK, PALETTE))
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), MASK)


def test_mask_shows_the_classes_colors_and_abstains_in_white():
    colors = np.asarray(opened(mask_png(MASK, PALETTE)).convert("RGB"))
    assert colors.tolist() == [
        [list(RED), list(GREEN), list(BLUE)],
        [list(BLUE), list(WHITE), list(RED)],
    ]


def test_mask_of_255_classes_keeps_the_abstain_value_apart():
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = opened(mask_png(mask, many_colors(255)))
    assert np.array_equal(np.asarray(image), mask)
    colors = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert colors[:255].tolist() == [list(color) for color in many_colors(255)]
    assert tuple(colors[255]) == WHITE


def test_mask_of_more_classes_has_sixteen_bits():
    mask = np.array([[0, 255, 256], [299, 65533, 65535]], np.uint16)
    image = opened(mask_png(mask, many_colors(300)))
    assert image.mode == "I;16"
    assert np.array_equal(np.asarray(image), mask)


def test_full_palette_leaves_unused_rows_black():
    rows = full_palette(PALETTE)
    assert rows.shape == (256, 3)
    assert rows[:3].tolist() == [list(color) for color in PALETTE]
    assert not rows[3:255].any()
    assert tuple(rows[255]) == WHITE


# Confidence


@pytest.mark.parametrize(("depth", "mode", "top"), [(8, "L", 255), (16, "I;16", 65535)])
def test_confidence_is_rounded_exactly(depth, mode, top):
    random = np.random.default_rng(0).random((40, 50), dtype=np.float32)
    random[0, :3] = 0, 0.5, 1
    # The values next to the middle of two levels are where a float32 product goes wrong.
    random[1] = (np.arange(50) + 0.5) / top
    random[2] = (np.arange(top - 50, top) + 0.5) / top
    image = opened(confidence_png(random, depth))
    assert image.mode == mode
    expected = [[round(Fraction(float(p)) * top) for p in row] for row in random]
    assert np.asarray(image).tolist() == expected


def test_heatmap_gives_each_level_its_color():
    confidence = (np.arange(256, dtype=np.float32) / np.float32(255)).reshape(16, 16)
    colors = np.asarray(opened(heatmap_png(confidence)).convert("RGB"))
    assert np.array_equal(colors.reshape(-1, 3), HEAT)


# Overlay


def test_overlay_is_halfway_between_image_and_color():
    grey = np.full((2, 3, 3), 100, np.uint8)
    overlay = np.asarray(opened(overlay_png(grey, MASK, PALETTE)))
    assert overlay.shape == grey.shape
    assert overlay[0].tolist() == [[177, 50, 50], [50, 177, 50], [50, 50, 177]]
    assert overlay[1, 1].tolist() == [177, 177, 177]  # abstained: towards white


def test_overlay_of_sixteen_bit_mask_shows_every_class():
    palette = many_colors(300)
    mask = np.array([[0, 254, 255, 256, 299, 65535]], np.uint16)
    overlay = np.asarray(opened(overlay_png(np.zeros((1, 6, 3), np.uint8), mask, palette)))
    halves = [[value // 2 for value in palette[k]] for k in (0, 254, 255, 256, 299)]
    assert overlay[0].tolist() == [*halves, [127, 127, 127]]


# Arrays and run lengths


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_npz_holds_mask_and_half_precision_confidence(dtype):
    confidence = np.array([[0, 0.5, 1], [0.25, 0.1, 0.9]], np.float32)
    with np.load(io.BytesIO(npz(MASK.astype(dtype), confidence)), allow_pickle=False) as arrays:
        assert sorted(arrays) == ["confidence", "mask"]
        assert arrays["mask"].dtype == dtype
        assert np.array_equal(arrays["mask"], MASK)
        assert arrays["confidence"].dtype == np.float16
        assert np.array_equal(arrays["confidence"], confidence.astype(np.float16))


def test_run_lengths_of_toy_mask():
    # Down the columns: 0 2 | 1 255 | 2 0. Class 2 is the second and the fifth of six pixels, so
    # the runs of no, yes, no, ... are 1 1 2 1 1; COCO writes a count as one character from "0" up,
    # and from the fourth run on its difference to the run two places before (1-1, 1-2 = -1 -> "O").
    size, counts = run_lengths(MASK, 2)
    assert size == (2, 3)
    assert counts == "1120O"


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools' own decoder
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_run_lengths_decode_to_the_class(dtype):
    mask = np.random.default_rng(1).integers(0, 4, (37, 53)).astype(dtype)
    for class_id in range(5):  # the last is absent
        size, counts = run_lengths(mask, class_id)
        back = coco.decode({"size": list(size), "counts": counts.encode()})
        assert np.array_equal(back, mask == class_id)
