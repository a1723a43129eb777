"""What contextual scaling's kernel reads off logits before its networks are asked.

Two sweeps over rows of the grid, each with its columns innermost, so that they vectorise: the
pixel's own distribution, and neighbourhoods along the row.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.calibration.methods.contextual.features import TOP
from app.numerics import LOG2_E, compiled, logarithm, power_of_two

Floats = NDArray[np.float32]
Classes = NDArray[np.int32]

LANES = 16

_ZERO, _ONE, _NONE = np.float32(0), np.float32(1), np.float32(-3e38)
_ODDS_LIMIT = np.float32(12)
_DEEPEST = np.float32(-80)  # e to it is nothing beside 1
_LOG2_E = np.float32(LOG2_E)
_SMALLEST = np.float32(1e-30)


class Planes(NamedTuple):
    """What the sweeps hand on, on the grid [h,w]."""

    top: Floats  # [T,h,w], sorted log-probabilities
    odds: Floats  # log-odds of the first of them
    partition: Floats
    entropy: Floats
    first: Classes
    second: Classes
    along: Floats  # [4,h,w], entropy and changes of label, over short and long rows


def allocate_planes(classes: int, height: int, width: int) -> Planes:
    """Make room for the sweeps' results."""
    size = height, width
    return Planes(
        top=np.empty((min(TOP, classes), *size), np.float32),
        odds=np.empty(size, np.float32),
        partition=np.empty(size, np.float32),
        entropy=np.empty(size, np.float32),
        first=np.zeros(size, np.int32),
        second=np.zeros(size, np.int32),
        along=np.empty((4, *size), np.float32),
    )


# Loops run over rows taken out of their arrays first: only those are known to lie in one piece,
# without which nothing is vectorised.


@compiled
def pixel_sweep(
    logits: Floats, gain: np.float32, floor: np.float32, planes: Planes, start: int, stop: int
) -> None:
    """Sweep 1: sorted log-probabilities, entropy and the two leading classes of rows."""
    classes, _, width = logits.shape
    carried, mean = np.empty(width, np.float32), np.empty(width, np.float32)
    others = np.empty(width, np.float32)
    for y in range(start, stop):
        leader, partition, entropy = planes.top[0, y], planes.partition[y], planes.entropy[y]
        first, odds = planes.first[y], planes.odds[y]
        _sort(logits, planes, carried, y)
        others[:] = 0
        mean[:] = 0
        for k in range(classes):
            row = logits[k, y]
            for x in range(width):
                below = max((row[x] - leader[x]) * gain, _DEEPEST)
                power = power_of_two(below * _LOG2_E)
                others[x] += power if first[x] != k else _ZERO
                mean[x] += power * below
        for x in range(width):
            total = _ONE + others[x]
            log = logarithm(total)
            partition[x] = gain * leader[x] + log
            entropy[x] = log - mean[x] / total
            # p / (1 - p) of the leader's p = 1 / (1 + others)
            odds[x] = min(max(-logarithm(max(others[x], _SMALLEST)), -_ODDS_LIMIT), _ODDS_LIMIT)
        for place in range(planes.top.shape[0]):
            sorted_ = planes.top[place, y]
            for x in range(width):
                sorted_[x] = max(gain * sorted_[x] - partition[x], floor)


@compiled
def _sort(logits: Floats, planes: Planes, carried: Floats, y: int) -> None:
    """Find a row's highest logits and two leading classes; the lower class leads on ties."""
    width = len(carried)
    first, second = planes.first[y], planes.second[y]
    leader, next_ = planes.top[0, y], planes.top[1, y]
    planes.top[:, y] = _NONE
    for k in range(logits.shape[0]):
        row = logits[k, y]
        for x in range(width):
            second[x] = k if row[x] > next_[x] else second[x]
            second[x] = first[x] if row[x] > leader[x] else second[x]
            first[x] = k if row[x] > leader[x] else first[x]
        carried[:] = row
        for place in range(planes.top.shape[0]):
            held = planes.top[place, y]
            for x in range(width):
                larger = max(held[x], carried[x])
                carried[x] = min(held[x], carried[x])
                held[x] = larger


@compiled
def row_sweep(planes: Planes, radii: tuple[int, int], start: int, stop: int) -> None:
    """Sweep 2: changes of label, and sums along the row of them and of the entropy."""
    height, width = planes.first.shape
    changes = np.empty(width, np.float32)
    for y in range(start, stop):
        own = planes.first[y]
        for x in range(width):
            count = 0
            if x > 0 and own[x] != own[x - 1]:
                count += 1
            if x < width - 1 and own[x] != own[x + 1]:
                count += 1
            if y > 0 and own[x] != planes.first[y - 1, x]:
                count += 1
            if y < height - 1 and own[x] != planes.first[y + 1, x]:
                count += 1
            changes[x] = count
        for place in range(2):
            radius = radii[place]
            window_sums(planes.entropy[y], radius, planes.along[2 * place, y])
            window_sums(changes, radius, planes.along[2 * place + 1, y])


@compiled
def window_sums(values: Floats, radius: int, sums: Floats) -> None:
    """Sums over windows of 2 reach + 1, the border repeated."""
    last = len(values) - 1
    running = 0.0
    for x in range(-radius, radius + 1):
        running += values[min(max(x, 0), last)]
    for x in range(last + 1):
        sums[x] = running
        running += values[min(x + radius + 1, last)] - values[max(x - radius, 0)]


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
