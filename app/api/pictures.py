"""The pictures of a result: mask, confidence, heatmap and overlay, as PNG."""

from collections.abc import Callable

from app.imaging import encode
from app.imaging.decode import decode_image
from app.results import Result


def picture_of(result: Result, output: str, max_pixels: int, depth: int = 8) -> bytes:
    """Encode one picture of a result; `depth` is that of the confidence, 8 or 16 bits."""
    makers: dict[str, Callable[[], bytes]] = {
        "mask": lambda: encode.mask_png(result.mask, result.palette),
        "confidence": lambda: encode.confidence_png(result.confidence, depth),
        "heatmap": lambda: encode.heatmap_png(result.confidence),
        "overlay": lambda: encode.overlay_png(
            decode_image(result.upload, max_pixels), result.mask, result.palette
        ),
    }
    return makers[output]()
