"""Encoded images to arrays and back, colour map and corruptions."""

from app.imaging.corruptions import KINDS, STRENGTHS, corrupt
from app.imaging.decode import FORMATS, ImageArray, check_size, decode_image
from app.imaging.decoder_pool import DecoderPool
from app.imaging.encode import (
    OVERLAY_FRACTION,
    Confidence,
    Mask,
    Palette,
    confidence_png,
    heatmap_png,
)

__all__ = [
    "FORMATS",
    "KINDS",
    "OVERLAY_FRACTION",
    "STRENGTHS",
    "Confidence",
    "DecoderPool",
    "ImageArray",
    "Mask",
    "Palette",
    "check_size",
    "confidence_png",
    "corrupt",
    "decode_image",
    "heatmap_png",
]
