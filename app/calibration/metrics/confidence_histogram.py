"""AUROC, AURC, risk-coverage curve and coverage thresholds from confidence histograms.

The histograms of correct and of wrong pixels have 2^14 bins of equal width in the log-odds of
confidence, which separates the many pixels with a confidence near 1. Pixels of one bin count as
tied. Sources: Hendrycks and Gimpel 2017 (AUROC), Geifman and El-Yaniv 2017 (risk-coverage),
Geifman et al. 2019 (AURC).
"""

from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.errors import ArgumentError

BINS = 2**14
# sigmoid(18) is closer to 1 than float32 can be, and sigmoid(-8) is below 1/K for 2,900 classes.
LOG_ODDS_RANGE = (-8.0, 18.0)
_EDGES = np.linspace(*LOG_ODDS_RANGE, BINS + 1)


class RiskCoverage(NamedTuple):
    """Fraction of pixels accepted, and fraction of wrong pixels among these; both in [0,1]."""

    coverage: float
    risk: float


class ConfidenceHistogram:
    """Number of correct and of wrong pixels by confidence; 256 KiB for any number of pixels."""

    def __init__(self) -> None:
        self.right: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.wrong: NDArray[np.int64] = np.zeros(BINS, np.int64)

    def add(self, confidence: Tensor, correct: Tensor) -> Self:
        """Add pixels: confidence float [m] in [0,1], correct bool [m]."""
        index, hit = _bin_index(confidence.double().cpu().numpy()), correct.cpu().numpy()
        self.right += np.bincount(index[hit], minlength=BINS)
        self.wrong += np.bincount(index[~hit], minlength=BINS)
        return self

    def merge(self, other: "ConfidenceHistogram") -> Self:
        """Add another histogram's counts."""
        self.right += other.right
        self.wrong += other.wrong
        return self

    def auroc(self) -> float:
        """Compute the probability that a wrong pixel has lower confidence than a correct one.

        Ties count half. NaN unless there are pixels of both kinds. The absolute error is at most
        half the fraction of (correct, wrong) pairs whose pixels share a bin.
        """
        pairs = float(self.right.sum()) * float(self.wrong.sum())
        below = np.cumsum(self.wrong) - self.wrong / 2
        return float((self.right * below).sum() / pairs) if pairs else np.nan

    def aurc(self) -> float:
        """Compute the mean error rate in [0,1] over all prefixes by descending confidence.

        Within a bin it is the mean over all orders of the pixels: n errors in a bin that begins
        after N pixels change the sum over prefixes by at most n * log1p(bin size / N). NaN without
        pixels.
        """
        wrong, counts = self._descending()
        if not len(counts):
            return np.nan
        after = np.cumsum(counts)
        before, wrong_before = after - counts, np.cumsum(wrong) - wrong
        rate = wrong / counts
        # sum_j (W + j r) / (N + j) = r n + (W - r N) (H(N+n) - H(N)), H the harmonic numbers
        spread = _harmonic(after) - _harmonic(before)
        prefixes = wrong + (wrong_before - rate * before) * spread
        return float(prefixes.sum() / after[-1])

    def risk_coverage(self, points: int = 100) -> list[RiskCoverage]:
        """List at most `points` steps of the risk-coverage curve, from low coverage to 1."""
        wrong, counts = self._descending()
        if not len(counts):
            return []
        covered, errors = np.cumsum(counts), np.cumsum(wrong)
        coverage, risk = covered / covered[-1], errors / covered
        steps = np.unique(np.searchsorted(coverage, np.arange(1, points + 1) / points))
        return [RiskCoverage(float(coverage[i]), float(risk[i])) for i in steps]

    def threshold(self, coverage: float) -> float:
        """Return the highest bin edge, in [0,1], with at least this fraction of pixels above it.

        Raises ArgumentError without pixels or with a coverage outside (0,1].
        """
        counts = self.right + self.wrong
        total = counts.sum()
        if not total or not 0 < coverage <= 1:
            raise ArgumentError(
                f"expected pixels and a coverage in (0,1], got {total} pixels and {coverage}"
            )
        held = np.cumsum(counts[::-1])
        index = BINS - 1 - int(np.searchsorted(held, coverage * total))
        return float(1 / (1 + np.exp(-_EDGES[index]))) if index > 0 else 0.0

    def _descending(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return wrong and all pixels of the non-empty bins, by descending confidence."""
        counts = (self.right + self.wrong)[::-1]
        return self.wrong[::-1][counts > 0], counts[counts > 0]


def _bin_index(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bins of confidences by log-odds, clipped to the outer bins."""
    low, high = LOG_ODDS_RANGE
    with np.errstate(divide="ignore"):
        log_odds = np.log(confidence) - np.log1p(-confidence)
    scaled = (log_odds - low) * (BINS / (high - low))
    return np.clip(scaled, 0, BINS - 1).astype(np.int64)


def _harmonic(n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute H(n) - Euler's constant for each n >= 0."""
    values: NDArray[np.float64] = torch.digamma(torch.from_numpy(n + 1.0)).numpy()
    return values
