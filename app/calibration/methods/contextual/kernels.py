"""The detector on the CPU in three sweeps over rows of the grid, at serving time.

`compute_features` and `Detector` in torch are the definition; tests hold the kernels to it within
1e-4 of log-odds. Loops run over rows taken out of their arrays first: only those are contiguous.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.calibration.base import MAX_LOG_ODDS
from app.calibration.methods.contextual.features import RADIUS
from app.numerics import LOG2_E, compiled, compiled_sums, logarithm, power_of_two

Floats = NDArray[np.float32]
Classes = NDArray[np.int32]

_ZERO, _ONE, _LOWEST = np.float32(0), np.float32(1), np.float32(-3e38)
_CELL = np.float32(1 / (2 * RADIUS + 1) ** 2)  # of a window
_MAX_LOG_ODDS, _LOG2_E = np.float32(MAX_LOG_ODDS), np.float32(LOG2_E)
_DEEPEST, _SMALLEST = np.float32(-80), np.float32(1e-30)  # e^-80 is nothing beside 1


class Weights(NamedTuple):
    """The detector's state as float32 arrays, named as in `Detector`."""

    mean: Floats  # [3]
    scale: Floats
    inward: Floats  # [3,U]
    first: Floats  # [K,U]
    second: Floats
    outward: Floats  # [U]
    offset: Floats  # [1]


class Planes(NamedTuple):
    """Results of the first two sweeps on the grid [h,w]."""

    odds: Floats
    entropy: Floats
    first: Classes
    second: Classes
    along: Floats  # [2,h,w], sums of entropy and label changes over windows of the row


@compiled
def compute_shift(logits: Floats, beta: np.float32, weights: Weights) -> tuple[Floats, Floats]:
    """Compute the detector's shift of the log-odds and the sums of the image statistics.

    Logits float32 [K,h,w], which `beta` above 0 multiplies. Returns float32 [h,w], and sums over
    each row of entropy, log-odds and predicted classes, float32 [h,2+K].
    """
    classes, height, width = logits.shape
    size = height, width
    planes = Planes(
        np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.int32),
        np.empty(size, np.int32), np.empty((2, *size), np.float32),
    )  # fmt: skip
    shift, sums = np.empty(size, np.float32), np.zeros((height, 2 + classes), np.float32)
    _sweep_pixels(logits, beta, planes)
    _sweep_rows(planes)
    _sweep_network(planes, weights, shift, sums)
    return shift, sums


@compiled
def _sweep_pixels(logits: Floats, gain: np.float32, planes: Planes) -> None:
    """Compute log-odds, entropy and the two leading classes; the lower leads on ties."""
    classes, height, width = logits.shape
    leader, next_ = np.empty(width, np.float32), np.empty(width, np.float32)
    mean, others = np.empty(width, np.float32), np.empty(width, np.float32)
    for y in range(height):
        first, second = planes.first[y], planes.second[y]
        odds, entropy = planes.odds[y], planes.entropy[y]
        leader[:], next_[:] = _LOWEST, _LOWEST
        others[:], mean[:] = _ZERO, _ZERO
        for k in range(classes):
            row = logits[k, y]
            for x in range(width):
                leads, follows = row[x] > leader[x], row[x] > next_[x]
                second[x] = first[x] if leads else k if follows else second[x]
                first[x] = k if leads else first[x]
                next_[x] = max(next_[x], min(leader[x], row[x]))
                leader[x] = max(leader[x], row[x])
        for k in range(classes):
            row = logits[k, y]
            for x in range(width):
                below = max((row[x] - leader[x]) * gain, _DEEPEST)
                power = power_of_two(below * _LOG2_E)
                others[x] += power if first[x] != k else _ZERO
                mean[x] += power * below
        for x in range(width):
            total = _ONE + others[x]
            entropy[x] = logarithm(total) - mean[x] / total
            # p / (1 - p) of the leader's p = 1 / (1 + others)
            odds[x] = min(max(-logarithm(max(others[x], _SMALLEST)), -_MAX_LOG_ODDS), _MAX_LOG_ODDS)


@compiled
def _sweep_rows(planes: Planes) -> None:
    """Sum entropy and label changes over windows along each row."""
    height, width = planes.first.shape
    changes = np.empty(width, np.float32)
    for y in range(height):
        own = planes.first[y]
        above, below = planes.first[max(y - 1, 0)], planes.first[min(y + 1, height - 1)]
        for x in range(width):
            before, after = own[max(x - 1, 0)], own[min(x + 1, width - 1)]
            count = int(own[x] != before) + int(own[x] != after)
            changes[x] = count + int(own[x] != above[x]) + int(own[x] != below[x])
        _window_sums(planes.entropy[y], planes.along[0, y])
        _window_sums(changes, planes.along[1, y])


@compiled
def _window_sums(values: Floats, sums: Floats) -> None:
    """Sum over windows of 15 values, the edge repeated."""
    last = len(values) - 1
    running = 0.0
    for x in range(-RADIUS, RADIUS + 1):
        running += values[min(max(x, 0), last)]
    for x in range(last + 1):
        sums[x] = running
        running += values[min(x + RADIUS + 1, last)] - values[max(x - RADIUS, 0)]


@compiled
def _sweep_network(planes: Planes, weights: Weights, shift: Floats, sums: Floats) -> None:
    """Compute the detector's output and each row's sums of the statistics."""
    height, width = shift.shape
    seen = np.empty((3, width), np.float32)
    for y in range(height):
        first = planes.first[y]
        seen[0] = planes.odds[y]
        _window_mean(planes.along[0], y, seen[1])
        _window_mean(planes.along[1], y, seen[2])
        for x in range(width):
            sums[y, 0] += planes.entropy[y, x]
            sums[y, 1] += seen[0, x]
            sums[y, 2 + first[x]] += _ONE
        for f in range(3):
            row, mean, scale = seen[f], weights.mean[f], weights.scale[f]
            for x in range(width):
                row[x] = (row[x] - mean) * scale
        _network(seen, first, planes.second[y], weights, shift[y])


@compiled_sums
def _network(
    seen: Floats, first: Classes, second: Classes, weights: Weights, shift: Floats
) -> None:
    """Compute the detector's output for a row of standardised features [3,w]."""
    by_odds, by_entropy, by_changes = weights.inward[0], weights.inward[1], weights.inward[2]
    for x in range(len(shift)):
        of_first, of_second = weights.first[first[x]], weights.second[second[x]]
        odds, entropy, changes = seen[0, x], seen[1, x], seen[2, x]
        total = weights.offset[0]
        for j in range(len(weights.outward)):
            unit = of_first[j] + of_second[j] + odds * by_odds[j] + entropy * by_entropy[j]
            total += weights.outward[j] * max(unit + changes * by_changes[j], _ZERO)
        shift[x] = total


@compiled
def _window_mean(along: Floats, y: int, mean: Floats) -> None:
    """Average over square windows around a row, from the sums along rows; the edge is repeated."""
    last, width = len(along) - 1, along.shape[1]
    mean[:] = _ZERO
    for below in range(y - RADIUS, y + RADIUS + 1):
        source = along[min(max(below, 0), last)]
        for x in range(width):
            mean[x] += source[x]
    for x in range(width):
        mean[x] *= _CELL
