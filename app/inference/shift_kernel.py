"""numba kernel for the CPU: shift the log-odds of confidence.

The shift is interpolated separately from the logits: the network's own confidence changes sharply
at class boundaries, while the shift is smooth.
"""

import numpy as np

from app.calibration.base import MAX_LOG_ODDS
from app.inference.kernels import Floats, Taps
from app.numerics import LOG2_E, compiled, power_of_two

MIN_EXPONENT = np.float32(-64)  # keeps a confidence of 1 from 0/0
MAX_CONFIDENCE = np.float32(1 / (1 + np.exp(-MAX_LOG_ODDS)))  # before a shift, as in its training
_LOG2_E, _ONE = np.float32(LOG2_E), np.float32(1)


@compiled
def shift_rows(
    confidence: Floats,
    shift: Floats,
    floor: np.float32,
    rows: Taps,
    columns: Taps,
    start: int,
    stop: int,
) -> None:
    """Add `shift` [n,m], interpolated, to the log-odds of `confidence` in rows [start, stop).

    Where the shift is not 0, log-odds above 12 count as 12, since a float32 confidence of 1 has
    none. No confidence falls below `floor`.
    """
    top, bottom, down = rows
    left, right, across = columns
    first = top[start]
    wide = np.empty((bottom[stop - 1] - first + 1, confidence.shape[1]), np.float32)
    for i in range(len(wide)):
        source, target = shift[first + i], wide[i]
        for x in range(len(target)):
            value = source[left[x]]
            target[x] = (value + across[x] * (source[right[x]] - value)) * _LOG2_E
    for y in range(start, stop):
        upper, lower, weight = wide[top[y] - first], wide[bottom[y] - first], down[y]
        probability = confidence[y]
        for x in range(len(probability)):
            log_odds = upper[x] + weight * (lower[x] - upper[x])
            # A negative exponent cannot overflow.
            power = power_of_two(max(-abs(log_odds), MIN_EXPONENT))
            positive = log_odds > 0
            own = min(probability[x], _ONE if log_odds == 0 else MAX_CONFIDENCE)
            against = (_ONE - own) * (power if positive else _ONE)
            in_favour = own * (_ONE if positive else power)
            probability[x] = max(in_favour / (against + in_favour), floor)
