"""The detector on the CPU in three sweeps over rows of the grid, at serving time.

`features.compute_features` and `detector.Detector` in torch are the definition; tests hold the
kernels to it within 1e-4 of log-odds. Loops run over rows taken out of their arrays first: only
those are known to be contiguous, without which nothing is vectorised.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.calibration.base import FEATURE_FLOOR, MAX_LOG_ODDS, MapRows
from app.calibration.methods.contextual.features import NUM_FEATURES, RADII, TOP
from app.numerics import LOG2_E, compiled, logarithm, power_of_two

Floats = NDArray[np.float32]
Classes = NDArray[np.int32]

_ZERO, _ONE, _NONE = np.float32(0), np.float32(1), np.float32(-3e38)
_MAX_LOG_ODDS, _FLOOR = np.float32(MAX_LOG_ODDS), np.float32(FEATURE_FLOOR)
_DEEPEST = np.float32(-80)  # e to it is nothing beside 1
_SMALLEST = np.float32(1e-30)
_LOG2_E = np.float32(LOG2_E)


class Weights(NamedTuple):
    """The detector's state as float32 arrays, named as in `Detector`."""

    mean: Floats  # [F]
    scale: Floats
    inward: Floats  # [F,U]
    first: Floats  # [K,U]
    second: Floats
    outward: Floats  # [U]
    offset: Floats  # [1]


class Planes(NamedTuple):
    """Results of the first two sweeps on the grid [h,w]."""

    top: Floats  # [min(K,3),h,w], largest log-probabilities
    odds: Floats
    entropy: Floats
    first: Classes
    second: Classes
    along: Floats  # [4,h,w], sums of entropy and label changes over windows of the row


def compute_shift(
    logits: Floats, beta: float, local: float, weights: Weights, map_rows: MapRows
) -> tuple[Floats, Floats]:
    """Compute the detector's shift of the log-odds and the sums of the image statistics.

    Logits float32 [K,h,w], which `beta` above 0 multiplies; `local` is 1, or 0 to ignore the
    neighbourhood. Returns float32 [h,w], and sums over each row of entropy, log-odds and predicted
    classes, float32 [h,2+K].
    """
    classes, height, width = logits.shape
    size = height, width
    planes = Planes(
        np.empty((min(TOP, classes), *size), np.float32), np.empty(size, np.float32),
        np.empty(size, np.float32), np.zeros(size, np.int32), np.zeros(size, np.int32),
        np.empty((2 * len(RADII), *size), np.float32),
    )  # fmt: skip
    shift, sums = np.empty(size, np.float32), np.zeros((height, 2 + classes), np.float32)
    rows, gain = range(height), np.float32(beta)
    units = NUM_FEATURES * len(weights.outward)
    map_rows(lambda a, b: pixel_sweep(logits, gain, planes, a, b), rows, 6 * classes * width)
    map_rows(lambda a, b: row_sweep(planes, RADII, a, b), rows, 30 * width)
    map_rows(
        lambda a, b: network_sweep(planes, RADII, np.float32(local), weights, shift, sums, a, b),
        rows,
        units * width,
    )
    return shift, sums


@compiled
def pixel_sweep(logits: Floats, gain: np.float32, planes: Planes, start: int, stop: int) -> None:
    """Compute largest log-probabilities, log-odds, entropy and the two leading classes of rows."""
    classes, _, width = logits.shape
    mean, others = np.empty(width, np.float32), np.empty(width, np.float32)
    carried = np.empty(width, np.float32)
    for y in range(start, stop):
        leader, first = planes.top[0, y], planes.first[y]
        odds, entropy = planes.odds[y], planes.entropy[y]
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
            carried[x] = gain * leader[x] + log  # the partition function
            entropy[x] = log - mean[x] / total
            # p / (1 - p) of the leader's p = 1 / (1 + others)
            odds[x] = min(max(-logarithm(max(others[x], _SMALLEST)), -_MAX_LOG_ODDS), _MAX_LOG_ODDS)
        for place in range(planes.top.shape[0]):
            largest = planes.top[place, y]
            for x in range(width):
                largest[x] = max(gain * largest[x] - carried[x], _FLOOR)


@compiled
def _sort(logits: Floats, planes: Planes, carried: Floats, y: int) -> None:
    """Find a row's largest logits and two leading classes; the lower class leads on ties."""
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
    """Sum entropy and label changes over windows along each row."""
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
        for place in range(len(radii)):
            _window_sums(planes.entropy[y], radii[place], planes.along[2 * place, y])
            _window_sums(changes, radii[place], planes.along[2 * place + 1, y])


@compiled
def _window_sums(values: Floats, radius: int, sums: Floats) -> None:
    """Sum over windows of 2 radius + 1 values, the edge repeated."""
    last = len(values) - 1
    running = 0.0
    for x in range(-radius, radius + 1):
        running += values[min(max(x, 0), last)]
    for x in range(last + 1):
        sums[x] = running
        running += values[min(x + radius + 1, last)] - values[max(x - radius, 0)]


@compiled
def network_sweep(
    planes: Planes,
    radii: tuple[int, int],
    local: np.float32,
    weights: Weights,
    shift: Floats,
    sums: Floats,
    start: int,
    stop: int,
) -> None:
    """Compute the detector's output and the sums of the statistics for some rows."""
    width, features = shift.shape[1], weights.inward.shape[0]
    seen, unit = np.empty((features, width), np.float32), np.empty(width, np.float32)
    for y in range(start, stop):
        first, second, out = planes.first[y], planes.second[y], shift[y]
        _gather(planes, radii, local, y, seen, sums[y])
        for f in range(features):
            row, mean, scale = seen[f], weights.mean[f], weights.scale[f]
            for x in range(width):
                row[x] = (row[x] - mean) * scale
        out[:] = weights.offset[0]
        for j in range(weights.inward.shape[1]):
            of_first, of_second = weights.first[:, j], weights.second[:, j]
            for x in range(width):
                unit[x] = of_first[first[x]] + of_second[second[x]]
            for f in range(features):
                gain, row = weights.inward[f, j], seen[f]
                for x in range(width):
                    unit[x] += gain * row[x]
            outward = weights.outward[j]
            for x in range(width):
                out[x] += outward * max(unit[x], _ZERO)


@compiled
def _gather(
    planes: Planes, radii: tuple[int, int], local: np.float32, y: int, seen: Floats, sums: Floats
) -> None:
    """Write the features of a row, [F,w], in the order of `compute_features`; sum statistics."""
    tops, first = planes.top.shape[0], planes.first[y]
    for place in range(3):
        seen[place] = planes.top[min(place, tops - 1), y]
    seen[3], seen[4] = planes.odds[y], planes.entropy[y]
    for place in range(2 * len(radii)):
        _window_mean(planes.along[place], radii[place // 2], local, y, seen[5 + place])
    for x in range(len(first)):
        sums[0] += seen[4, x]
        sums[1] += seen[3, x]
        sums[2 + first[x]] += _ONE


@compiled
def _window_mean(along: Floats, radius: int, local: np.float32, y: int, mean: Floats) -> None:
    """Average over square windows around a row, from the sums along rows; the edge is repeated."""
    last = len(along) - 1
    mean[:] = 0
    for below in range(y - radius, y + radius + 1):
        source = along[min(max(below, 0), last)]
        for x in range(len(mean)):
            mean[x] += source[x]
    weight = local / np.float32((2 * radius + 1) ** 2)
    for x in range(len(mean)):
        mean[x] *= weight
