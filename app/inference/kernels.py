"""The emission kernel for the CPU: one sweep over the classes for each tile of pixels.

For two neighbouring rows of the grid, all classes are expanded to a tile's columns once (`tile`);
the output rows between them then cost one multiply-add, one comparison and one exponential a class
and pixel, all on columns that stay in the cache.

Everything is in units of log2, relative to the larger of the values that the two cells of highest
logits would give, interpolated: no exponential can then overflow, and no maximum has to be known
before the sweep. Where that bound is far above the truth the tile is swept once more.
"""

import numpy as np

from app.arithmetic import power_of_two
from app.compilation import compiled
from app.inference.tile import (
    BEST,
    CHOSEN,
    COLUMNS,
    GAP,
    GROUP,
    LABEL,
    NONE,
    ONE,
    TILE,
    TOP,
    TOTAL,
    TWO,
    Floats,
    Mask,
    Offset,
    Taps,
    expand,
    make_scratch,
    store,
    widest,
)

_0, _1, _2, _3, _4 = (np.uint64(n) for n in (0, 1, 2, 3, GROUP))
_UNDERFLOW = np.float32(2.0**-64)


@compiled
def emit_rows(
    labelling: Floats,
    rating: Floats,
    two: bool,
    gain: np.float32,
    rows: Taps,
    columns: Taps,
    phases: int,
    mask: Mask,
    confidence: Floats,
    start: int,
    stop: int,
) -> None:
    """Write rows [start, stop) of `mask` [H,W] and `confidence` [H,W].

    `labelling` and `rating` are contiguous logits [K,h,w]; `two` says whether they differ. `gain`
    multiplies them before a softmax in powers of two. `phases` is the whole number of columns a
    cell where the columns lie evenly on the grid, 0 where they do not.
    """
    top, bottom, down = rows
    both = (labelling, rating)
    classes = np.uint64(labelling.shape[0])
    padded = (classes + _4 - _1) // _4 * _4
    row = TWO if two else ONE
    running = padded * row
    scratch = make_scratch(classes, padded, row)
    cells = TILE // phases if phases else 0
    low = np.empty((2, cells + 1 if phases else widest(columns)), np.float32)
    first = phases // 2 - phases  # the columns of cell -1, clamped to cell 0, come first
    cell = -1
    while first < mask.shape[1]:
        if not phases:
            cell = columns[0][first]
        tile = (cell, first, phases)
        held = (-1, -1)
        upper, lower = _0, COLUMNS
        for y in range(start, stop):
            if held[0] != top[y] or held[1] != bottom[y]:
                upper, lower = lower, upper  # what was below is above most of the time
                if held[1] != top[y]:
                    expand(both, two, top[y], gain, columns, tile, low, scratch, upper)
                expand(both, two, bottom[y], gain, columns, tile, low, scratch, lower)
                held = (top[y], bottom[y])
            if two:
                _sweep_two(scratch, padded, down[y], running, upper)
                _divide(scratch, padded, row, down[y], running, ONE, upper, CHOSEN)
            else:
                _sweep_one(scratch, padded, down[y], running, upper)
                _divide(scratch, padded, row, down[y], running, _0, upper, BEST)
            store(scratch, running, first, phases, mask[y], confidence[y])
        first += cells * phases if phases else TILE
        cell += cells


