"""Equal-width confidence bins and the calibration errors read off them.

Bins are (lower, upper], the first also takes 0. Counts are int64 and sums float64, so parts of a
set can be counted apart and merged. ECE: Naeini et al. 2015, Guo et al. 2017; classwise: Kull et
al. 2019; ACE here is netcal's average of gaps, not Nixon's adaptive error (see
`confidence_histogram`).
"""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from app.errors import ArgumentError


class ReliabilityBin(NamedTuple):
    """One point of a reliability curve; the means are NaN in an empty bin."""

    lower: float
    upper: float
    pixels: int
    confidence: float
    accuracy: float


class ReliabilityBins:
    """Counts pixels, hits and confidence in equal-width bins over [0,1]; memory O(bins)."""

    def __init__(self, bins: int) -> None:
        if bins < 1:
            raise ArgumentError(f"expected at least 1 bin, got {bins}")
        self.bins = bins
        self.counts: NDArray[np.int64] = np.zeros(bins, np.int64)
        self.hits: NDArray[np.int64] = np.zeros(bins, np.int64)
        self.confidence: NDArray[np.float64] = np.zeros(bins)

    def add(self, confidence: Tensor, correct: Tensor) -> Self:
        """Count pixels: confidence float [m] in [0,1], correct bool [m]."""
        values, hit = confidence.cpu().numpy(), correct.cpu().numpy()
        # Edges take the data's type, so that a float32 0.3 meets the edge 0.3, not one beside it.
        edges = (np.arange(1, self.bins) / self.bins).astype(values.dtype)
        index = np.searchsorted(edges, values, side="left")
        self.counts += np.bincount(index, minlength=self.bins)
        self.hits += np.bincount(index[hit], minlength=self.bins)
        self.confidence += np.bincount(index, values, minlength=self.bins)
        return self

    def merge(self, other: "ReliabilityBins") -> Self:
        """Take over what another has counted; ArgumentError where its bins differ."""
        if other.bins != self.bins:
            raise ArgumentError(f"expected {self.bins} bins to merge, got {other.bins}")
        self.counts += other.counts
        self.hits += other.hits
        self.confidence += other.confidence
        return self

    def ece(self) -> float:
        """Give the expected calibration error in [0,1]: mean gap by mass, or NaN."""
        total = self.counts.sum()
        return float(np.abs(self.confidence - self.hits).sum() / total) if total else np.nan

    def unweighted_ace(self) -> float:
        """Give the plain mean gap in [0,1] over non-empty bins, or NaN."""
        gaps = self._gaps(1)
        return float(gaps.mean()) if len(gaps) else np.nan

    def mce(self, n_min: int = 100) -> float:
        """Give the widest gap in [0,1] over bins of at least `n_min` pixels, or NaN."""
        gaps = self._gaps(max(n_min, 1))
        return float(gaps.max()) if len(gaps) else np.nan

    def curve(self) -> list[ReliabilityBin]:
        """List all bins from low to high confidence, empty ones too."""
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

    def _gaps(self, n_min: int) -> NDArray[np.float64]:
        """|mean confidence - accuracy| of the bins with at least `n_min` pixels."""
        kept = self.counts >= n_min
        gaps: NDArray[np.float64] = np.abs(self.confidence - self.hits)[kept] / self.counts[kept]
        return gaps


class ClasswiseBins:
    """One-versus-rest bins for each class; memory O(classes x bins)."""

    def __init__(self, num_classes: int, bins: int = 15) -> None:
        self.classes = [ReliabilityBins(bins) for _ in range(num_classes)]

    def add(self, probabilities: Tensor, labels: Tensor) -> Self:
        """Count pixels: probabilities float [m,K], labels int64 [m] in 0..K-1."""
        for index, bins in enumerate(self.classes):
            bins.add(probabilities[:, index], labels == index)
        return self

    def merge(self, other: "ClasswiseBins") -> Self:
        """Take over what another has counted; ArgumentError where classes or bins differ."""
        if len(other.classes) != len(self.classes):
            raise ArgumentError(f"expected {len(self.classes)} classes, got {len(other.classes)}")
        for mine, theirs in zip(self.classes, other.classes, strict=True):
            mine.merge(theirs)
        return self

    def ece(self, *, present_only: bool = False) -> float:
        """Give the mean ECE in [0,1] over all classes, or over those with a labelled pixel."""
        errors = [bins.ece() for bins in self.classes if not present_only or bins.hits.sum() > 0]
        return float(np.mean(errors)) if errors else np.nan
