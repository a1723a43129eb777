"""A tile of the emission kernel: 256 columns of one output row, and the scratch they stand in.

For all classes, two neighbouring rows of the grid are expanded to the tile's columns: the upper
one, the lower one, and what the lower one is more. Behind the classes stand the columns' running
values, from which the answer is taken in the end.

The scratch is one flat array with unsigned offsets: so LLVM sees that its parts do not overlap
and vectorises the loops over columns. Values are in units of log2, relative to the highest of
their cell. `kernels` is what sweeps over it; numba keeps its machine code by that file, so touch
it after a change here.

The emission kernel for the CPU: one sweep over the classes for each tile of pixels.

For two neighbouring rows of the grid, all classes are expanded to a tile's columns once (`tile`);
the output rows between them then cost one multiply-add, one comparison and one exponential a class
and pixel, all on columns that stay in the cache.

Everything is in units of log2, relative to the larger of the values that the two cells of highest
logits would give, interpolated: no exponential can then overflow, and no maximum has to be known
before the sweep. Where that bound is far above the truth the tile is swept once more.

A change in the log-odds of confidence, given at cells and taken to the image.

The network's own confidence is sharp at borders, where its classes cross; what a calibrator says
about a place is smooth. So the latter is interpolated, rather than the calibrated classes.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.calibration.predictions import Mask
from app.numerics import LOG2_E, compiled, power_of_two

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Taps = tuple[Indices, Indices, Floats]  # of one axis: two cells and the second one's weight
Offset: TypeAlias = Any  # uint64 to numba; for numpy's stubs it mixes with no other integer

TILE = 256
GROUP = 4  # classes a step: their running maximum and sum are read and written once

COLUMNS: Offset
COLUMNS, _0, _1, _2, _3, _4 = (np.uint64(n) for n in (TILE, 0, 1, 2, 3, GROUP))
# Floats a class, of one grid and of two: upper, lower, and their difference.
ONE, TWO = np.uint64(3 * TILE), np.uint64(6 * TILE)
GAP = np.uint64(2 * TILE)
# Running values of a tile's columns, behind the classes.
BEST, LABEL, TOTAL, CHOSEN, TOP, RUNNING = (np.uint64(n * TILE) for n in range(6))
NONE = np.float32(-3e38)
_FLOOR = np.float32(-1e30)  # keeps differences finite whatever the logits


@compiled
def make_scratch(classes: Offset, padded: Offset, row: Offset) -> Floats:
    """Make the scratch; classes that only fill up the last group are never first, of power 0."""
    scratch = np.empty(padded * row + RUNNING, np.float32)
    for x in range(len(scratch)):
        scratch[x] = 0
    for k in range(classes, padded):
        for half in range(_0, row, ONE):
            for x in range(GAP):
                scratch[k * row + half + x] = _FLOOR
    return scratch


@compiled
def widest(columns: Taps) -> int:
    """Count the cells that the widest tile reaches."""
    most = 0
    for first in range(0, len(columns[0]), TILE):
        last = min(first + TILE, len(columns[0])) - 1
        most = max(most, columns[1][last] - columns[0][first] + 1)
    return most


@compiled
def expand(
    both: tuple[Floats, Floats],
    two: bool,
    y: int,
    gain: np.float32,
    columns: Taps,
    tile: tuple[int, int, int],
    low: Floats,
    scratch: Floats,
    slot: Offset,
) -> None:
    """Interpolate one row of the grid at a tile's columns, for all classes and both halves."""
    _expand_one(both[0], y, gain, columns, tile, low, scratch, TWO if two else ONE, _0, slot)
    if two:
        _expand_one(both[1], y, gain, columns, tile, low, scratch, TWO, ONE, slot)


