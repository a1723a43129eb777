"""A change in the log-odds of confidence, given on the backbone's grid and taken to the picture.

The network's own confidence is sharp at borders, where its classes cross; what a calibrator says
about a place is smooth. So the latter is interpolated, rather than the calibrated classes.
"""

import numpy as np

from app.compilation import compiled
from app.inference.kernels import Floats, Taps


@compiled
def shift_rows(
    confidence: Floats, shift: Floats, rows: Taps, columns: Taps, start: int, stop: int
) -> None:
    """Move rows [start, stop) of `confidence` [H,W] by `shift` [h,w], bilinearly interpolated."""
    top, bottom, down = rows
    left, right, across = columns
    for y in range(start, stop):
        upper, lower, weight = shift[top[y]], shift[bottom[y]], down[y]
        for x in range(confidence.shape[1]):
            first = upper[left[x]] + weight * (lower[left[x]] - upper[left[x]])
            second = upper[right[x]] + weight * (lower[right[x]] - upper[right[x]])
            odds = np.exp(first + across[x] * (second - first))
            certain = confidence[y, x]
            raised = certain * odds
            confidence[y, x] = min(raised / (np.float32(1) - certain + raised), np.float32(1))
