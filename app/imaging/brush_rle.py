"""Label Studio's run lengths of brush masks: the bit stream of thi.ng's rle-pack.

The stream packs the mask as an RGBA image, so each pixel's value stands four times in a row:

    32 bits  number of values      5 bits  bits of a value - 1      4 x 4 bits  sizes - 1
    then, until all values are there:  1 bit  repeated or not,  2 bits  index of a size,
    that many bits  count - 1,  and one value if repeated, else `count` values
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.errors import ArgumentError
from app.numerics import compiled

CHANNELS = 4
VALUE_BITS = 8
SIZES = (3, 4, 8, 16)  # bits of a count, as in Label Studio's own encoder
HEADER_BITS = 32 + 5 + 4 * len(SIZES)
LONGEST = 1 << SIZES[-1]
RUN_BITS = 1 + 2 + SIZES[-1] + VALUE_BITS

Bytes = NDArray[np.uint8]


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Encode a mask [H,W] as bytes: 255 in all channels where it is true, else 0."""
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff(starts, append=flat.size) * CHANNELS
    runs = int(lengths.size + (lengths // LONGEST).sum())
    packed = np.zeros((HEADER_BITS + runs * RUN_BITS) // 8 + 2, np.uint8)
    used = _pack(lengths, flat[starts].astype(np.uint8) * 255, packed)
    # One byte more where the stream ends with a whole one, as Label Studio's encoder has it.
    encoded: list[int] = packed[: used // 8 + 1].tolist()
    return encoded


def decode_brush(encoded: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Decode bytes to a mask [H,W], true where alpha is not 0; raises ArgumentError for damage."""
    try:
        stream = np.array(encoded, np.uint8)
    except (OverflowError, TypeError, ValueError) as error:
        raise ArgumentError("rle: expected bytes, got other values") from error
    alpha = np.zeros(height * width, np.uint8)
    if stream.ndim != 1 or not _unpack(stream, alpha):
        raise ArgumentError(
            f"rle: expected the run lengths of {height} x {width} pixels, got other data"
        )
    mask: NDArray[np.bool_] = (alpha != 0).reshape(height, width)
    return mask


@compiled
def _write(packed: Bytes, position: int, value: int, size: int) -> int:
    """Write the lowest bits of a value at a position in bits; return the position after them."""
    for bit in range(size):
        if (value >> (size - 1 - bit)) & 1:
            packed[(position + bit) >> 3] |= np.uint8(128 >> ((position + bit) & 7))
    return position + size


@compiled
def _pack(lengths: NDArray[np.int64], values: Bytes, packed: Bytes) -> int:
    """Write the header and all runs, each in the smallest size; return the bits used."""
    position = _write(packed, 0, lengths.sum(), 32)
    position = _write(packed, position, VALUE_BITS - 1, 5)
    for size in SIZES:
        position = _write(packed, position, size - 1, 4)
    for run in range(len(lengths)):
        left = lengths[run]
        while left > 0:
            count = min(left, LONGEST)
            index = 0
            while count > 1 << SIZES[index]:
                index += 1
            position = _write(packed, position, 4 + index, 3)
            position = _write(packed, position, count - 1, SIZES[index])
            position = _write(packed, position, values[run], VALUE_BITS)
            left -= count
    return position


@compiled
def _read(stream: Bytes, position: int, size: int) -> int:
    """Read a number of bits at a position; 0 beyond the end."""
    value = 0
    for bit in range(position, position + size):
        value <<= 1
        if bit >> 3 < len(stream):
            value |= (stream[bit >> 3] >> (7 - (bit & 7))) & 1
    return value


@compiled
def _unpack(stream: Bytes, alpha: Bytes) -> bool:
    """Read the fourth value of each pixel; return whether the stream holds exactly all of them."""
    total = CHANNELS * len(alpha)
    if _read(stream, 0, 32) != total:
        return False
    bits = _read(stream, 32, 5) + 1
    done, position, end = 0, HEADER_BITS, 8 * len(stream)
    while done < total:
        repeated = _read(stream, position, 1)
        size = _read(stream, 37 + 4 * _read(stream, position + 1, 2), 4) + 1
        count = _read(stream, position + 3, size) + 1
        position += 3 + size
        if count > total - done or position + bits * (1 if repeated else count) > end:
            return False
        for index in range(done, done + count):
            if index % CHANNELS == CHANNELS - 1:
                offset = 0 if repeated else (index - done) * bits
                alpha[index // CHANNELS] = _read(stream, position + offset, bits) != 0
        position += bits if repeated else count * bits
        done += count
    return True
