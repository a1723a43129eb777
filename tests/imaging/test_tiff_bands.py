"""TIFFs of several bands and of 16-bit colour: every layout, scaled as the card states."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from app.errors import TooLargeError, UndecodableError
from app.imaging.decode import decode_image
from app.imaging.decoder_pool import DecoderPool
from app.imaging.tiff_bands import Scaling, level_table, read_size

LIMIT = 1_000_000
BANDS = np.random.default_rng(0).integers(0, 5000, (21, 34, 6)).astype(np.uint16)
SHORT, LONG = 3, 4


def tiff(
    values: np.ndarray,
    *,
    order: str = "<",
    rows: int = 8,
    tile: int = 0,
    separate: bool = False,
    compression: int = 1,
    predictor: int = 1,
    **tags: int,
) -> bytes:
    """Write a TIFF [H,W,bands] in strips of some rows, or in square tiles."""
    height, width, bands = values.shape
    planes = [values[..., [band]] for band in range(bands)] if separate else [values]
    parts = []
    for plane in planes:
        for top in range(0, height, tile or rows):
            for left in range(0, width, tile or width):
                part = plane[top : top + (tile or rows), left : left + (tile or width)]
                if tile:
                    missing = tile - part.shape[0], tile - part.shape[1]
                    part = np.pad(part, ((0, missing[0]), (0, missing[1]), (0, 0)))
                if predictor == 2:
                    part = np.diff(part, axis=1, prepend=np.zeros_like(part[:, :1]))
                raw = (part.byteswap() if order == ">" else part).tobytes()
                parts.append(raw if compression == 1 else PACKERS[compression](raw))
    data = b"".join(parts)
    ends = np.cumsum([len(part) for part in parts])
    bits = values.dtype.itemsize * 8
    entries = {
        256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, [bits] * bands),
        259: (SHORT, [compression]), 262: (SHORT, [1]), 277: (SHORT, [bands]),
        284: (SHORT, [2 if separate else 1]), 317: (SHORT, [predictor]),
        (324 if tile else 273): (LONG, [8 + int(e) - len(p) for e, p in zip(ends, parts)]),  # noqa: B905
        (325 if tile else 279): (LONG, [len(part) for part in parts]),
        **({322: (LONG, [tile]), 323: (LONG, [tile])} if tile else {278: (LONG, [rows])}),
        **{int(tag[1:]): (SHORT, [value]) for tag, value in tags.items()},
    }  # fmt: skip
    start = 8 + len(data)
    extra_at = start + 2 + 12 * len(entries) + 4
    directory, extra = struct.pack(f"{order}H", len(entries)), b""
    for tag, (kind, numbers) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}{'H' if kind == SHORT else 'I'}", *numbers)
        if len(packed) > 4:
            packed, extra = struct.pack(f"{order}I", extra_at + len(extra)), extra + packed
        directory += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return head + data + directory + bytes(4) + extra


def lzw(raw: bytes) -> bytes:
    """Compress bytes by libtiff's LZW."""
    buffer = io.BytesIO()
    image = Image.frombytes("L", (len(raw), 1), raw)
    image.save(buffer, "TIFF", compression="tiff_lzw")
    buffer.seek(0)
    with TiffImageFile(buffer) as written:
        (start,), (count,) = written.tag_v2[273], written.tag_v2[279]
    return buffer.getvalue()[start : start + count]


