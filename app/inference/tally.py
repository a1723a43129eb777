"""How many pixels each class got, and how sure it was of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.compilation import compiled
from app.inference.tile import Confidence, Mask


@dataclass(frozen=True)
class Tally:
    """Pixels int64 [V] and sums of confidence float64 [V] by value of the mask.

    V is 256 or 65536; the last value is that of abstained pixels.
    """

    pixels: NDArray[np.int64]
    confidence: NDArray[np.float64]

    @property
    def mean_confidence(self) -> float:
        """Mean over all pixels, in 0..1."""
        return float(self.confidence.sum() / self.pixels.sum())

    @property
    def abstained_fraction(self) -> float:
        """Share of pixels without a label, in 0..1."""
        return float(self.pixels[-1] / self.pixels.sum())


def tally(mask: Mask, confidence: Confidence) -> Tally:
    """Count a mask [H,W] and add up its confidence [H,W]."""
    values = np.iinfo(mask.dtype).max + 1
    pixels, sums = np.zeros(values, np.int64), np.zeros(values, np.float64)
    _add_up(mask.ravel(), confidence.ravel(), pixels, sums)
    return Tally(pixels, sums)


@compiled
def _add_up(
    labels: Mask,
    confidence: Confidence,
    pixels: NDArray[np.int64],
    sums: NDArray[np.float64],
) -> None:
    # Neighbours mostly share a label, so a run is summed before it is stored.
    start, total = 0, 0.0
    for place in range(len(labels)):
        if labels[place] != labels[start]:
            pixels[labels[start]] += place - start
            sums[labels[start]] += total
            start, total = place, 0.0
        total += confidence[place]
    if len(labels):
        pixels[labels[start]] += len(labels) - start
        sums[labels[start]] += total
