"""Decode untrusted bytes to an RGB image within a size limit.

JPEG, PNG, WebP, TIFF and BMP are accepted in every mode whose values have a defined range. The
size and the work of decoding are checked in the header, before pixels are decoded.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from app.errors import InputError, TooLargeError, UndecodableError
from app.imaging.png import SIGNATURE, pieces
from app.imaging.tiff_bands import UNSCALED, BandImage, Scaling, level_table, open_bands

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
# TIFF tags and their values.
NEW_SUBFILE_TYPE, BITS_PER_SAMPLE, PHOTOMETRIC, STRIP_OFFSETS, TILE_OFFSETS = (
    254,
    258,
    262,
    273,
    324,
)
REDUCED_OR_MASK = 0b101  # of NewSubfileType: a smaller copy, or a transparency mask
WHITE_IS_ZERO = 0  # of PhotometricInterpretation
MAX_PAGES = 64  # Pillow counts pages in time quadratic in their number

# Work of decoding, in pixels of one JPEG scan, which take 1.3 ns each; other decoders take 20 to 70
# ns per pixel, once. Photographs have 1 or 10 scans, CMYK ones 18.
MAX_SCANS = 20
MIN_WORK_LIMIT = 10**9
RLE_PIXEL = 200  # Pillow decodes run-length encoded BMP in Python
TIFF_ROW, TIFF_STRIP = 128, 1024  # libtiff's cost of a row, Pillow's of a strip or tile
SEGMENT, MAX_SEGMENTS = 2048, 1 << 19  # of a JPEG, or a chunk of a PNG
BMP_RLE = (1, 2)
# Markers of a JPEG, without those that are part of a scan's data.
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
JPEG_START = b"\xff\xd8"
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
# Markers without a length, and those that no decoder takes and Pillow skips so.
WITHOUT_LENGTH = frozenset((0x01, 0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)))

# The limit is the setting `max_pixels`, not Pillow's process-wide one.
Image.MAX_IMAGE_PIXELS = None

ImageArray = NDArray[np.uint8]


@dataclass(frozen=True)
class OpenedImage:
    """An image whose header was read; `work` estimates the cost of its pixels (see `MAX_SCANS`)."""

    image: Image.Image
    work: int
    scaling: Scaling = UNSCALED

    def decode(self) -> ImageArray:
        """Decode to uint8 RGB [H,W,3] in the EXIF orientation."""
        image = self.image
        levels = self.scaling.levels or _grey_levels(image)
        ImageOps.exif_transpose(image, in_place=True)
        return _pixels(_to_rgb(image, levels))


def decode_image(data: bytes, max_pixels: int, scaling: Scaling = UNSCALED) -> ImageArray:
    """Decode one still image to uint8 RGB [H,W,3] in its EXIF orientation.

    Alpha is dropped, grey copied to three channels, 16-bit grey scaled by 1/257, or as the scaling
    says. Of 16-bit colour without a scaling the higher byte is used. Raises UndecodableError for
    other bytes and TooLargeError for more than `max_pixels` or more work.
    """
    with open_image(data, max_pixels, scaling) as opened:
        return opened.decode()


@contextmanager
def open_image(
    data: bytes, max_pixels: int, scaling: Scaling = UNSCALED
) -> Iterator[OpenedImage | BandImage]:
    """Open one still image, to be decoded in the block; raises as `decode_image` does."""
    if not data:
        raise UndecodableError("expected an image, got 0 bytes")
    try:
        scans, work = _header_work(data)
        _check_work(work, max_pixels)
        bands = open_bands(data, scaling)
        if bands is not None:
            check_size(bands.size, max_pixels)
            _check_work(bands.work, max_pixels)
            yield bands
            return
        if scaling.levels is not None:
            _check_depth(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image.size, max_pixels)
            work += _pixel_work(image, scans)
            _check_work(work, max_pixels)
            _check_still(image)
            yield OpenedImage(image, work, scaling)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise UndecodableError(
            f"expected a JPEG, PNG, WebP, TIFF or BMP image, got {len(data)} bytes of another kind"
        ) from error
    except Exception as error:  # Pillow's decoders raise many types for damaged bytes
        raise UndecodableError(
            f"expected a whole image, got one that is cut off or damaged: {error}"
        ) from error


def _header_work(data: bytes) -> tuple[int, int]:
    """Return the scans of a JPEG, and the work of reading its segments, or a PNG's chunks.

    Pillow reads them one by one in Python.
    """
    if data.startswith(JPEG_START):
        scans, segments = _count_scans(data)
        return scans, SEGMENT * segments
    if data.startswith(SIGNATURE):
        return 1, SEGMENT * _count_chunks(data)
    return 1, 0


def _pixel_work(image: Image.Image, scans: int) -> int:
    """Return the work of decoding an opened image's pixels, of a JPEG with so many scans.

    A scan takes some 75 bytes and passes over all pixels; a row and a strip of a TIFF may take as
    few.
    """
    pixels = image.width * image.height
    if isinstance(image, TiffImageFile):
        offsets = image.tag_v2.get(STRIP_OFFSETS, image.tag_v2.get(TILE_OFFSETS, ()))
        return pixels + TIFF_ROW * image.height + TIFF_STRIP * len(offsets)
    if image.format == "BMP" and image.info.get("compression") in BMP_RLE:
        return pixels * RLE_PIXEL
    return pixels * scans


def _count_scans(data: bytes) -> tuple[int, int]:
    """Count the scans of a JPEG up to its end, and its segments, at most MAX_SEGMENTS.

    Bytes between segments count as segments. Bytes after the end, such as the film of a motion
    photo, do not count.
    """
    scans = segments = 0
    at = 2
    while segments < MAX_SEGMENTS:
        found = MARKER.search(data, at)
        if found is None:
            return scans, segments + (0 if scans else max(len(data) - at, 0))
        marker = data[found.end() - 1]
        if marker == END_OF_IMAGE and scans:
            break
        # Between the scans' segments lie their data.
        segments += 1 if scans else found.end() - at - 1
        scans += marker == START_OF_SCAN
        at = found.end()
        if marker not in WITHOUT_LENGTH:
            at += int.from_bytes(data[at : at + 2])
    return scans, segments


def _count_chunks(data: bytes) -> int:
    """Count the chunks of a PNG, at most MAX_SEGMENTS."""
    chunks, at = 0, len(SIGNATURE)
    while at < len(data) and chunks < MAX_SEGMENTS:
        at += 12 + int.from_bytes(data[at : at + 4])
        chunks += 1
    return chunks


def _check_depth(data: bytes) -> None:
    """Raise UndecodableError for a PNG with 16-bit colour, of which Pillow keeps 8 bits."""
    if data.startswith(SIGNATURE) and data[24:25] == b"\x10" and data[25:26] != b"\0":
        raise UndecodableError(
            "expected a TIFF for 16-bit colour, as the model's card has a range, got a PNG"
        )


def _check_work(work: int, max_pixels: int) -> None:
    """Raise TooLargeError where decoding takes far longer than that of usual images."""
    limit = max(MAX_SCANS * max_pixels, MIN_WORK_LIMIT)
    if work > limit:
        raise TooLargeError(
            "expected an image with fewer scans, segments, strips or run-length encoded pixels, "
            f"got one that takes {work / limit:.1f} times the permitted work to decode"
        )


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raise TooLargeError for more pixels than the limit; `size` is (width, height)."""
    width, height = size
    if width * height > max_pixels:
        raise TooLargeError(
            f"expected at most {max_pixels} pixels, got {width}x{height} = {width * height}"
        )