PACKERS: dict[int, Callable[[bytes], bytes]] = {8: zlib.compress, 5: lzw}
LAYOUTS: tuple[dict[str, Any], ...] = (
    {},
    {"order": ">"},
    {"rows": 100},
    {"tile": 16},
    {"separate": True},
    {"compression": 8},
    {"compression": 8, "predictor": 2, "order": ">"},
    {"compression": 8, "predictor": 2, "tile": 16},
    {"compression": 5, "predictor": 2, "separate": True},
    {"compression": 5, "tile": 16},
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_bands_of_every_layout(layout):
    scaling = Scaling((0, 4095), (5, 3, 2))
    deep = decode_image(tiff(BANDS, **layout), LIMIT, scaling)
    assert np.array_equal(deep, level_table((0, 4095))[BANDS[..., [4, 2, 1]]])
    eight = (BANDS % 256).astype(np.uint8)
    assert np.array_equal(
        decode_image(tiff(eight, **layout), LIMIT, scaling), eight[..., [4, 2, 1]]
    )


def test_levels_are_rounded_and_limited():
    table = level_table((100, 355))
    assert table[[0, 100, 101, 228, 355, 356, 65535]].tolist() == [0, 0, 1, 128, 255, 255, 255]
    assert level_table((0, 65535))[[0, 128, 129, 257, 65535]].tolist() == [0, 0, 1, 1, 255]
    assert level_table((255, 0))[[0, 255]].tolist() == [255, 0]


def test_16_bit_colour_is_scaled_by_the_range():
    values = BANDS[..., :3]
    image = decode_image(tiff(values, t262=2), LIMIT, Scaling((0, 4095)))
    assert np.array_equal(image, level_table((0, 4095))[values])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_the_range(kind):
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 500, 1000, 2000]], np.uint16)).save(buffer, kind)
    image = decode_image(buffer.getvalue(), LIMIT, Scaling((0, 1000)))
    assert image[0].tolist() == [[0] * 3, [128] * 3, [255] * 3, [255] * 3]


def test_16_bit_colour_in_png_is_refused_with_a_range():
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(7))), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    assert decode_image(data, LIMIT).tolist() == [[[0, 0, 0]]]
    with pytest.raises(UndecodableError, match="expected a TIFF for 16-bit colour"):
        decode_image(data, LIMIT, Scaling((0, 4095)))


def test_many_bands_need_the_card():
    with pytest.raises(UndecodableError, match=r"or bands = \[R, G, B\] in \[input\] of .* got 6"):
        decode_image(tiff(BANDS), LIMIT)
    with pytest.raises(UndecodableError, match=r"expected the bands \[7, 1, 1\] of .* of 6"):
        decode_image(tiff(BANDS), LIMIT, Scaling(None, (7, 1, 1)))


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"t339": 2}, "expected bands of 8 or 16 unsigned bits, got signed"),
        ({"t258": 12}, r"got unsigned ones of \[12\] bits"),
        ({"t274": 6}, "got orientation 6"),
        ({"t278": 4}, "expected 6 strips or tiles, got 3"),
        ({"t256": 0}, "expected"),
    ],
)
def test_other_forms_are_refused(tags, reason):
    data = tiff(BANDS, **tags)
    with pytest.raises(UndecodableError, match=reason):
        decode_image(data, LIMIT, Scaling(None, (1, 2, 3)))


def test_size_is_read_from_the_header(tmp_path):
    for order in ("<", ">"):
        (tmp_path / "bands.tif").write_bytes(tiff(BANDS, order=order))
        assert read_size(tmp_path / "bands.tif") == (21, 34)
    (tmp_path / "bands.tif").write_bytes(b"no TIFF")
    assert read_size(tmp_path / "bands.tif") is None


def test_size_is_checked_before_decoding():
    with pytest.raises(TooLargeError, match="expected at most 700 pixels, got 34x21"):
        decode_image(tiff(BANDS), 700, Scaling(None, (1, 2, 3)))


@pytest.mark.parametrize("length", range(0, 2000, 97))
def test_damaged_files_are_undecodable(length):
    whole = tiff(BANDS, compression=8)
    data = whole[: len(whole) - 1 - length]
    with pytest.raises(UndecodableError):
        decode_image(data, LIMIT, Scaling(None, (1, 2, 3)))


def test_child_process_scales_alike():
    large = np.tile(BANDS, (17, 17, 1))  # more than a MiB
    scaling = Scaling((0, 4095), (5, 3, 2))
    pool = DecoderPool()
    try:
        image = pool.decode(tiff(large), LIMIT, scaling=scaling)
    finally:
        pool.close()
    assert np.array_equal(image, level_table((0, 4095))[large[..., [4, 2, 1]]])
