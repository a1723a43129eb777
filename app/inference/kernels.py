"""numba kernel for the CPU: label and confidence from logits.

`postprocess_kernel` interpolates logits [K,h,w] bilinearly to image size and reads the label and
its softmax probability in one sweep over the classes, for a tile of 256 columns of one output row
at a time. For two neighbouring rows of the grid, the logits of all classes are interpolated at a
tile's columns once; each output row between them then costs one multiply-add, one comparison and
one exponential for each class and pixel, on values that stay in the cache.

The scratch of a tile is one flat array: for each class the upper row, the lower row and their
difference, then the running values of the columns. With unsigned offsets LLVM sees that its parts
do not overlap and vectorises the loops over columns.

Values are in units of log2, relative to the highest logit of their cell. The exponentials then
cannot overflow, and no maximum has to be known before the sweep. Where all of them are so small
that their sum loses precision, it is computed again relative to the column's maximum.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.calibration.predictions import Mask
from app.numerics import compiled, power_of_two

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Taps = tuple[Indices, Indices, Floats]  # of one axis: first cell, second cell, its weight
Offset: TypeAlias = Any  # uint64 to numba; for numpy's stubs it mixes with no other integer

TILE = 256  # columns
GROUP = 4  # classes for which the running maximum and sum are read and written once

COLUMNS: Offset
COLUMNS, _0, _1, _2, _3, _4 = (np.uint64(n) for n in (TILE, 0, 1, 2, 3, GROUP))
# Scratch floats of a class with one grid and with two; offset of the difference within a grid's.
ONE_GRID, TWO_GRIDS = np.uint64(3 * TILE), np.uint64(6 * TILE)
DIFFERENCE = np.uint64(2 * TILE)
# Offsets of the columns' running values, which follow the classes, and their total size.
BEST, LABEL, TOTAL, CHOSEN, TOP, RUNNING = (np.uint64(n * TILE) for n in range(6))
LOWEST = np.float32(-3e38)
FLOOR = np.float32(-1e30)  # keeps differences finite for any logits
UNDERFLOW = np.float32(2.0**-64)  # sums of powers below it have lost precision
_ONE = np.float32(1)


@compiled
def postprocess_kernel(
    label_logits: Floats,
    confidence_logits: Floats,
    separate: bool,
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

    `label_logits` and `confidence_logits` are contiguous logits [K,h,w]; `separate` tells whether
    they differ. `gain` multiplies them before a softmax in powers of 2. `phases` is the number of
    columns for each cell where it is a whole number, else 0.
    """
    top, bottom, down = rows
    grids = (label_logits, confidence_logits)
    classes = np.uint64(label_logits.shape[0])
    padded = (classes + _4 - _1) // _4 * _4
    class_size = TWO_GRIDS if separate else ONE_GRID
    running = padded * class_size
    scratch = _make_scratch(classes, padded, class_size)
    cells = TILE // phases if phases else 0
    buffer = np.empty((2, cells + 1 if phases else _max_tile_cells(columns)), np.float32)
    first = phases // 2 - phases  # the columns of cell -1, clamped to cell 0, come first
    cell = -1
    while first < mask.shape[1]:
        if not phases:
            cell = columns[0][first]
        tile = (cell, first, phases)
        loaded = (-1, -1)
        upper, lower = _0, COLUMNS
        for y in range(start, stop):
            if loaded[0] != top[y] or loaded[1] != bottom[y]:
                upper, lower = lower, upper  # the next upper row is mostly the last lower one
                if loaded[1] != top[y]:
                    _interpolate_rows(
                        grids, separate, top[y], gain, columns, tile, buffer, scratch, upper
                    )
                _interpolate_rows(
                    grids, separate, bottom[y], gain, columns, tile, buffer, scratch, lower
                )
                loaded = (top[y], bottom[y])
            if separate:
                _sweep_two(scratch, padded, down[y], running, upper)
                _write_confidence(
                    scratch, padded, class_size, down[y], running, ONE_GRID, upper, CHOSEN
                )
            else:
                _sweep_one(scratch, padded, down[y], running, upper)
                _write_confidence(scratch, padded, class_size, down[y], running, _0, upper, BEST)
            _store(scratch, running, first, phases, mask[y], confidence[y])
        first += cells * phases if phases else TILE
        cell += cells