@compiled
def _expand_one(
    logits: Floats,
    y: int,
    gain: np.float32,
    columns: Taps,
    tile: tuple[int, int, int],
    low: Floats,
    scratch: Floats,
    row: Offset,
    half: Offset,
    slot: Offset,
) -> None:
    """Interpolate one row of the grid, less the highest logit of each cell."""
    cell, width = tile[0], logits.shape[2]
    begin, end = max(cell, 0), min(cell + low.shape[1], width)
    highest = low[0, begin - cell : end - cell]
    inside = low[1, begin - cell : end - cell]
    for j in range(len(highest)):
        highest[j] = NONE
    for k in range(logits.shape[0]):
        source = logits[k, y, begin:end]
        for j in range(len(highest)):
            highest[j] = max(highest[j], source[j])
    for k in range(logits.shape[0]):
        source = logits[k, y, begin:end]
        for j in range(len(inside)):
            inside[j] = max((source[j] - highest[j]) * gain, _FLOOR)
        for j in range(begin - cell):
            low[1, j] = inside[0]
        for j in range(end - cell, low.shape[1]):
            low[1, j] = inside[-1]
        _spread(low[1], columns, tile, scratch, np.uint64(k) * row + half, slot)


@compiled
def _spread(
    values: Floats,
    columns: Taps,
    tile: tuple[int, int, int],
    scratch: Floats,
    at: Offset,
    slot: Offset,
) -> None:
    """Interpolate one class between its cells, and keep what it is more than the other slot.

    That is of use where this is the lower row, which is always the last to be interpolated. With
    phases, columns of equal weight lie side by side in the scratch, so that cells are read in
    order.
    """
    cell, first, phases = tile
    if phases:
        cells = np.uint64(len(values) - 1)
        for phase in range(phases):
            weight = np.float32((phases // 2 + phase + 0.5) / phases - 0.5)
            lane = at + np.uint64(phase) * cells
            for j in range(cells):
                value = values[j] + weight * (values[j + _1] - values[j])
                scratch[lane + GAP + j] = value - scratch[lane + (COLUMNS - slot) + j]
                scratch[lane + slot + j] = value
        return
    left, right, across = columns
    last = len(left) - 1
    for x in range(COLUMNS):
        column: Any = min(first + np.int64(x), last)
        value = values[left[column] - cell]
        value += across[column] * (values[right[column] - cell] - value)
        scratch[at + GAP + x] = value - scratch[at + (COLUMNS - slot) + x]
        scratch[at + slot + x] = value


@compiled
def store(
    scratch: Floats, running: Offset, first: int, phases: int, mask: Mask, confidence: Floats
) -> None:
    """Bring a tile's labels and confidence into the order of columns."""
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


_UNDERFLOW, _CERTAIN = np.float32(2.0**-64), np.float32(1)


@compiled
def postprocess_kernel(
    label_logits: Floats,
    confidence_logits: Floats,
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

    `label_logits` and `confidence_logits` are contiguous logits [K,h,w]; `two` says whether they
    differ. `gain` multiplies them before a softmax in powers of two. `phases` is the whole number
    of columns a cell where the columns lie evenly on the grid, 0 where they do not.
    """
    top, bottom, down = rows
    both = (label_logits, confidence_logits)
    classes = np.uint64(label_logits.shape[0])
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
        # Rounding may carry the quotient one unit in the last place above 1.
        scratch[total + x] = min(power_of_two(scratch[value + x]) / scratch[total + x], _CERTAIN)


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


_LOG2_E, _ONE, _DEEPEST = np.float32(LOG2_E), np.float32(1), np.float32(-64)


@compiled
def shift_rows(
    confidence: Floats, shift: Floats, rows: Taps, columns: Taps, start: int, stop: int
) -> None:
    """Move rows [start, stop) of `confidence` [H,W] by `shift` [n,m], bilinearly interpolated."""
    top, bottom, down = rows
    left, right, across = columns
    odds, blended = np.empty(confidence.shape[1], np.float32), np.empty(shift.shape[1], np.float32)
    for y in range(start, stop):
        upper, lower, weight = shift[top[y]], shift[bottom[y]], down[y]
        for j in range(len(blended)):
            blended[j] = (upper[j] + weight * (lower[j] - upper[j])) * _LOG2_E
        for x in range(len(odds)):
            first = blended[left[x]]
            odds[x] = first + across[x] * (blended[right[x]] - first)
        certain = confidence[y]
        for x in range(len(odds)):
            # A negative exponent can't overflow; the bound keeps what is certain from 0/0.
            power = power_of_two(max(-abs(odds[x]), _DEEPEST))
            rises = odds[x] > 0
            against = (_ONE - certain[x]) * (power if rises else _ONE)
            in_favour = certain[x] * (_ONE if rises else power)
            certain[x] = in_favour / (against + in_favour)
