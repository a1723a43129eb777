"""Contextual scaling's networks on the CPU, fused: what `context_selectors` says, at serving time.

The networks are asked in a third sweep over rows of the grid, behind the two of `context_sweeps`:
it takes neighbourhoods down the columns, and has its columns innermost as well. Of fine grids they
are given some rows and columns. `Selectors` in torch is the definition, and tests hold this to it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from app.calibration.base import FEATURE_FLOOR, MapRows
from app.calibration.methods.contextual.features import RADII
from app.calibration.methods.contextual.sweeps import (
    LANES,
    Classes,
    Floats,
    Planes,
    accumulate,
    allocate_planes,
    pixel_sweep,
    row_sweep,
    total_of,
)
from app.numerics import compiled

BLOCK = 128  # columns at a time: the hidden units of all of them stay in the nearest cache
SPAN = 5 * BLOCK  # columns of several rows, which make whole blocks where a row would not
_CLIP = np.float32(4)
_ZERO, _ONE = np.float32(0), np.float32(1)


class Weights(NamedTuple):
    """The networks' state as float32 arrays, as `context_selectors.Selectors` names it."""

    mean: Floats
    scale: Floats
    inward: Floats  # [F, members x width]
    first: Floats  # [K, members x width]
    second: Floats
    between: Floats  # [members, width, width]
    bias: Floats
    outward: Floats
    offset: Floats


class Network(NamedTuple):
    """Networks' state, and log-probabilities of the classes in each row, float32 [h,K].

    The latter are [0,K] for networks that don't look at them.
    """

    weights: Weights
    places: Floats


def network_shifts(
    logits: Floats, gain: float, networks: Sequence[Network], local: float, map_rows: MapRows
) -> tuple[Floats, Floats]:
    """Give how each of S networks would change the log-odds of the cells that are looked at.

    Logits float32 [K,h,w], which `gain` above 0 multiplies, to float32 [S,h,w]; and the sums over
    each row of the features that the last one sees, float32 [h,F].
    """
    classes, height, width = logits.shape
    planes = allocate_planes(classes, height, width)
    change = np.empty((len(networks), height, width), np.float32)
    sums = np.empty((height, len(networks[-1].weights.mean)), np.float32)
    rows = range(height)
    seen = logits, np.float32(gain), np.float32(FEATURE_FLOOR), planes
    map_rows(lambda a, b: pixel_sweep(*seen, a, b), rows, 6 * classes * width)
    map_rows(lambda a, b: row_sweep(planes, RADII, a, b), rows, 30 * width)
    sweep: Callable[..., None] = network_sweep
    for network, changed in zip(networks, change, strict=True):
        state = RADII, *network, np.float32(local), changed, sums
        work = functools.partial(sweep, *seen, *state)
        map_rows(work, rows, network.weights.between.size * width)
    return change, sums


# Loops run over rows taken out of their arrays first: only those are known to lie in one piece,
# without which nothing is vectorised.


