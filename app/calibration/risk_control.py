"""Certify an error rate among accepted pixels: Learn then Test with one test per image.

Images (or one image per group) are the independent draws. Neither the segmenter, nor the
calibrator, nor the choice of thresholds may have used them. The guarantee is marginal: it holds
over draws of the whole set, not per class, not per image, and not under distribution shift.
Sources: Angelopoulos et al. 2021 (Learn then Test, fixed-sequence testing), Waudby-Smith and Ramdas
2024 (betting).
"""

import math
from collections.abc import Hashable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.metrics.confidence_histogram import ConfidenceHistogram
from app.errors import ArgumentError
from app.schemas.calibrator import CertifiedThreshold

LARGEST_STAKE = 0.75  # fraction of the capital that betting may lose on one image
GRID_POINTS, GRID_START = 50, 0.02  # thresholds to test, and the coverage of the strictest

Floats = NDArray[np.float64]


class Acceptance:
    """Fractions of accepted pixels, and of accepted wrong pixels, for each image and threshold.

    Memory O(images x thresholds). Raises ArgumentError unless the thresholds decrease strictly;
    they are tested in this order.
    """

    def __init__(self, thresholds: Sequence[float]) -> None:
        if not len(thresholds) or (np.diff(thresholds) >= 0).any():
            raise ArgumentError(f"expected strictly falling thresholds, got {list(thresholds)}")
        self.thresholds = tuple(float(t) for t in thresholds)
        self.accepted: list[Floats] = []
        self.wrong: list[Floats] = []
        self._groups: list[Hashable] = []

    def add(self, confidence: Tensor, correct: Tensor, group: int | None = None) -> Self:
        """Add the labelled pixels of one image: confidence float [m], correct bool [m].

        `group` is the image's group; without one the image is a group by itself. An image without
        pixels is skipped. Thresholds are compared in the dtype of the confidence.
        """
        values, hit = confidence.cpu().numpy(), correct.cpu().numpy()
        if len(values):
            self.accepted.append(self._fractions(values, len(values)))
            self.wrong.append(self._fractions(values[~hit], len(values)))
            self._groups.append(object() if group is None else group)
        return self

    def by_group(self) -> "Acceptance":
        """Average the images of each group: groups are independent draws, their images are not."""
        averaged = Acceptance(self.thresholds)
        for group in dict.fromkeys(self._groups):
            images = [index for index, other in enumerate(self._groups) if other == group]
            averaged.accepted.append(np.mean([self.accepted[index] for index in images], axis=0))
            averaged.wrong.append(np.mean([self.wrong[index] for index in images], axis=0))
            averaged._groups.append(group)
        return averaged

    def below(self, index: int) -> "Acceptance":
        """Return the same images without the thresholds before `index`."""
        rest = Acceptance(self.thresholds[index:])
        rest.accepted = [fractions[index:] for fractions in self.accepted]
        rest.wrong = [fractions[index:] for fractions in self.wrong]
        rest._groups = list(self._groups)
        return rest

    def _fractions(self, values: NDArray[np.floating], total: int) -> Floats:
        """Count the values >= each threshold, relative to `total`."""
        below = np.searchsorted(np.sort(values), np.asarray(self.thresholds, values.dtype))
        fractions: Floats = (len(values) - below) / total
        return fractions


def threshold_grid(tuning: ConfidenceHistogram) -> list[float]:
    """List at most 50 falling thresholds at even steps of coverage, from 0.02 to 1.

    Coverage is that of the tuning images, which must not be among the certification images.
    """
    coverages = np.linspace(GRID_START, 1, GRID_POINTS)
    return sorted({tuning.threshold(float(coverage)) for coverage in coverages}, reverse=True)


def certify(
    images: Acceptance, max_error: float, delta: float, seed: int
) -> CertifiedThreshold | None:
    """Find the lowest threshold whose error rate is <= `max_error` with probability 1 - `delta`.

    The error rate is E[accepted and wrong] / E[accepted], images weighing equally. Thresholds are
    tested from the first until one fails; None where the first fails or there are no images.
    `seed` orders the images for betting. The guarantee holds for any number of images; fewer
    images certify less.
    """
    count = len(images.accepted)
    if not count:
        return None
    accepted, wrong = np.stack(images.accepted), np.stack(images.wrong)  # [n,m]
    order = np.random.default_rng(seed).permutation(count)
    losses = pooled_losses(accepted, wrong, max_error)[order]
    last = fixed_sequence(betting_p_values(losses, max_error, delta), delta)
    if last is None:
        return None
    coverage = float(accepted[:, last].mean())
    error = float(wrong[:, last].mean()) / coverage if coverage else np.nan
    return CertifiedThreshold(max_error, images.thresholds[last], delta, coverage, error, count)


def pooled_losses(accepted: Floats, wrong: Floats, alpha: float) -> Floats:
    """Compute losses in [0,1] whose mean is <= alpha exactly where the error rate is: all [n,m]."""
    return wrong - alpha * accepted + alpha


def betting_p_values(losses: Floats, alpha: float, delta: float) -> Floats:
    """Compute p-values [m] of "mean loss > alpha" by betting on losses [n,m] in [0,1].

    Rows must be in random order. The p-value is 1 / the highest capital reached (Ville's
    inequality); the stake on a row depends on earlier rows only and is tuned to level `delta`.
    """
    n = len(losses)
    rank = np.arange(1, n + 1)[:, None]
    means = (alpha + losses.cumsum(0)) / (rank + 1)
    variances = (0.25 + np.square(losses - means).cumsum(0)) / (rank + 1)
    before = np.concatenate([np.full((1, losses.shape[1]), 0.25), variances[:-1]])
    stakes = np.sqrt(2 * math.log(1 / delta) / (n * before))
    stakes = np.minimum(stakes, LARGEST_STAKE / (1 - alpha))
    capital = np.log1p(stakes * (alpha - losses)).cumsum(0).max(0)
    p_values: Floats = np.exp(-np.maximum(capital, 0))
    return p_values


def fixed_sequence(p_values: Floats, level: float) -> int | None:
    """Return the index of the last hypothesis rejected before the first that is not, or None."""
    kept = np.flatnonzero(p_values > level)
    rejected = int(kept[0]) if len(kept) else len(p_values)
    return rejected - 1 if rejected else None
