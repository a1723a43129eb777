import contextlib
import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from app.errors import InputError, TooLargeError, UndecodableError
from app.imaging.decode import check_size, decode_image

LIMIT = 1_000_000
ORIENTATION, NEW_SUBFILE_TYPE, PHOTOMETRIC = 274, 254, 262
# Red, green, blue, white / black, grey, and two mixed colours.
COLORS = np.array(
    [
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]],
        [[0, 0, 0], [128, 128, 128], [10, 200, 90], [77, 3, 250]],
    ],
    np.uint8,
)
SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[0:200:40j, 50:250:60j], 99), -1).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encoded(image: Image.Image | NDArray[Any], kind: str, **options: Any) -> bytes:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(
    width: int, height: int, depth: int, color_type: int, rows: bytes, *chunks: tuple[bytes, bytes]
) -> bytes:
    """Encode a PNG; `rows` are the raw scan lines, each after its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def tiff_of_pages(*subfile_types: int) -> bytes:
    """Encode a TIFF of grey pages of one pixel, each with its NewSubfileType."""
    pixel, directory = 8, 10
    data = bytearray(b"II*\0" + struct.pack("<I", directory) + b"\x07\0")
    for index, subfile_type in enumerate(subfile_types):
        tags = {
            254: subfile_type,
            256: 1,
            257: 1,
            258: 8,
            259: 1,
            262: 1,
            273: pixel,
            277: 1,
            279: 1,
        }
        data += struct.pack("<H", len(tags))
        data += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        last = index == len(subfile_types) - 1
        data += struct.pack("<I", 0 if last else len(data) + 4)
    return bytes(data)


def decoded(data: bytes) -> NDArray[np.uint8]:
    image = decode_image(data, LIMIT)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    return image


def grey(values: object) -> NDArray[np.uint8]:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


# Kinds and modes


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
    ],
)
def test_rgb_without_loss_is_kept_exactly(kind, options):
    assert np.array_equal(decoded(encoded(COLORS, kind, **options)), COLORS)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("WEBP", {"quality": 95}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
def test_rgb_with_loss_comes_close(kind, options):
    # All of these store YCbCr, most with halved chroma.
    error = decoded(encoded(SMOOTH, kind, **options)).astype(int) - SMOOTH
    assert np.abs(error).mean() < 3


def test_tiff_in_tiles_is_assembled():
    tile = 16
    tiles = [SMOOTH[:tile, :tile], SMOOTH[:tile, tile : 2 * tile]]
    strip = b"".join(part.tobytes() for part in tiles)
    tags = {256: 2 * tile, 257: tile, 259: 1, 262: 2, 277: 3, 322: tile, 323: tile}
    entries = {tag: (4, 1, value) for tag, value in tags.items()}
    table = 8 + 2 + 12 * (len(tags) + 3) + 4  # where the values of more than 4 bytes begin
    entries[258] = (3, 3, table)
    entries[324] = (4, 2, table + 6)
    entries[325] = (4, 2, table + 14)
    pixels = table + 22
    data = b"II*\0" + struct.pack("<IH", 8, len(entries))
    data += b"".join(struct.pack("<HHII", tag, *entries[tag]) for tag in sorted(entries))
    data += struct.pack("<I3H4I", 0, 8, 8, 8, pixels, pixels + 768, 768, 768) + strip
    assert np.array_equal(decoded(data), SMOOTH[:tile, : 2 * tile])


def test_bilevel_becomes_black_and_white():
    bits = np.array([[True, False], [False, True]])
    assert np.array_equal(decoded(encoded(bits, "PNG")), grey([[255, 0], [0, 255]]))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "JPEG"])
def test_grey_is_promoted(kind):
    values = np.full((8, 8), 77, np.uint8)
    assert np.array_equal(decoded(encoded(values, kind)), grey(values))


def test_grey_of_four_bits_is_spread_over_the_range():
    assert decoded(png(2, 1, 4, 0, b"\0\x0f"))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_dropped_not_blended(kind):
    alpha = np.full((2, 4, 1), 3, np.uint8)
    data = encoded(
        np.concatenate([COLORS, alpha], -1),
        kind,
        **({"lossless": True, "exact": True} if kind == "WEBP" else {}),
    )
    assert np.array_equal(decoded(data), COLORS)


def test_grey_with_alpha_drops_it():
    assert decoded(encoded(Image.new("LA", (2, 1), (200, 0)), "PNG")).tolist() == [[[200] * 3] * 2]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_palette_gives_its_colors(kind):
    image = Image.fromarray(COLORS).quantize(8)
    assert np.array_equal(decoded(encoded(image, kind)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [0, b"\x00\x80\xff"])
def test_palette_with_transparency_keeps_the_color(transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    data = encoded(image, "PNG", transparency=transparency)
    assert decoded(data).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]


def test_rgb_with_transparent_color_keeps_it():
    transparent = (b"tRNS", struct.pack(">3H", 9, 8, 7))
    assert decoded(png(1, 1, 8, 2, b"\0\x09\x08\x07", transparent)).tolist() == [[[9, 8, 7]]]


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("TIFF", {})])
def test_cmyk_becomes_rgb(kind, options):
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(decoded(encoded(red, kind, **options)).astype(int) - [255, 0, 0]).max() <= 3


def test_lab_is_converted_to_rgb():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    soft = Image.new("RGB", (4, 4), (150, 110, 90))
    image = ImageCms.applyTransform(soft, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    assert image is not None
    assert np.abs(decoded(encoded(image, "TIFF")).astype(int) - [150, 110, 90]).max() <= 4


# More than eight bits


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["I;16", "I;16B"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind, order):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    raw = values.astype("<u2" if order == "I;16" else ">u2").tobytes()
    data = encoded(Image.frombytes(order, (256, 256), raw), kind)
    assert np.array_equal(decoded(data), grey(np.rint(values / 257)))


def test_sixteen_bit_grey_where_white_is_zero_is_inverted():
    data = bytearray(encoded(np.array([[0, 65535, 257]], np.uint16), "TIFF"))
    data[data.index(struct.pack("<HH", PHOTOMETRIC, 3)) + 8] = 0
    assert decoded(bytes(data))[0, :, 0].tolist() == [255, 0, 254]


def test_twelve_bit_grey_fills_the_range():
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    data = b"II*\0" + struct.pack("<I", 12) + b"\xff\xf8\x00\0" + struct.pack("<H", len(tags))
    data += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    # Two pixels in three bytes: 0xfff is white, 0x800 is 2048/4095 of it.
    assert decoded(data + bytes(4))[0, :, 0].tolist() == [255, 128]


def test_sixteen_bit_rgb_comes_within_one_level():
    values = [65535, 257 * 100, 0, 128, 40000, 65000]
    rows = b"\0" + struct.pack(">6H", *values)
    error = decoded(png(2, 1, 16, 2, rows)).ravel() - np.array(values) / 257
    assert np.abs(error).max() <= 1


def test_thirty_two_bit_grey_in_sixteen_bit_range_is_scaled():
    assert decoded(encoded(Image.new("I", (1, 1), 257 * 9), "TIFF")).tolist() == [[[9] * 3]]


@pytest.mark.parametrize("value", [-1, 65536])
def test_thirty_two_bit_grey_beyond_the_range_is_rejected(value):
    with pytest.raises(UndecodableError, match=f"unsigned 16, got grey values in {value}"):
        decode_image(encoded(Image.new("I", (1, 1), value), "TIFF"), LIMIT)


def test_floating_point_is_rejected():
    with pytest.raises(UndecodableError, match="floating-point"):
        decode_image(encoded(Image.new("F", (1, 1), 0.5), "TIFF"), LIMIT)


# Orientation

# The displayed rows by orientation; the stored rows are (0 1 2), (3 4 5).
UPRIGHT = {
    1: [[0, 1, 2], [3, 4, 5]],
    2: [[2, 1, 0], [5, 4, 3]],
    3: [[5, 4, 3], [2, 1, 0]],
    4: [[3, 4, 5], [0, 1, 2]],
    5: [[0, 3], [1, 4], [2, 5]],
    6: [[3, 0], [4, 1], [5, 2]],
    7: [[5, 2], [4, 1], [3, 0]],
    8: [[2, 5], [1, 4], [0, 3]],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    blocks = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8))
    options: dict[str, Any] = {"quality": 95} if kind == "JPEG" else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    image = decoded(encoded(grey(blocks), kind, exif=exif, **options))
    assert np.rint(image[8::16, 8::16, 0] / 40).tolist() == UPRIGHT[orientation]


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("mode", "dtype"), [("I;16", "<u2"), ("I;16B", ">u2")])
def test_orientation_is_applied_to_sixteen_bits(mode, dtype, orientation):
    tags = ImageFileDirectory_v2()
    tags[ORIENTATION] = orientation
    raw = (np.arange(6) * 257).astype(dtype).tobytes()
    data = encoded(Image.frombytes(mode, (3, 2), raw), "TIFF", tiffinfo=tags)
    assert decoded(data)[..., 0].tolist() == UPRIGHT[orientation]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_changes_nothing(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert np.array_equal(decoded(encoded(COLORS, "PNG", exif=exif)), COLORS)


# Still images and others


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF"])
def test_several_frames_are_rejected(kind):
    frames = [Image.fromarray(COLORS), Image.fromarray(255 - COLORS)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(UndecodableError, match="expected a still image"):
        decode_image(data, LIMIT)


def test_gif_is_rejected():
    with pytest.raises(UndecodableError, match="another kind"):
        decode_image(encoded(COLORS, "GIF"), LIMIT)


def test_tiff_with_overviews_and_mask_gives_the_first_page():
    overview, mask = 1, 4
    assert decoded(tiff_of_pages(0, overview, overview, mask)).tolist() == [[[7, 7, 7]]]


def test_tiff_with_smaller_overview_keeps_its_full_size():
    full, small = Image.fromarray(SMOOTH), Image.fromarray(SMOOTH[::2, ::2])
    tags = ImageFileDirectory_v2()
    tags[NEW_SUBFILE_TYPE] = 1
    small.encoderinfo = {"tiffinfo": tags}
    data = encoded(full, "TIFF", save_all=True, append_images=[small])
    assert np.array_equal(decoded(data), SMOOTH)


def test_tiff_with_second_page_behind_overview_is_rejected():
    with pytest.raises(UndecodableError, match="several pages"):
        decode_image(tiff_of_pages(0, 1, 0), LIMIT)


@pytest.mark.parametrize("subfile_type", [0, 1])
def test_tiff_of_endless_pages_is_rejected_without_counting_them(subfile_type):
    # Counting these takes Pillow minutes.
    with pytest.raises(UndecodableError, match="several pages"):
        decode_image(tiff_of_pages(0, *[subfile_type] * 60_000), LIMIT)


def test_mpo_gives_its_first_image():
    data = encoded(
        SMOOTH, "MPO", save_all=True, append_images=[Image.fromarray(255 - SMOOTH)], quality=95
    )
    assert np.abs(decoded(data).astype(int) - SMOOTH).mean() < 3


# Limits


def test_single_pixel_is_an_image():
    assert decoded(encoded(COLORS[:1, :1], "PNG")).tolist() == [[[255, 0, 0]]]


def test_image_at_the_limit_is_accepted():
    assert decode_image(encoded(COLORS, "PNG"), max_pixels=8).shape == (2, 4, 3)


def test_image_above_the_limit_is_rejected():
    with pytest.raises(TooLargeError, match="expected at most 7 pixels, got 4x2 = 8"):
        decode_image(encoded(COLORS, "PNG"), max_pixels=7)


def test_check_size_reads_width_by_height():
    check_size((3, 5), 15)
    with pytest.raises(TooLargeError, match="got 3x5 = 15"):
        check_size((3, 5), 14)


def test_bomb_is_rejected_without_decoding_it():
    side = 30_000
    squeezed = zlib.compressobj(9)
    line = bytes(1 + 3 * side)
    body = b"".join(squeezed.compress(line) for _ in range(500)) + squeezed.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    )
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match="got 30000x30000 = 900000000"):
            decode_image(bomb, 50_000_000)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def progressive(extra_scans: int, side: int = 7000) -> bytes:
    """Encode a progressive JPEG of one grey, with its last scan repeated."""
    data = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xc4") : -2]
    return data[:-2] + last_scan * extra_scans + b"\xff\xd9"


def test_jpeg_of_many_scans_is_rejected_without_decoding_it():
    # Each scan is 98 bytes and passes over 49 million pixels: decoding these takes minutes.
    with pytest.raises(TooLargeError, match="expected an image with fewer scans"):
        decode_image(progressive(extra_scans=10_000), 50_000_000)


def test_scans_behind_a_segment_that_holds_an_end_marker_count():
    data = progressive(extra_scans=10_000)
    comment = b"\xff\xfe\0\4\xff\xd9"
    with pytest.raises(TooLargeError, match="fewer scans"):
        decode_image(data[:2] + comment + data[2:], 50_000_000)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff\xe9\0\2" * 1_000_000,
        b"\xff\xd8" + b"\xff" * 1_000_000,
        b"\xff\xd8" + b"\xff\0" * 1_000_000 + b"\xff\xe9",
        b"\xff\xd8" + b"\xff\xd9" * 1_000_000,
        b"\xff\xd8" + b"\xff\xd0" * 1_000_000,
        b"\xff\xd8" + b"\xff\xf0" * 1_000_000,
        b"\x89PNG\r\n\x1a\n" + (bytes(4) + b"teXt" + bytes(4)) * 1_000_000,
    ],
    ids=["segments", "fill bytes", "escaped bytes", "ends", "restarts", "reserved", "chunks"],
)
def test_file_of_many_segments_is_rejected_without_reading_them(data):
    # Pillow reads each in Python; 32 MB of them take half a minute.
    with pytest.raises(TooLargeError, match="fewer scans, segments"):
        decode_image(data, 50_000_000)


def test_usual_progressive_jpeg_of_the_largest_size_is_accepted():
    assert decode_image(progressive(extra_scans=0), 50_000_000).shape == (7000, 7000, 3)


def test_small_jpeg_of_many_scans_is_accepted():
    assert decode_image(progressive(extra_scans=100, side=64), LIMIT).shape == (64, 64, 3)


def test_markers_behind_the_end_of_a_jpeg_do_not_count():
    film = b"\xff\xda\0\2" * 10_000
    data = encoded(Image.new("RGB", (1000, 900)), "JPEG")
    assert decode_image(data + film, LIMIT).shape == (900, 1000, 3)


def test_tiff_of_many_rows_is_rejected_without_decoding_it():
    tags = {256: 1, 257: 46_000_000, 258: 1, 259: 3, 262: 1, 273: 8, 277: 1, 279: 1500}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    head = b"II*\0" + struct.pack("<I", 1508)
    data = head + bytes(1500) + struct.pack("<H", len(tags)) + fields + bytes(4)
    with pytest.raises(TooLargeError, match="fewer scans, segments, strips"):
        decode_image(data, 50_000_000)


def test_tiff_of_many_strips_is_rejected_without_decoding_it():
    rows = 1_000_000
    tags = {256: 1, 257: rows, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1}
    fields = [(tag, 1, value) for tag, value in tags.items()]
    table = 8 + 2 + 12 * (len(fields) + 2) + 4
    fields += [(273, rows, table), (279, rows, table + 4 * rows)]
    data = b"II*\0" + struct.pack("<IH", 8, len(fields))
    data += b"".join(struct.pack("<HHII", tag, 4, n, at) for tag, n, at in sorted(fields))
    data += bytes(4) + struct.pack("<I", 8) * rows + struct.pack("<I", 1) * rows
    with pytest.raises(TooLargeError, match="fewer scans, segments, strips"):
        decode_image(data, 50_000_000)


def run_length_encoded(width: int, height: int, body: bytes) -> bytes:
    """Encode a BMP of eight bits whose palette is black."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 2835, 2835, 256, 0)
    head = struct.pack("<IHHI", 14 + 40 + 1024 + len(body), 0, 0, 14 + 40 + 1024)
    return b"BM" + head + info + bytes(1024) + body