@compiled
def network_sweep(
    logits: Floats,
    gain: np.float32,
    floor: np.float32,
    planes: Planes,
    radii: tuple[int, int],
    weights: Weights,
    places: Floats,
    local: np.float32,
    change: Floats,
    sums: Floats,
    start: int,
    stop: int,
) -> None:
    """Sweep 3: rows of the change [h,w] in log-odds that the networks want; sums of features."""
    classes, width = logits.shape[0], logits.shape[2]
    kept, units = planes.top.shape[0], weights.inward.shape[1]
    placed = 2 if len(places) else 0
    tall = max(SPAN // width, 1)
    seen = np.zeros((classes + kept + 5 + placed, -(-tall * width // BLOCK) * BLOCK), np.float32)
    hidden, deeper = np.zeros((units, BLOCK), np.float32), np.empty((2, BLOCK), np.float32)
    detector, lanes = np.empty(BLOCK, np.float32), np.empty(LANES, np.float32)
    map_rows = _ONE / np.float32(len(weights.offset))
    constant = np.float32(0)
    for member in range(len(weights.offset)):
        constant += weights.offset[member]
    for top in range(start, stop, tall):
        bottom = min(top + tall, stop)
        for y in range(top, bottom):
            begin, end = (y - top) * width, (y - top + 1) * width
            _gather(logits, gain, floor, planes, y, seen, begin)
            _look_down(planes.along, radii, local, y, seen[classes + kept + 1 :], begin)
            if placed:
                place = seen[classes + kept + 5 :]
                _place(places[y], planes.first[y], planes.second[y], place, begin)
            for f in range(len(seen)):
                feature, mean, scale = seen[f, begin:end], weights.mean[f], weights.scale[f]
                sums[y, f] = total_of(feature, lanes)
                for x in range(width):
                    feature[x] = min(max((feature[x] - mean) * scale, -_CLIP), _CLIP)
        first, second = planes.first[top:bottom].ravel(), planes.second[top:bottom].ravel()
        moved = change[top:bottom].reshape(-1)
        for left in range(0, len(moved), BLOCK):
            right = min(left + BLOCK, len(moved))
            _enter(weights, first[left:right], second[left:right], seen, hidden, left)
            _leave(weights, hidden, deeper, detector)
            for x in range(right - left):
                moved[left + x] = map_rows * (detector[x] + constant)


@compiled
def _gather(
    logits: Floats,
    gain: np.float32,
    floor: np.float32,
    planes: Planes,
    y: int,
    seen: Floats,
    begin: int,
) -> None:
    """Write a row's features but for the neighbourhood, in the order of `context_of`.

    They begin at a column of `seen`, as all of a row's do.
    """
    classes, kept, width = logits.shape[0], planes.top.shape[0], logits.shape[2]
    end = begin + width
    partition, leader = planes.partition[y], planes.top[0, y]
    for k in range(classes):
        row, feature = logits[k, y], seen[k, begin:end]
        for x in range(width):
            feature[x] = max(gain * row[x] - partition[x], floor)
    seen[classes, begin:end] = planes.odds[y]
    for place in range(1, kept):
        row, feature = planes.top[place, y], seen[classes + place, begin:end]
        for x in range(width):
            feature[x] = row[x] - leader[x]
    seen[classes + kept, begin:end] = planes.entropy[y]


@compiled
def _place(place: Floats, first: Classes, second: Classes, likely: Floats, begin: int) -> None:
    """Write the position log-likelihood of the two leading classes of a row."""
    end = begin + len(first)
    own, above = likely[0, begin:end], likely[1, begin:end]
    for x in range(len(first)):
        own[x] = place[first[x]]
        above[x] = own[x] - place[second[x]]


@compiled
def _look_down(
    along: Floats, radii: tuple[int, int], local: np.float32, y: int, around: Floats, begin: int
) -> None:
    """Means [4,w] over squares around a row, from sums along rows; the border is repeated."""
    last = along.shape[1] - 1
    for place in range(4):
        radius, mean = radii[place // 2], around[place, begin : begin + along.shape[2]]
        mean[:] = 0
        for below in range(y - radius, y + radius + 1):
            source = along[place, min(max(below, 0), last)]
            for x in range(len(mean)):
                mean[x] += source[x]
        map_rows = local / np.float32((2 * radius + 1) ** 2)
        for x in range(len(mean)):
            mean[x] *= map_rows


@compiled
def _enter(
    weights: Weights, first: Classes, second: Classes, seen: Floats, hidden: Floats, left: int
) -> None:
    """Take a block into the hidden units [U,BLOCK], which start at what the classes give."""
    for j in range(len(hidden)):
        unit, of_first, of_second = hidden[j], weights.first[:, j], weights.second[:, j]
        for x in range(len(first)):
            unit[x] = of_first[first[x]] + of_second[second[x]]
    for j in range(0, len(hidden), 2):
        accumulate(weights.inward[:, j : j + 2], seen, 0, left, hidden[j : j + 2])
        for unit in hidden[j : j + 2]:
            for x in range(BLOCK):
                unit[x] = max(unit[x], _ZERO)


@compiled
def _leave(weights: Weights, hidden: Floats, deeper: Floats, detector: Floats) -> None:
    """Take all members through their second layer: the sum of their opinions, [BLOCK]."""
    members, width = weights.bias.shape
    detector[:] = 0
    for member in range(members):
        for j in range(0, width, 2):
            one, other = deeper[0], deeper[1]
            one[:] = weights.bias[member, j]
            other[:] = weights.bias[member, j + 1]
            accumulate(weights.between[member, :, j : j + 2], hidden, member * width, 0, deeper)
            of_one, of_other = weights.outward[member, j], weights.outward[member, j + 1]
            for x in range(BLOCK):
                detector[x] += of_one * max(one[x], _ZERO) + of_other * max(other[x], _ZERO)
