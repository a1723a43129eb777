"""Encoded images to arrays and back, and the colour map."""

from app.imaging.brush_rle import decode_brush, encode_brush
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
from app.imaging.polygons import trace_polygons
from app.imaging.tiff_bands import UNSCALED, Scaling

__all__ = [
    "FORMATS",
    "OVERLAY_FRACTION",
    "UNSCALED",
    "Confidence",
    "DecoderPool",
    "ImageArray",
    "Mask",
    "Palette",
    "Scaling",
    "check_size",
    "confidence_png",
    "decode_brush",
    "decode_image",
    "encode_brush",
    "heatmap_png",
    "trace_polygons",
]
