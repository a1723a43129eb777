"""Read three bands of a TIFF whose form Pillow does not decode: many bands, or 16 bits of colour.

Pillow, with libtiff, decodes one band of 16 bits. Each strip or tile is therefore given to it as a
grey TIFF of its own, of all samples of a row, so that every compression that libtiff has is read
within the memory of one strip.
"""

import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from app.errors import UndecodableError

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES = (
    256, 257, 258, 259, 262, 274, 277,
)  # fmt: skip
STRIP_OFFSETS, ROWS_PER_STRIP, STRIP_COUNTS, PLANAR, PREDICTOR = 273, 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, SAMPLE_FORMAT = 322, 323, 324, 325, 339
SEPARATE, DIFFERENCES = 2, 2  # of PLANAR and PREDICTOR
UNSIGNED = 1  # of SAMPLE_FORMAT
OPEN = 1 << 17  # work of opening one strip, in pixels; see `decode.MAX_SCANS`
MAX_BANDS = 256
MAX_SAMPLES = 1 << 28  # of one strip or tile, all bands

Samples = NDArray[np.uint8 | np.uint16]


@dataclass(frozen=True)
class Scaling:
    """Conversion of images with 16 bits or several bands to 8-bit RGB.

    `levels` are the 16-bit values of black and white; values beyond them are limited to these. None
    stands for 0 and 65535. `bands` are the numbers of the bands for red, green and blue, from 1;
    None stands for the first three of at most four.
    """

    levels: tuple[int, int] | None = None
    bands: tuple[int, int, int] | None = None

    def to_eight_bits(self, values: Samples) -> NDArray[np.uint8]:
        """Scale 16-bit values to 0..255, rounded; 8-bit values stay as they are."""
        if values.dtype == np.uint8:
            return values.astype(np.uint8)
        scaled: NDArray[np.uint8] = level_table(self.levels or (0, 65535))[values]
        return scaled


UNSCALED = Scaling()


