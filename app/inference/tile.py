"""A tile of the emission kernel: 256 columns of one output row, and the scratch they stand in.

For all classes, two neighbouring rows of the grid are expanded to the tile's columns: the upper
one, the lower one, and what the lower one is more. Behind the classes stand the columns' running
values, from which the answer is taken in the end.

The scratch is one flat array with unsigned offsets: so LLVM sees that its parts do not overlap
and vectorises the loops over columns. Values are in units of log2, relative to the highest of
their cell. `kernels` is what sweeps over it; numba keeps its machine code by that file, so touch
it after a change here.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.compilation import compiled

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Confidence = NDArray[np.float32]
Taps = tuple[Indices, Indices, Floats]  # of one axis: two cells and the second one's weight
Offset: TypeAlias = Any  # uint64 to numba; for numpy's stubs it mixes with no other integer
Mask = NDArray[np.uint8] | NDArray[np.uint16]

TILE = 256
GROUP = 4  # classes a step: their running maximum and sum are read and written once

COLUMNS: Offset
COLUMNS, _0, _1, _4 = (np.uint64(n) for n in (TILE, 0, 1, GROUP))
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