@compiled
def _sweep_one(
    scratch: Floats, classes: Offset, weight: np.float32, running: Offset, upper: Offset
) -> None:
    """Run over the classes: the highest value, its class, and the sum of powers."""
    for x in range(COLUMNS):
        scratch[running + BEST + x] = NONE
        scratch[running + TOTAL + x] = 0
    for k in range(_0, classes, _4):
        at, gap = k * ONE + upper, k * ONE + GAP
        k0, k1, k2, k3 = np.float32(k), np.float32(k + _1), np.float32(k + _2), np.float32(k + _3)
        for x in range(COLUMNS):
            best = scratch[running + BEST + x]
            label = scratch[running + LABEL + x]
            total = scratch[running + TOTAL + x]
            v0 = scratch[at + x] + weight * scratch[gap + x]
            v1 = scratch[at + ONE + x] + weight * scratch[gap + ONE + x]
            v2 = scratch[at + _2 * ONE + x] + weight * scratch[gap + _2 * ONE + x]
            v3 = scratch[at + _3 * ONE + x] + weight * scratch[gap + _3 * ONE + x]
            label = k0 if v0 > best else label
            best = max(v0, best)
            label = k1 if v1 > best else label
            best = max(v1, best)
            label = k2 if v2 > best else label
            best = max(v2, best)
            label = k3 if v3 > best else label
            best = max(v3, best)
            total += power_of_two(v0) + power_of_two(v1) + (power_of_two(v2) + power_of_two(v3))
            scratch[running + BEST + x] = best
            scratch[running + LABEL + x] = label
            scratch[running + TOTAL + x] = total


@compiled
def _sweep_two(
    scratch: Floats, classes: Offset, weight: np.float32, running: Offset, upper: Offset
) -> None:
    """Take the class from one half of the rows, its value and the sum of powers from the other."""
    for x in range(COLUMNS):
        scratch[running + BEST + x] = NONE
        scratch[running + TOTAL + x] = 0
    for k in range(_0, classes, _2):
        at, gap = k * TWO + upper, k * TWO + GAP
        k0, k1 = np.float32(k), np.float32(k + _1)
        for x in range(COLUMNS):
            best = scratch[running + BEST + x]
            label = scratch[running + LABEL + x]
            total = scratch[running + TOTAL + x]
            chosen = scratch[running + CHOSEN + x]
            v0 = scratch[at + x] + weight * scratch[gap + x]
            v1 = scratch[at + TWO + x] + weight * scratch[gap + TWO + x]
            c0 = scratch[at + ONE + x] + weight * scratch[gap + ONE + x]
            c1 = scratch[at + TWO + ONE + x] + weight * scratch[gap + TWO + ONE + x]
            label = k0 if v0 > best else label
            chosen = c0 if v0 > best else chosen
            best = max(v0, best)
            label = k1 if v1 > best else label
            chosen = c1 if v1 > best else chosen
            best = max(v1, best)
            total += power_of_two(c0) + power_of_two(c1)
            scratch[running + BEST + x] = best
            scratch[running + LABEL + x] = label
            scratch[running + TOTAL + x] = total
            scratch[running + CHOSEN + x] = chosen


@compiled
def _divide(
    scratch: Floats,
    classes: Offset,
    row: Offset,
    weight: np.float32,
    running: Offset,
    half: Offset,
    upper: Offset,
    chosen: Offset,
) -> None:
    """Put the chosen class's share of all powers into the place of their sum."""
    total, value = running + TOTAL, running + chosen
    lowest = np.float32(1)
    for x in range(COLUMNS):
        lowest = min(lowest, scratch[total + x])
    if lowest < _UNDERFLOW:
        _sum_again(scratch, classes, row, weight, running, half, upper)
        for x in range(COLUMNS):
            scratch[value + x] -= scratch[running + TOP + x]
    for x in range(COLUMNS):
        scratch[total + x] = power_of_two(scratch[value + x]) / scratch[total + x]


@compiled
def _sum_again(
    scratch: Floats,
    classes: Offset,
    row: Offset,
    weight: np.float32,
    running: Offset,
    half: Offset,
    upper: Offset,
) -> None:
    """Find the highest value of each column first, then sum powers relative to it."""
    highest, total = running + TOP, running + TOTAL
    for x in range(COLUMNS):
        scratch[highest + x] = NONE
        scratch[total + x] = 0
    for k in range(classes):
        at, gap = k * row + half + upper, k * row + half + GAP
        for x in range(COLUMNS):
            value = scratch[at + x] + weight * scratch[gap + x]
            scratch[highest + x] = max(scratch[highest + x], value)
    for k in range(classes):
        at, gap = k * row + half + upper, k * row + half + GAP
        for x in range(COLUMNS):
            value = scratch[at + x] + weight * scratch[gap + x]
            scratch[total + x] += power_of_two(value - scratch[highest + x])