@compiled
def _make_scratch(classes: Offset, padded: Offset, class_size: Offset) -> Floats:
    """Allocate the scratch; classes that pad the last group have logits of FLOOR, powers of 0."""
    scratch = np.empty(padded * class_size + RUNNING, np.float32)
    for x in range(len(scratch)):
        scratch[x] = 0
    for k in range(classes, padded):
        for grid in range(_0, class_size, ONE_GRID):
            for x in range(DIFFERENCE):
                scratch[k * class_size + grid + x] = FLOOR
    return scratch


@compiled
def _max_tile_cells(columns: Taps) -> int:
    """Return the largest number of cells that the columns of one tile are interpolated from."""
    count = 0
    for first in range(0, len(columns[0]), TILE):
        last = min(first + TILE, len(columns[0])) - 1
        count = max(count, columns[1][last] - columns[0][first] + 1)
    return count


@compiled
def _interpolate_rows(
    grids: tuple[Floats, Floats],
    separate: bool,
    y: int,
    gain: np.float32,
    columns: Taps,
    tile: tuple[int, int, int],
    buffer: Floats,
    scratch: Floats,
    slot: Offset,
) -> None:
    """Interpolate one row of the grid, or of both grids, at a tile's columns, for all classes."""
    class_size = TWO_GRIDS if separate else ONE_GRID
    _interpolate_row(grids[0], y, gain, columns, tile, buffer, scratch, class_size, _0, slot)
    if separate:
        _interpolate_row(
            grids[1], y, gain, columns, tile, buffer, scratch, class_size, ONE_GRID, slot
        )


@compiled
def _interpolate_row(
    logits: Floats,
    y: int,
    gain: np.float32,
    columns: Taps,
    tile: tuple[int, int, int],
    buffer: Floats,
    scratch: Floats,
    class_size: Offset,
    grid: Offset,
    slot: Offset,
) -> None:
    """Interpolate one row of one grid, relative to the highest logit of each cell."""
    cell, width = tile[0], logits.shape[2]
    begin, end = max(cell, 0), min(cell + buffer.shape[1], width)
    highest = buffer[0, begin - cell : end - cell]
    inside = buffer[1, begin - cell : end - cell]
    for j in range(len(highest)):
        highest[j] = LOWEST
    for k in range(logits.shape[0]):
        source = logits[k, y, begin:end]
        for j in range(len(highest)):
            highest[j] = max(highest[j], source[j])
    for k in range(logits.shape[0]):
        source = logits[k, y, begin:end]
        for j in range(len(inside)):
            inside[j] = max((source[j] - highest[j]) * gain, FLOOR)
        for j in range(begin - cell):
            buffer[1, j] = inside[0]
        for j in range(end - cell, buffer.shape[1]):
            buffer[1, j] = inside[-1]
        _interpolate_class(
            buffer[1], columns, tile, scratch, np.uint64(k) * class_size + grid, slot
        )


