"""A change in the log-odds of confidence, given at cells and taken to the picture.

The network's own confidence is sharp at borders, where its classes cross; what a calibrator says
about a place is smooth. So the latter is interpolated, rather than the calibrated classes.
"""

import numpy as np

from app.arithmetic import LOG2_E, power_of_two
from app.compilation import compiled
from app.inference.tile import Floats, Taps

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
