"""What becomes of opinions once all of an image is known: how far each is followed.

The serving half of `detector.Detector` and `Contextual.moved`, which are the definition, in one
compiled pass.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.numerics import compiled

Floats = NDArray[np.float32]

_ZERO = np.float32(0)


class DetectorParameters(NamedTuple):
    """How far an opinion is trusted, and with what images, as `detector.Detector` holds it."""

    detector_weight: Floats  # []
    mean: Floats  # [F]
    std: Floats
    threshold: Floats  # []


@compiled
def combine_shifts(
    change: Floats,
    sums: Floats,
    first: DetectorParameters,
    robust_detector: DetectorParameters,
    image_in_distribution: np.float32,
    max_ood_reduction: np.float32,
) -> Floats:
    """What opinions move the log-odds by, [n,m], as far as they are trusted.

    `change` [S,n,m] and `sums` [n,F] are those of a whole image. `Contextual.moved` is the
    definition.
    """
    _, height, width = change.shape
    moved = np.empty((height, width), np.float32)
    in_distribution = _in_distribution_score(sums, width, first)
    known = _in_distribution_score(sums, width, robust_detector) if len(change) > 1 else _ZERO
    detector_weight, further = first.detector_weight[()], robust_detector.detector_weight[()]
    for y in range(height):
        row = moved[y]
        for x in range(width):
            own = detector_weight * change[0, y, x]
            elsewhere = min(max(own, -max_ood_reduction), _ZERO)
            if len(change) > 1:
                said = further * change[1, y, x]
                lower = min(said, _ZERO)
                corrupted = lower + known * (said - lower)
                elsewhere = corrupted + image_in_distribution * (elsewhere - corrupted)
            row[x] = elsewhere + in_distribution * (own - elsewhere)
    return moved


@compiled
def _in_distribution_score(
    sums: Floats, width: int, detector_parameters: DetectorParameters
) -> np.float32:
    """Compute the in-distribution score, 0..1, as `Detector.in_distribution_score` does."""
    count = len(detector_parameters.mean)
    distance = 0.0
    for f in range(count):
        mean = 0.0
        for y in range(len(sums)):
            mean += sums[y, f]
        away = (mean / (len(sums) * width) - detector_parameters.mean[f]) / detector_parameters.std[
            f
        ]
        distance += away * away
    distance = (distance / count) ** 0.5
    return np.float32(min(max(3 - 2 * distance / detector_parameters.threshold[()], 0.0), 1.0))
