"""Bootstrap intervals over images (Efron 1979) and the sign-flip test of paired differences.

Both take one value for each image or group, as the pixels of an image are not independent. The
bootstrap can also resample the groups of the images that it takes the values of.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from app.errors import ArgumentError

RESAMPLES = 2000
LEVEL = 0.95
MAX_ENUMERATED = 16  # groups up to which all sign patterns are enumerated
SIGN_PATTERNS = 20_000  # drawn beyond that


class Interval(NamedTuple):
    """A mean and the bounds of its 95% percentile interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float], seed: int, groups: Sequence[int] | None = None
) -> Interval:
    """Compute the mean over images and its percentile interval; NaN images are skipped.

    With `groups` [N], the group of each image, whole groups are resampled; images weigh equally in
    each resample. The interval is NaN with fewer than two images or groups, and so is the mean
    without any image. Raises ArgumentError for another number of groups than of images.
    """
    group = np.arange(len(values)) if groups is None else np.asarray(groups)
    if len(group) != len(values):
        raise ArgumentError(f"expected a group for each of {len(values)} images, got {len(group)}")
    known = ~np.isnan(np.asarray(values, np.float64))
    kept = np.asarray(values, np.float64)[known]
    if not len(kept):
        return Interval(np.nan, np.nan, np.nan)
    _, members = np.unique(group[known], return_inverse=True)
    sums, counts = np.bincount(members, kept), np.bincount(members)
    if len(counts) < 2:
        return Interval(float(kept.mean()), np.nan, np.nan)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(counts), size=len(counts)) for _ in range(RESAMPLES))
    means = [sums[units].sum() / counts[units].sum() for units in drawn]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(kept.mean()), float(low), float(high))


def sign_flip_p_value(differences: Sequence[float], seed: int) -> float:
    """Compute the p-value of "the mean difference is not below 0" by flipping signs.

    It is the fraction of the 2^n sign patterns whose mean is at most the observed one, exact for
    any n if both sides are exchangeable in each group; so it is at least 2^-n. Beyond 16 groups
    patterns are drawn, and the observed one is counted. NaN differences are skipped; 1 without any.
    """
    kept = np.asarray(differences, np.float64)
    kept = kept[~np.isnan(kept)]
    if not len(kept):
        return 1.0
    if len(kept) <= MAX_ENUMERATED:
        bits = np.arange(2 ** len(kept))[:, None] >> np.arange(len(kept)) & 1
        signs = 1.0 - 2.0 * bits
    else:
        drawn = np.random.default_rng(seed).integers(0, 2, (SIGN_PATTERNS - 1, len(kept)))
        signs = np.concatenate([np.ones((1, len(kept))), 1.0 - 2.0 * drawn])
    # Equal means differ by roundings, and must count as equal.
    tolerance = 1e-12 * np.abs(kept).sum()
    return float((signs @ kept <= kept.sum() + tolerance).mean())
