"""Thumbnails of one segmented image: the image, its labels, its confidence and its errors."""

import base64
import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.imaging.encode import OVERLAY_FRACTION, Confidence, Mask, Palette, heatmap_png

MAX_SIDE = 480
JPEG_QUALITY = 85
BACKGROUND_FRACTION = 0.35  # of the grey image's brightness, in the error map
LOW_CONFIDENCE, HIGH_CONFIDENCE = np.array([255.0, 221, 120]), np.array([235.0, 25, 40])
VOID_GREY = 110

ImageArray = NDArray[np.uint8]


class Thumbnails(NamedTuple):
    """The thumbnails of one image as data URIs, all of one width and height in pixels."""

    width: int
    height: int
    image: str
    labels: str
    confidence: str
    errors: str


def draw_thumbnails(
    image: ImageArray,
    mask: Mask,
    confidence: Confidence,
    labels: NDArray[np.int32],
    palette: Palette,
) -> Thumbnails:
    """Draw the thumbnails of an image, at most 480 pixels wide and high.

    `image` is uint8 RGB [H,W,3]; `mask`, `confidence` in 0..1 and `labels` are [H,W], labels below
    0 are void.
    """
    height, width = mask.shape
    factor = max(1.0, max(height, width) / MAX_SIDE)
    size = max(1, round(width / factor)), max(1, round(height / factor))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    rows, columns = (
        (np.arange(target) + 0.5) * source / target
        for target, source in ((size[1], height), (size[0], width))
    )
    nearest = np.ix_(rows.astype(int), columns.astype(int))  # labels can't be averaged
    return Thumbnails(
        *size,
        image=_jpeg(small),
        labels=_jpeg(_overlay(small, mask[nearest], palette)),
        confidence=data_uri(heatmap_png(confidence[nearest]), "png"),
        errors=_jpeg(error_map(small, mask[nearest], confidence[nearest], labels[nearest])),
    )


def error_map(
    image: ImageArray, mask: Mask, confidence: Confidence, labels: NDArray[np.int32]
) -> ImageArray:
    """Colour wrong pixels on the darkened grey image, as uint8 RGB [H,W,3].

    The colour runs from yellow at a confidence of 0.5 or less to red at 1. Void pixels, labels
    below 0, are plain grey.
    """
    grey = image.mean(axis=2, keepdims=True) * BACKGROUND_FRACTION
    position = np.clip(confidence * 2 - 1, 0, 1)[..., None]
    wrong = (mask != labels)[..., None]
    ramp = LOW_CONFIDENCE + (HIGH_CONFIDENCE - LOW_CONFIDENCE) * position
    colors = np.where(wrong, ramp, grey)
    return np.where((labels < 0)[..., None], VOID_GREY, colors).astype(np.uint8)


def data_uri(data: bytes, subtype: str) -> str:
    """Encode an image file as a data URI; `subtype` is that of its media type, such as "png"."""
    return f"data:image/{subtype};base64,{base64.b64encode(data).decode('ascii')}"


def _overlay(image: ImageArray, mask: Mask, palette: Palette) -> ImageArray:
    colors = np.array(palette, np.uint8)[mask]
    blended = Image.blend(Image.fromarray(image), Image.fromarray(colors), OVERLAY_FRACTION)
    return np.asarray(blended)


def _jpeg(image: ImageArray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return data_uri(buffer.getvalue(), "jpeg")
