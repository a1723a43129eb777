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
def accumulate(
    gains: Floats, rows: Floats, begin: int, left: int, right: int, sums: Floats
) -> None:
    """Add gains [n] times the columns of so many rows, from row `begin` on, four rows a step."""
    for i in range(0, len(gains) - 3, 4):
        of_a, of_b, of_c, of_d = gains[i], gains[i + 1], gains[i + 2], gains[i + 3]
        a, b = rows[begin + i, left:right], rows[begin + i + 1, left:right]
        c, d = rows[begin + i + 2, left:right], rows[begin + i + 3, left:right]
        for x in range(right - left):
            sums[x] += of_a * a[x] + of_b * b[x] + (of_c * c[x] + of_d * d[x])
    for i in range(len(gains) // 4 * 4, len(gains)):
        gain, row = gains[i], rows[begin + i, left:right]
        for x in range(right - left):
            sums[x] += gain * row[x]
