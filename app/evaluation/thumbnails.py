"""One segmented image for a page: itself, labels, confidence and errors, as small data URIs."""

import base64
import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.imaging.encode import OVERLAY_FRACTION, Confidence, Mask, Palette, heatmap_png

LONG_SIDE = 480
QUALITY = 85
DIM = 0.35  # of the image behind the errors
UNSURE, SURE = np.array([255.0, 221.0, 120.0]), np.array([235.0, 25.0, 40.0])  # wrong pixels
VOID = 110  # grey of unlabelled pixels among the errors

ImageArray = NDArray[np.uint8]


class Views(NamedTuple):
    """Data URIs of one image, with the size (width, height) they have in common."""

    width: int
    height: int
    image: str
    labels: str
    confidence: str
    errors: str


def views(
    image: ImageArray,
    mask: Mask,
    confidence: Confidence,
    labels: NDArray[np.int32],
    palette: Palette,
) -> Views:
    """Draw an image's views: uint8 RGB [H,W,3], mask, confidence and labels [H,W].

    Labels below 0 are unlabelled. No view is longer than 480 pixels.
    """
    height, width = mask.shape
    shrink = max(1.0, max(height, width) / LONG_SIDE)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    rows, columns = (
        (np.arange(short) + 0.5) * long / short
        for short, long in ((size[1], height), (size[0], width))
    )
    at = np.ix_(rows.astype(int), columns.astype(int))  # labels have no mean: take one of them
    return Views(
        *size,
        image=_jpeg(small),
        labels=_jpeg(_tinted(small, mask[at], palette)),
        confidence=_uri(heatmap_png(confidence[at]), "png"),
        errors=_jpeg(error_map(small, mask[at], confidence[at], labels[at])),
    )


def error_map(
    image: ImageArray, mask: Mask, confidence: Confidence, labels: NDArray[np.int32]
) -> ImageArray:
    """Colour wrong pixels from yellow (unsure) to red (sure) on the dimmed grey image.

    Unlabelled pixels are plain grey. Gives uint8 RGB [H,W,3].
    """
    grey = image.mean(axis=2, keepdims=True) * DIM
    sure = np.clip(confidence * 2 - 1, 0, 1)[..., None]  # from 0.5 to 1
    wrong = (mask != labels)[..., None]
    colors = np.where(wrong, UNSURE + (SURE - UNSURE) * sure, grey)
    return np.where((labels < 0)[..., None], VOID, colors).astype(np.uint8)


def _tinted(image: ImageArray, mask: Mask, palette: Palette) -> ImageArray:
    tint = np.array(palette, np.uint8)[mask]
    return np.asarray(Image.blend(Image.fromarray(image), Image.fromarray(tint), OVERLAY_FRACTION))


def _jpeg(image: ImageArray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return _uri(buffer.getvalue(), "jpeg")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