def level_table(levels: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the 8-bit value uint8 [65536] of each 16-bit value, given those of black and white.

    Values in between are rounded, values beyond are limited. White may be the smaller one.
    """
    black, white = levels
    span = abs(white - black)
    above_black = (np.arange(65536) - black) * (1 if white > black else -1)
    table: NDArray[np.uint8] = ((above_black.clip(0, span) * 255 + span // 2) // span).astype(
        np.uint8
    )
    return table


@dataclass(frozen=True)
class Layout:
    """Sizes in pixels, and the strips or tiles, of one page of a TIFF."""

    width: int
    height: int
    bits: int
    bands: int
    tile: tuple[int, int]  # height and width of a strip or tile
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    strips: bool
    separate: bool
    compression: int
    differences: bool

    @property
    def work(self) -> int:
        """Work of decoding, in pixels."""
        return self.width * self.height * self.bands + OPEN * len(self.offsets)

    @property
    def grid(self) -> tuple[int, int]:
        """Numbers of strips or tiles down and across."""
        return -(-self.height // self.tile[0]), -(-self.width // self.tile[1])


class BandImage:
    """Three bands of a TIFF, to be decoded; raises UndecodableError for forms that are not read."""

    def __init__(self, data: bytes, directory: ImageFileDirectory_v2, scaling: Scaling) -> None:
        self._data, self._scaling = data, scaling
        self.layout = read_layout(directory)
        self._bands = chosen_bands(self.layout.bands, scaling)
        self.size = self.layout.width, self.layout.height
        self.work = self.layout.work

    def decode(self) -> NDArray[np.uint8]:
        """Decode to uint8 RGB [H,W,3]."""
        layout = self.layout
        pixels = np.zeros((layout.height, layout.width, 3), np.uint8)
        down, across = layout.grid
        for index in range(down * across):
            top, left = index // across * layout.tile[0], index % across * layout.tile[1]
            shared = None if layout.separate else self._tile(index)
            for channel, band in enumerate(self._bands):
                values = (
                    self._tile((band - 1) * down * across + index)[..., 0]
                    if shared is None
                    else shared[..., band - 1]
                )
                target = pixels[top : top + len(values), left : left + values.shape[1], channel]
                inside = values[: target.shape[0], : target.shape[1]]
                target[:] = self._scaling.to_eight_bits(inside)
        return pixels

    def _tile(self, index: int) -> Samples:
        """Decode one strip or tile to [h,w,bands]; all bands, or one where they are separate."""
        layout = self.layout
        start = layout.offsets[index]
        data = self._data[start : start + layout.counts[index]]
        rows = layout.tile[0]
        if layout.strips:  # the last one may be shorter
            rows = min(rows, layout.height - index % layout.grid[0] * rows)
        per_pixel = 1 if layout.separate else layout.bands
        wrapped = grey_tiff(self._data[:2], layout, (rows, layout.tile[1] * per_pixel), data)
        with Image.open(io.BytesIO(wrapped), formats=("TIFF",)) as image:
            flat = np.asarray(image)
        samples: Samples = flat.astype(np.uint8) if layout.bits == 8 else flat.astype(np.uint16)
        samples = samples.reshape(rows, layout.tile[1], per_pixel)
        if layout.differences:
            np.cumsum(samples, axis=1, dtype=samples.dtype, out=samples)
        return samples


def open_bands(data: bytes, scaling: Scaling) -> BandImage | None:
    """Open a TIFF with more than four bands, or one that the scaling concerns; None for others.

    Raises UndecodableError for several pages, and for values that are not unsigned 8 or 16 bits.
    """
    if data[:4] not in STARTS:
        return None
    file = io.BytesIO(data)
    directory = read_directory(file, data[:16], None)
    bands = int(directory.get(SAMPLES, 1))
    deep = max(directory.get(BITS, (1,))) > 8
    if not (scaling.bands or bands > 4 or (scaling.levels and deep and bands > 1)):
        return None
    if directory.next:
        following = read_directory(file, data[:16], directory.next)
        if not following.get(254, 0) & 0b101:  # a smaller copy, or a mask
            raise UndecodableError("expected a still image, got a TIFF of several pages")
    return BandImage(data, directory, scaling)


def read_size(path: Path) -> tuple[int, int] | None:
    """Return the height and width of a TIFF of any bands; None for other files."""
    data = path.read_bytes()
    if data[:4] not in STARTS:
        return None
    directory = read_directory(io.BytesIO(data), data[:16], None)
    return int(directory[HEIGHT]), int(directory[WIDTH])


def read_directory(file: io.BytesIO, header: bytes, offset: int | None) -> ImageFileDirectory_v2:
    """Read the tags of the page at an offset, by default those of the first page."""
    directory = ImageFileDirectory_v2(header if header[:4] in STARTS[2:] else header[:8])
    file.seek(directory.next if offset is None else offset)
    directory.load(file)
    return directory


def read_layout(directory: ImageFileDirectory_v2) -> Layout:
    """Read the layout of a page; raises UndecodableError for one that is not supported."""
    width, height = int(directory[WIDTH]), int(directory[HEIGHT])
    bands, bits = int(directory.get(SAMPLES, 1)), {*directory.get(BITS, (1,))}
    formats = {*directory.get(SAMPLE_FORMAT, (UNSIGNED,))}
    if bits not in ({8}, {16}) or formats != {UNSIGNED}:
        kind = "unsigned" if formats == {UNSIGNED} else "signed or floating-point"
        raise UndecodableError(
            f"expected bands of 8 or 16 unsigned bits, got {kind} ones of {sorted(bits)} bits"
        )
    if directory.get(ORIENTATION, 1) != 1:
        raise UndecodableError(
            f"expected the rows of bands from top to bottom, got orientation "
            f"{directory[ORIENTATION]}"
        )
    strips = TILE_OFFSETS not in directory
    tile = (
        (min(int(directory.get(ROWS_PER_STRIP, height)), height), width)
        if strips
        else (int(directory[TILE_HEIGHT]), int(directory[TILE_WIDTH]))
    )
    offsets = directory[STRIP_OFFSETS if strips else TILE_OFFSETS]
    counts = directory[STRIP_COUNTS if strips else TILE_COUNTS]
    separate = directory.get(PLANAR, 1) == SEPARATE
    layout = Layout(
        width, height, bits.pop(), bands, tile, tuple(offsets), tuple(counts), strips, separate,
        int(directory.get(COMPRESSION, 1)), directory.get(PREDICTOR, 1) == DIFFERENCES,
    )  # fmt: skip
    require_complete(layout)
    return layout


def require_complete(layout: Layout) -> None:
    """Raise UndecodableError unless each part of the image has one strip or tile of usual size."""
    samples = layout.tile[0] * layout.tile[1] * (1 if layout.separate else layout.bands)
    if not 0 < samples <= MAX_SAMPLES or not 0 < layout.bands <= MAX_BANDS:
        raise UndecodableError(
            f"expected strips or tiles of at most {MAX_SAMPLES} values and {MAX_BANDS} bands, got "
            f"{samples} and {layout.bands}"
        )
    down, across = layout.grid
    expected = down * across * (layout.bands if layout.separate else 1)
    if not len(layout.offsets) == len(layout.counts) == expected:
        raise UndecodableError(f"expected {expected} strips or tiles, got {len(layout.offsets)}")


def chosen_bands(count: int, scaling: Scaling) -> tuple[int, ...]:
    """Return the bands for red, green and blue; raises UndecodableError where they are unknown."""
    if scaling.bands is not None:
        if max(scaling.bands) > count:
            raise UndecodableError(
                f"expected the bands {list(scaling.bands)} of the model's card, got an image of "
                f"{count}"
            )
        return scaling.bands
    if count > 4:
        raise UndecodableError(
            f"expected at most 4 bands, or bands = [R, G, B] in [input] of the model's card, got "
            f"{count}"
        )
    return (1, 2, 3) if count >= 3 else (1, 1, 1)


def grey_tiff(order: bytes, layout: Layout, size: tuple[int, int], data: bytes) -> bytes:
    """Write a grey TIFF of one strip, of a size (height, width), around its compressed bytes.

    `order` is the byte order of the values, II or MM.
    """
    sign = "<" if order == b"II" else ">"
    tags = {
        WIDTH: size[1], HEIGHT: size[0], BITS: layout.bits, COMPRESSION: layout.compression,
        PHOTOMETRIC: 1, STRIP_OFFSETS: 0, SAMPLES: 1, ROWS_PER_STRIP: size[0],
        STRIP_COUNTS: len(data),
    }  # fmt: skip
    tags[STRIP_OFFSETS] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(f"{sign}HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack(f"{sign}HI", 42, 8) + struct.pack(f"{sign}H", len(tags))
    return order + start + entries + bytes(4) + data
