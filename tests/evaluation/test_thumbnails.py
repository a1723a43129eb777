"""Thumbnails: colours of the error map, and sizes."""

import base64
import io

import numpy as np
from PIL import Image

from app.evaluation.thumbnails import (
    HIGH_CONFIDENCE,
    LOW_CONFIDENCE,
    MAX_SIDE,
    VOID_GREY,
    draw_thumbnails,
    error_map,
)


def test_wrong_pixels_run_from_yellow_to_red_and_the_rest_is_dark_grey():
    image = np.full((1, 4, 3), 200, np.uint8)
    mask = np.array([[0, 1, 1, 1]], np.uint8)
    labels = np.array([[0, 0, 0, -1]], np.int32)
    confidence = np.array([[0.9, 0.4, 1.0, 1.0]], np.float32)
    correct, low, high, void = error_map(image, mask, confidence, labels)[0]
    assert correct.tolist() == [70, 70, 70]
    assert low.tolist() == LOW_CONFIDENCE.tolist()
    assert high.tolist() == HIGH_CONFIDENCE.tolist()
    assert void.tolist() == [VOID_GREY] * 3


def test_thumbnails_are_small_and_in_proportion():
    height, width = 1000, 1500
    image = np.zeros((height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    thumbnails = draw_thumbnails(
        image,
        mask,
        np.ones((height, width), np.float32),
        mask.astype(np.int32),
        [(255, 0, 0)],
    )
    assert (thumbnails.width, thumbnails.height) == (MAX_SIDE, 320)
    for uri in thumbnails[2:]:
        data = base64.b64decode(uri.split(",", 1)[1])
        with Image.open(io.BytesIO(data)) as decoded:
            assert decoded.size == (480, 320)


def test_long_thin_images_keep_a_row():
    strip = np.zeros((1, 4000), np.uint8)
    image, confidence = np.zeros((1, 4000, 3), np.uint8), np.ones((1, 4000), np.float32)
    thumbnails = draw_thumbnails(image, strip, confidence, strip.astype(np.int32), [(0, 0, 0)])
    assert (thumbnails.width, thumbnails.height) == (480, 1)
