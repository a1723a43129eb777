"""Untrusted bytes to an RGB picture, within limits, or a refusal that says why.

Accepts JPEG, PNG, WebP, TIFF and BMP in every mode whose values have a defined range. Sizes are
checked on the header, before a pixel is decoded.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from app.errors import TooLargeError, UndecodableError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
REDUCED_OR_MASK = 0b101  # TIFF NewSubfileType: a smaller copy, or a transparency mask
NEW_SUBFILE_TYPE = 254

# Our own limit, a setting, takes the place of Pillow's process-wide one.
Image.MAX_IMAGE_PIXELS = None

Picture = NDArray[np.uint8]


def decode_image(data: bytes, max_pixels: int) -> Picture:
    """Decode one still picture to uint8 RGB [H,W,3], upright.

    EXIF orientation is applied, alpha dropped, grey promoted; 16-bit grey is scaled by 1/257.
    Raises UndecodableError and TooLargeError.
    """
    if not data:
        raise UndecodableError("expected an image, got 0 bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            check_size(picture.size, max_pixels)
            _check_still(picture)
            return np.asarray(_to_rgb(ImageOps.exif_transpose(picture)))
    except UnidentifiedImageError as error:
        raise UndecodableError(
            f"expected a JPEG, PNG, WebP, TIFF or BMP image, got {len(data)} bytes of another kind"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError) as error:
        # Pillow's decoders answer hostile bytes with any of these.
        raise UndecodableError(
            f"expected a whole image, got one that breaks off: {error}"
        ) from error


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse pictures of more pixels than the limit; `size` is (width, height)."""
    width, height = size
    if width * height > max_pixels:
        raise TooLargeError(
            f"expected at most {max_pixels} pixels, got {width}x{height} = {width * height}"
        )


def _check_still(picture: Image.Image) -> None:
    """Refuse animations and multi-page files: one mask can't answer for all their frames."""
    frames = getattr(picture, "n_frames", 1)
    if frames == 1 or picture.format == "MPO":  # a phone's JPEG with its preview inside
        return
    if picture.format == "TIFF" and _has_one_page(picture, frames):
        return
    raise UndecodableError(f"expected a still image, got one of {frames} frames")


def _has_one_page(picture: Image.Image, frames: int) -> bool:
    """Tell a TIFF with overviews or masks behind its first page from one with many pages."""
    extra = []
    for frame in range(1, min(frames, 64)):
        picture.seek(frame)
        extra.append(picture.tag_v2.get(NEW_SUBFILE_TYPE, 0))  # type: ignore[attr-defined]
    picture.seek(0)
    return all(kind & REDUCED_OR_MASK for kind in extra)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Convert any mode to RGB; refuse the ones whose values have no defined range."""
    if picture.mode.startswith("I;16"):
        return _scaled_down(np.asarray(picture, np.uint16))
    if picture.mode == "I":
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise UndecodableError("expected 8 or 16 bits a channel, got 32-bit integers")
        return _scaled_down(values)
    if picture.mode == "F":
        raise UndecodableError("expected 8 or 16 bits a channel, got floating-point pixels")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")  # so that a transparent colour is kept, not mixed
    return picture.convert("RGB")


def _scaled_down(values: NDArray[np.generic]) -> Image.Image:
    """16-bit grey [H,W] to RGB; the full range 0..65535 becomes 0..255, rounded."""
    eight = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return Image.fromarray(eight).convert("RGB")