def _check_still(image: Image.Image) -> None:
    """Raise UndecodableError for animations and multi-page files, as a response holds one mask."""
    if image.format == "MPO":  # a phone's JPEG with its preview inside
        return
    if isinstance(image, TiffImageFile):
        _check_one_page(image)
        return
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        raise UndecodableError(f"expected a still image, got one of {frames} frames")


def _check_one_page(image: TiffImageFile) -> None:
    """Raise UndecodableError for a multi-page TIFF; reduced copies and masks do not count."""
    for page in range(1, MAX_PAGES + 1):
        try:
            image.seek(page)
        except EOFError:
            image.seek(0)
            return
        if not image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & REDUCED_OR_MASK:
            break
    raise UndecodableError("expected a still image, got a TIFF of several pages")


def _grey_levels(image: Image.Image) -> tuple[int, int]:
    """Return the values of black and white in 16-bit grey; only TIFF may define them."""
    if not isinstance(image, TiffImageFile):
        return 0, 65535
    top = 4095 if image.tag_v2.get(BITS_PER_SAMPLE) == (12,) else 65535
    return (top, 0) if image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO else (0, top)


def _to_rgb(image: Image.Image, levels: tuple[int, int]) -> Image.Image:
    """Convert any mode to RGB; raises UndecodableError where values have no defined range."""
    if image.mode.startswith("I;16"):
        return _scaled_down(np.asarray(image, np.uint16), levels)
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UndecodableError(
                "expected 8 bits a channel or unsigned 16, got grey values in "
                f"{values.min()}..{values.max()}"
            )
        return _scaled_down(values, levels)
    if image.mode == "F":
        raise UndecodableError("expected 8 or 16 bits a channel, got floating-point pixels")
    if image.mode in ("LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")  # keeps the colour of transparent pixels
    return image if image.mode == "RGB" else image.convert("RGB")


def _pixels(image: Image.Image) -> ImageArray:
    """Copy an image to uint8 [H,W,3] in pieces; Pillow would allocate two further copies."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for rows in pieces(height, width):
        pixels[rows] = np.asarray(image.crop((0, rows.start, width, rows.stop)))
    return pixels


def _scaled_down(values: NDArray[np.generic], levels: tuple[int, int]) -> Image.Image:
    """Convert 16-bit grey [H,W] to RGB; black to white becomes 0..255 (see `level_table`)."""
    eight = level_table(levels)
    scaled = np.empty(values.shape, np.uint8)
    for rows in pieces(*values.shape):  # an index takes 8 bytes per pixel
        scaled[rows] = eight[values[rows]]
    return Image.fromarray(scaled).convert("RGB")
