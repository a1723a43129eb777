"""Large pictures a piece at a time, so that what is made on the way takes little beside them."""

from collections.abc import Iterator

PIECE = 1 << 22  # pixels; most pictures are a single piece


def pieces(height: int, width: int) -> Iterator[slice]:
    """Divide a picture's rows into slices of at most 4 million pixels, or of one row."""
    step = max(1, PIECE // width)
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))
