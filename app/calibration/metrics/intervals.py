"""Bootstrap intervals over images (Efron 1979), as the pixels of an image are not independent."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from app.errors import ArgumentError

RESAMPLES = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and the bounds of its 95% percentile interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: Sequence[float], seed: int) -> Interval:
    """Compute the mean over images and its percentile interval; NaN images are skipped.

    The interval is NaN with fewer than two images, and so is the mean without any.
    """
    kept = np.asarray(values, np.float64)
    kept = kept[~np.isnan(kept)]
    if len(kept) < 2:
        return Interval(float(kept[0]) if len(kept) else np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    means = [rng.choice(kept, len(kept)).mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(kept.mean()), float(low), float(high))


def bootstrap_difference(a: Sequence[float], b: Sequence[float], seed: int) -> Interval:
    """Compute the mean of a - b over paired images and its percentile interval.

    An image that is NaN in either is skipped. Raises ArgumentError for other lengths.
    """
    if len(a) != len(b):
        raise ArgumentError(f"expected two values per image, got {len(a)} and {len(b)} images")
    return bootstrap_mean(np.subtract(a, b).tolist(), seed)