@compiled
def _interpolate_class(
    values: Floats,
    columns: Taps,
    tile: tuple[int, int, int],
    scratch: Floats,
    at: Offset,
    slot: Offset,
) -> None:
    """Interpolate one class between its cells; store its values and the difference of rows.

    The difference is right once the lower row, always the last, was interpolated. With phases,
    columns of equal weight are adjacent in the scratch, so that cells are read in order.
    """
    cell, first, phases = tile
    if phases:
        cells = np.uint64(len(values) - 1)
        for phase in range(phases):
            weight = np.float32((phases // 2 + phase + 0.5) / phases - 0.5)
            lane = at + np.uint64(phase) * cells
            for j in range(cells):
                value = values[j] + weight * (values[j + _1] - values[j])
                scratch[lane + DIFFERENCE + j] = value - scratch[lane + (COLUMNS - slot) + j]
                scratch[lane + slot + j] = value
        return
    left, right, across = columns
    last = len(left) - 1
    for x in range(COLUMNS):
        column: Any = min(first + np.int64(x), last)
        value = values[left[column] - cell]
        value += across[column] * (values[right[column] - cell] - value)
        scratch[at + DIFFERENCE + x] = value - scratch[at + (COLUMNS - slot) + x]
        scratch[at + slot + x] = value


@compiled
def _sweep_one(
    scratch: Floats, classes: Offset, weight: np.float32, running: Offset, upper: Offset
) -> None:
    """Compute each column's highest value, its class, and the sum of powers of 2."""
    for x in range(COLUMNS):
        scratch[running + BEST + x] = LOWEST
        scratch[running + TOTAL + x] = 0
    for k in range(_0, classes, _4):
        at, difference = k * ONE_GRID + upper, k * ONE_GRID + DIFFERENCE
        k0, k1, k2, k3 = np.float32(k), np.float32(k + _1), np.float32(k + _2), np.float32(k + _3)
        for x in range(COLUMNS):
            best = scratch[running + BEST + x]
            label = scratch[running + LABEL + x]
            total = scratch[running + TOTAL + x]
            v0 = scratch[at + x] + weight * scratch[difference + x]
            v1 = scratch[at + ONE_GRID + x] + weight * scratch[difference + ONE_GRID + x]
            v2 = scratch[at + _2 * ONE_GRID + x] + weight * scratch[difference + _2 * ONE_GRID + x]
            v3 = scratch[at + _3 * ONE_GRID + x] + weight * scratch[difference + _3 * ONE_GRID + x]
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
    """Compute each column's class from one grid, its value and the sum of powers from the other."""
    for x in range(COLUMNS):
        scratch[running + BEST + x] = LOWEST
        scratch[running + TOTAL + x] = 0
    for k in range(_0, classes, _2):
        at, difference = k * TWO_GRIDS + upper, k * TWO_GRIDS + DIFFERENCE
        k0, k1 = np.float32(k), np.float32(k + _1)
        for x in range(COLUMNS):
            best = scratch[running + BEST + x]
            label = scratch[running + LABEL + x]
            total = scratch[running + TOTAL + x]
            chosen = scratch[running + CHOSEN + x]
            v0 = scratch[at + x] + weight * scratch[difference + x]
            v1 = scratch[at + TWO_GRIDS + x] + weight * scratch[difference + TWO_GRIDS + x]
            c0 = scratch[at + ONE_GRID + x] + weight * scratch[difference + ONE_GRID + x]
            c1 = (
                scratch[at + TWO_GRIDS + ONE_GRID + x]
                + weight * scratch[difference + TWO_GRIDS + ONE_GRID + x]
            )
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
def _write_confidence(
    scratch: Floats,
    classes: Offset,
    class_size: Offset,
    weight: np.float32,
    running: Offset,
    grid: Offset,
    upper: Offset,
    chosen: Offset,
) -> None:
    """Replace each column's sum of powers by the fraction of the chosen class."""
    total, value = running + TOTAL, running + chosen
    lowest = np.float32(1)
    for x in range(COLUMNS):
        lowest = min(lowest, scratch[total + x])
    if lowest < UNDERFLOW:
        _sum_relative_to_top(scratch, classes, class_size, weight, running, grid, upper)
        for x in range(COLUMNS):
            scratch[value + x] -= scratch[running + TOP + x]
    for x in range(COLUMNS):
        # Rounding may make the quotient one unit in the last place larger than 1.
        scratch[total + x] = min(power_of_two(scratch[value + x]) / scratch[total + x], _ONE)


@compiled
def _sum_relative_to_top(
    scratch: Floats,
    classes: Offset,
    class_size: Offset,
    weight: np.float32,
    running: Offset,
    grid: Offset,
    upper: Offset,
) -> None:
    """Compute each column's highest value, then the sum of powers relative to it."""
    highest, total = running + TOP, running + TOTAL
    for x in range(COLUMNS):
        scratch[highest + x] = LOWEST
        scratch[total + x] = 0
    for k in range(classes):
        at, difference = k * class_size + grid + upper, k * class_size + grid + DIFFERENCE
        for x in range(COLUMNS):
            value = scratch[at + x] + weight * scratch[difference + x]
            scratch[highest + x] = max(scratch[highest + x], value)
    for k in range(classes):
        at, difference = k * class_size + grid + upper, k * class_size + grid + DIFFERENCE
        for x in range(COLUMNS):
            value = scratch[at + x] + weight * scratch[difference + x]
            scratch[total + x] += power_of_two(value - scratch[highest + x])


@compiled
def _store(
    scratch: Floats, running: Offset, first: int, phases: int, mask: Mask, confidence: Floats
) -> None:
    """Copy a tile's labels and confidence to the output row, in the order of columns."""
    stride = max(phases, 1)
    cells = TILE // stride
    for phase in range(stride):
        begin = first + phase
        skipped = 1 if begin < 0 else 0
        begin += skipped * stride
        lane = np.uint64(phase * cells + skipped)
        labels, probabilities = mask[begin::stride], confidence[begin::stride]
        for j in range(min(np.uint64(len(labels)), np.uint64(cells - skipped))):
            labels[j] = np.int32(scratch[running + LABEL + lane + j])
            probabilities[j] = scratch[running + TOTAL + lane + j]
