"""Sums over and of rows of float32, for contextual scaling's kernel; see `app.arithmetic`.

Loops run over rows taken out of their arrays first: only those are known to lie in one piece,
without which nothing is vectorised.
"""

import numpy as np
from numpy.typing import NDArray

from app.compilation import compiled

Floats = NDArray[np.float32]

LANES = 16


@compiled
def window_sums(values: Floats, reach: int, sums: Floats) -> None:
    """Sums over windows of 2 reach + 1, the border repeated."""
    last = len(values) - 1
    running = 0.0
    for x in range(-reach, reach + 1):
        running += values[min(max(x, 0), last)]
    for x in range(last + 1):
        sums[x] = running
        running += values[min(x + reach + 1, last)] - values[max(x - reach, 0)]


@compiled
def total_of(row: Floats, lanes: Floats) -> np.float32:
    """Sum a row in several lanes at once, always in the same order."""
    lanes[:] = 0
    whole = len(row) // LANES * LANES
    for left in range(0, whole, LANES):
        part = row[left : left + LANES]
        for x in range(LANES):
            lanes[x] += part[x]
    for x in range(whole, len(row)):
        lanes[x - whole] += row[x]
    total = np.float32(0)
    for x in range(LANES):
        total += lanes[x]
    return np.float32(total)


@compiled
def accumulate(gains: Floats, rows: Floats, begin: int, left: int, sums: Floats) -> None:
    """Add two sums [2,m] of gains [n,2] times so many rows' columns, from `begin` and `left` on.

    Four rows a step, and two sums: what is loaded is used twice, and what is stored once.
    """
    one, other = sums[0], sums[1]
    right = left + len(one)
    for i in range(0, len(gains) - 3, 4):
        a0, b0, c0, d0 = gains[i, 0], gains[i + 1, 0], gains[i + 2, 0], gains[i + 3, 0]
        a1, b1, c1, d1 = gains[i, 1], gains[i + 1, 1], gains[i + 2, 1], gains[i + 3, 1]
        a, b = rows[begin + i, left:right], rows[begin + i + 1, left:right]
        c, d = rows[begin + i + 2, left:right], rows[begin + i + 3, left:right]
        for x in range(right - left):
            one[x] += a0 * a[x] + b0 * b[x] + (c0 * c[x] + d0 * d[x])
            other[x] += a1 * a[x] + b1 * b[x] + (c1 * c[x] + d1 * d[x])
    for i in range(len(gains) // 4 * 4, len(gains)):
        gain, further, row = gains[i, 0], gains[i, 1], rows[begin + i, left:right]
        for x in range(right - left):
            one[x] += gain * row[x]
            other[x] += further * row[x]
