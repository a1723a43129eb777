"""How well confidence ranks right pixels above wrong ones, from histograms of bounded size.

Two histograms, of right and of wrong pixels, have 2^14 bins that are equally wide in log-odds of
confidence, where segmentation's many almost sure pixels lie apart. Pixels in one bin count as
tied. Sources: Hendrycks and Gimpel 2017 (AUROC, AUPR), Geifman and El-Yaniv 2017 (risk-coverage),
Geifman et al. 2019 (AURC), Ding et al. 2020 (adaptive ECE).
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
    """The share of pixels accepted, and the share of wrong ones among them; both in [0,1]."""

    coverage: float
    risk: float


class ConfidenceHistogram:
    """Counts right and wrong pixels by confidence; 400 kB whatever it is given."""

    def __init__(self) -> None:
        self.right: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.wrong: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.confidence: NDArray[np.float64] = np.zeros(BINS)

    def add(self, confidence: Tensor, correct: Tensor) -> Self:
        """Count pixels: confidence float [m] in [0,1], correct bool [m]."""
        values, hit = confidence.double().cpu().numpy(), correct.cpu().numpy()
        index = _bin_index(values)
        self.right += np.bincount(index[hit], minlength=BINS)
        self.wrong += np.bincount(index[~hit], minlength=BINS)
        self.confidence += np.bincount(index, values, minlength=BINS)
        return self

    def merge(self, other: "ConfidenceHistogram") -> Self:
        """Take over what another has counted."""
        self.right += other.right
        self.wrong += other.wrong
        self.confidence += other.confidence
        return self

    def auroc(self) -> float:
        """Probability in [0,1] that a wrong pixel is less confident than a right one.

        Ties count half. NaN unless there are pixels of both kinds. Off the exact value by at most
        `auroc_error_bound`.
        """
        pairs = float(self.right.sum()) * float(self.wrong.sum())
        below = np.cumsum(self.wrong) - self.wrong / 2
        return float((self.right * below).sum() / pairs) if pairs else np.nan

    def auroc_error_bound(self) -> float:
        """Half the share of (right, wrong) pairs that binning ties; NaN where AUROC is."""
        pairs = float(self.right.sum()) * float(self.wrong.sum())
        tied = (self.right * self.wrong.astype(float)).sum()
        return float(tied / pairs / 2) if pairs else np.nan

    def aupr_error(self) -> float:
        """Average precision in [0,1] of finding wrong pixels by low confidence.

        A step sum, each bin one step; exact where no bin holds both kinds. NaN without errors.
        """
        return _average_precision(self.wrong, self.right)

    def aupr_success(self) -> float:
        """Average precision in [0,1] of finding right pixels by high confidence.

        A step sum, each bin one step; exact where no bin holds both kinds. NaN without hits.
        """
        return _average_precision(self.right[::-1], self.wrong[::-1])

    def aurc(self) -> float:
        """Mean error rate in [0,1] over all prefixes of the pixels by descending confidence.

        Within a bin it is the mean over all orders of its pixels: n errors in a bin that starts
        after N pixels move the sum of prefixes by at most n * log1p(bin size / N) from the exact
        one. NaN without pixels.
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

    def adaptive_ece(self, bins: int = 15) -> float:
        """ECE in [0,1] over `bins` equal-mass bins of confidence; NaN without pixels.

        Histogram bins that a cut parts are shared out in proportion: off the exact value by at
        most twice the share of pixels in those. Where n is no multiple of `bins`, a pixel may be
        shared too.
        """
        counts = self.right + self.wrong
        cuts = np.linspace(0, counts.sum(), bins + 1)
        if not cuts[-1]:
            return np.nan
        held = counts > 0
        ranks = _from_zero(counts[held])
        surplus = _from_zero((self.confidence - self.right)[held])
        return float(np.abs(np.diff(np.interp(cuts, ranks, surplus))).sum() / cuts[-1])

    def threshold(self, coverage: float) -> float:
        """Give the highest bin edge, a confidence in [0,1], at or above which that share lies.

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
        """Wrong pixels and all pixels of the non-empty bins, by falling confidence."""
        counts = (self.right + self.wrong)[::-1]
        return self.wrong[::-1][counts > 0], counts[counts > 0]


def _bin_index(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Place confidences by log-odds; what lies outside the range goes to the outer bins."""
    low, high = LOG_ODDS_RANGE
    with np.errstate(divide="ignore"):
        log_odds = np.log(confidence) - np.log1p(-confidence)
    scaled = (log_odds - low) * (BINS / (high - low))
    return np.clip(scaled, 0, BINS - 1).astype(np.int64)


def _average_precision(positive: NDArray[np.int64], negative: NDArray[np.int64]) -> float:
    """Step-sum average precision; the bins come with the most suspect first."""
    found, seen = np.cumsum(positive), np.cumsum(positive + negative)
    if not found[-1]:
        return np.nan
    return float((positive * found / np.maximum(seen, 1)).sum() / found[-1])


def _harmonic(n: NDArray[np.int64]) -> NDArray[np.float64]:
    """H(n) - Euler's constant, for each n >= 0."""
    values: NDArray[np.float64] = torch.digamma(torch.from_numpy(n + 1.0)).numpy()
    return values


def _from_zero(values: NDArray[np.generic]) -> NDArray[np.float64]:
    """Cumulative sums, with a zero in front."""
    return np.concatenate(([0.0], np.cumsum(values)))
