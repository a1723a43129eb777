"""Mutations of bytes that lie about sizes, offsets and types; one seed gives one mutation."""

import random
import re

MAX_MUTATIONS = 4  # of one example
NUMBERS = (b"0", b"-1", b"1", b"4294967296", b"9223372036854775807", b"18446744073709551616")
WORDS = (b"[" * 3000, b"{", b"\xff\xfe", b"\0", b"null", b"true", b"1e999", b"'O'", b"\\x00")


def mutated(data: bytes, seed: int) -> bytes:
    """Return a copy with one to `MAX_MUTATIONS` mutations, drawn from the seed."""
    draw = random.Random(seed)
    for _ in range(draw.randint(1, MAX_MUTATIONS)):
        data = draw.choice(MUTATIONS)(data, draw)
    return data


def _place(data: bytes, draw: random.Random) -> int:
    """Draw a position: half of them in the first or last 200 bytes, where headers are."""
    if draw.random() < 0.5:
        near = draw.randrange(min(len(data), 200) or 1)
        return near if draw.random() < 0.5 else max(len(data) - near, 0)
    return draw.randrange(len(data) or 1)


def flip_bit(data: bytes, draw: random.Random) -> bytes:
    """Flip one bit."""
    if not data:
        return data
    flipped, place = bytearray(data), min(_place(data, draw), len(data) - 1)
    flipped[place] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def truncate(data: bytes, draw: random.Random) -> bytes:
    """Cut the end off."""
    return data[: _place(data, draw)]


def remove(data: bytes, draw: random.Random) -> bytes:
    """Remove up to 20 bytes."""
    place = _place(data, draw)
    return data[:place] + data[place + draw.randint(1, 20) :]


def repeat(data: bytes, draw: random.Random) -> bytes:
    """Repeat up to 200 bytes."""
    place = _place(data, draw)
    return data[:place] + data[place : place + draw.randint(1, 200)] + data[place:]


def overwrite_integer(data: bytes, draw: random.Random) -> bytes:
    """Overwrite 1, 2, 4 or 8 bytes by an integer at the edge of a range."""
    size = draw.choice((1, 2, 4, 8))
    value = draw.choice((0, 1, 1 << 8 * size - 1, (1 << 8 * size - 1) - 1, (1 << 8 * size) - 1))
    place = _place(data, draw)
    return (
        data[:place] + value.to_bytes(size, draw.choice(("little", "big"))) + data[place + size :]
    )


def replace_number(data: bytes, draw: random.Random) -> bytes:
    """Replace a decimal number of a text header."""
    found = list(re.finditer(rb"-?\d+", data[:4096]))
    if not found:
        return data
    match = draw.choice(found)
    return data[: match.start()] + draw.choice(NUMBERS) + data[match.end() :]


def insert_word(data: bytes, draw: random.Random) -> bytes:
    """Insert a sequence that parsers of text treat specially."""
    place = _place(data, draw)
    return data[:place] + draw.choice(WORDS) + data[place:]


MUTATIONS = (
    flip_bit, truncate, remove, repeat, overwrite_integer, replace_number, insert_word
)  # fmt: skip