def test_large_run_length_encoded_bmp_is_rejected_without_decoding_it():
    data = run_length_encoded(7000, 7000, b"\1\0\0\0" * 7000 + b"\0\1")
    with pytest.raises(TooLargeError, match="run-length encoded pixels, got one that takes"):
        decode_image(data, 50_000_000)


def test_small_run_length_encoded_bmp_is_accepted():
    assert decoded(run_length_encoded(2, 1, b"\2\0\0\1")).tolist() == [[[0] * 3] * 2]


def test_text_chunk_bomb_is_rejected():
    chunk = (b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000)))
    with pytest.raises(UndecodableError):
        decode_image(png(1, 1, 8, 0, b"\0\0", *[chunk] * 40), LIMIT)


# Damage


def test_zero_bytes_are_rejected():
    with pytest.raises(UndecodableError, match="expected an image, got 0 bytes"):
        decode_image(b"", LIMIT)


@pytest.mark.parametrize("data", [b"just a text, named .jpg", b"\xff\xd8", b"<svg/>", b"%PDF-1.7"])
def test_other_kinds_are_rejected(data):
    with pytest.raises(UndecodableError, match=f"TIFF or BMP image, got {len(data)} bytes of ano"):
        decode_image(data, LIMIT)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.5, 0.9, 0.99])
