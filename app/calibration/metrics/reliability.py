"""Reliability curve, ECE and MCE from equal-width confidence bins.

Bins are (lower, upper]; the first also contains 0. Counts are int64 and sums float64, so that
parts of a set can be counted separately and merged. Source: Naeini et al. 2015, Guo et al. 2017.
"""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from app.errors import ArgumentError


class ReliabilityBin(NamedTuple):
    """One point of a reliability curve; confidence and accuracy are NaN in an empty bin."""

    lower: float
    upper: float
    pixels: int
    confidence: float
    accuracy: float


class ReliabilityBins:
    """Number of pixels, correct pixels and summed confidence in equal-width bins over [0,1]."""

    def __init__(self, bins: int) -> None:
        if bins < 1:
            raise ArgumentError(f"expected at least 1 bin, got {bins}")
        self.bins = bins
        self.counts: NDArray[np.int64] = np.zeros(bins, np.int64)
        self.hits: NDArray[np.int64] = np.zeros(bins, np.int64)
        self.confidence: NDArray[np.float64] = np.zeros(bins)

    def add(self, confidence: Tensor, correct: Tensor) -> Self:
        """Add pixels: confidence float [m] in [0,1], correct bool [m]."""
        values, hit = confidence.cpu().numpy(), correct.cpu().numpy()
        # Edges in the data's dtype, so that a float32 0.3 equals the edge 0.3.
        edges = (np.arange(1, self.bins) / self.bins).astype(values.dtype)
        index = np.searchsorted(edges, values, side="left")
        self.counts += np.bincount(index, minlength=self.bins)
        self.hits += np.bincount(index[hit], minlength=self.bins)
        self.confidence += np.bincount(index, values, minlength=self.bins)
        return self

    def merge(self, other: "ReliabilityBins") -> Self:
        """Add another object's counts; raises ArgumentError for another number of bins."""
        if other.bins != self.bins:
            raise ArgumentError(f"expected {self.bins} bins to merge, got {other.bins}")
        self.counts += other.counts
        self.hits += other.hits
        self.confidence += other.confidence
        return self

    def ece(self) -> float:
        """Compute the expected calibration error in [0,1], the mean gap by mass; NaN if empty."""
        total = self.counts.sum()
        return float(np.abs(self.confidence - self.hits).sum() / total) if total else np.nan

    def mce(self, n_min: int = 100) -> float:
        """Compute the largest gap in [0,1] of the bins with at least `n_min` pixels, or NaN."""
        kept = self.counts >= max(n_min, 1)
        gaps = np.abs(self.confidence - self.hits)[kept] / self.counts[kept]
        return float(gaps.max()) if len(gaps) else np.nan

    def curve(self) -> list[ReliabilityBin]:
        """List all bins, empty ones included, from low to high confidence."""
        held = np.where(self.counts > 0, self.counts, np.nan)
        means, accuracies = self.confidence / held, self.hits / held
        return [
            ReliabilityBin(
                i / self.bins,
                (i + 1) / self.bins,
                int(self.counts[i]),
                float(means[i]),
                float(accuracies[i]),
            )
            for i in range(self.bins)
        ]
