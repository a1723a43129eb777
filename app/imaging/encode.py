"""Encode masks, confidence maps, heatmaps and overlays as PNG, COCO run lengths or npz.

Masks hold class ids and the abstain value: 255 in uint8, 65535 in uint16.
"""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from app.imaging.colormap import HEAT
from app.imaging.png import pieces, png
from app.numerics import compiled

ImageArray = NDArray[np.uint8]
Mask = NDArray[np.uint8] | NDArray[np.uint16]
Confidence = NDArray[np.float32]
Palette = Sequence[tuple[int, int, int]]

ABSTAIN_COLOR = (255, 255, 255)
OVERLAY_FRACTION = 0.5


def mask_png(mask: Mask, palette: Palette) -> bytes:
    """Encode a mask [H,W]: uint8 as indexed colours of the classes, uint16 as 16-bit grey."""
    return png(mask, full_palette(palette) if mask.dtype == np.uint8 else None)


def confidence_png(confidence: Confidence, depth: int = 8) -> bytes:
    """Encode confidence [H,W] in 0..1 as grey: round(255 p) or, at depth 16, round(65535 p)."""
    return png(_levels(confidence, np.uint8 if depth == 8 else np.uint16))


def heatmap_png(confidence: Confidence) -> bytes:
    """Encode confidence [H,W] in 0..1 as colours, from dark for 0 to bright for 1."""
    return png(_levels(confidence, np.uint8), HEAT)


def overlay_png(image: ImageArray, mask: Mask, palette: Palette) -> bytes:
    """Blend the classes' colours into the image [H,W,3]; white where the mask abstains."""
    colors = np.array([*palette, ABSTAIN_COLOR], np.uint8)
    blended = np.empty_like(image)
    for rows in pieces(*mask.shape):
        # The abstain value exceeds every class id.
        tint = Image.fromarray(colors[np.minimum(mask[rows], len(palette))])
        piece = Image.blend(Image.fromarray(image[rows]), tint, OVERLAY_FRACTION)
        blended[rows] = np.asarray(piece)
    return png(blended)


def full_palette(palette: Palette) -> ImageArray:
    """Pad the class colours to a palette uint8 [256,3]; row 255 is the abstain colour."""
    colors = np.zeros((256, 3), np.uint8)
    colors[: min(len(palette), 255)] = np.array(palette[:255], np.uint8)
    colors[255] = ABSTAIN_COLOR
    return colors


def region_png(region: NDArray[np.bool_]) -> bytes:
    """Encode the pixels of a region [H,W] as grey: 255 inside, 0 outside."""
    return png(np.where(region, np.uint8(255), np.uint8(0)))


def _levels(confidence: Confidence, dtype: type[np.uint8 | np.uint16]) -> Mask:
    levels: Mask = np.empty(confidence.shape, dtype)  # type: ignore[assignment]
    _round(confidence, np.iinfo(dtype).max, levels)
    return levels


@compiled
def _round(confidence: Confidence, most: int, levels: Mask) -> None:
    # In float64 the product is exact; float32 rounds one value in 700 to a wrong 16-bit level.
    for y in range(len(levels)):
        row, line = levels[y], confidence[y]
        for x in range(len(row)):
            row[x] = np.rint(np.float64(line[x]) * most)


def npz(mask: Mask, confidence: Confidence) -> bytes:
    """Encode `mask` [H,W] and `confidence` float16 [H,W] as .npz."""
    buffer = io.BytesIO()
    np.savez(buffer, mask=mask, confidence=confidence.astype(np.float16))
    return buffer.getvalue()


def run_lengths(mask: Mask, class_id: int) -> tuple[tuple[int, int], str]:
    """Encode one class's pixels as COCO RLE: the size (H, W) and the counts, column-major."""
    encoded = coco.encode(np.asfortranarray(mask == class_id, dtype=np.uint8))
    return (mask.shape[0], mask.shape[1]), encoded["counts"].decode("ascii")