def test_truncated_image_is_rejected(kind, fraction):
    data = encoded(NOISE, kind)
    with pytest.raises(UndecodableError):
        decode_image(data[: int(fraction * len(data))], LIMIT)


def test_jpeg_without_its_last_byte_is_rejected():
    with pytest.raises(UndecodableError, match="cut off or damaged: image file is truncated"):
        decode_image(encoded(SMOOTH, "JPEG")[:-1], LIMIT)


@pytest.mark.parametrize(("width", "height"), [(0, 1), (1, 0)])
def test_image_without_pixels_is_rejected(width, height):
    with pytest.raises(UndecodableError):
        decode_image(png(width, height, 8, 0, b""), LIMIT)


SEEDS = [
    encoded(SMOOTH[:9, :11], "JPEG"),
    encoded(SMOOTH[:9, :11], "JPEG", progressive=True),
    encoded(SMOOTH[:9, :11], "PNG"),
    encoded(SMOOTH[:9, :11, 0].astype(np.uint16) * 257, "PNG"),
    encoded(Image.fromarray(SMOOTH[:9, :11]).quantize(8), "PNG", transparency=b"\1\2"),
    encoded(SMOOTH[:9, :11], "WEBP"),
    encoded(SMOOTH[:9, :11], "TIFF"),
    encoded(SMOOTH[:9, :11], "TIFF", compression="tiff_lzw"),
    encoded(SMOOTH[:9, :11, 0].astype(np.uint16) * 257, "TIFF"),
    tiff_of_pages(0, 1, 4),
    encoded(SMOOTH[:9, :11], "BMP"),
]


def assert_decodes_or_raises_input_error(data: bytes) -> None:
    with contextlib.suppress(InputError):  # and nothing else
        assert 0 < decoded(data).size <= 3 * LIMIT


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_image_is_decoded_or_rejected(data):
    seed = bytearray(data.draw(st.sampled_from(SEEDS)))
    spots = st.integers(0, min(len(seed), 400) - 1)
    for spot, value in data.draw(st.lists(st.tuples(spots, st.integers(1, 255)), max_size=6)):
        seed[spot] ^= value
    assert_decodes_or_raises_input_error(bytes(seed[: data.draw(st.integers(1, len(seed)))]))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=100, deadline=None)
@given(
    start=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"BM"]),
    rest=st.binary(max_size=200),
)
def test_random_bytes_are_rejected(start, rest):
    assert_decodes_or_raises_input_error(start + rest)
