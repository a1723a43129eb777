"""Intervals by resampling images (Efron 1979), since neighbouring pixels are near copies."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from app.errors import ArgumentError


class Interval(NamedTuple):
    """A mean and the ends of its percentile interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float], seed: int, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """Mean over images with its percentile interval; NaN images are skipped.

    The interval is NaN with fewer than two images, the mean without any. Raises ArgumentError for
    a level outside (0,1) or no resamples.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ArgumentError(
            f"expected a level in (0,1) and at least 1 resample, got {level} and {resamples}"
        )
    kept = np.asarray(values, np.float64)
    kept = kept[~np.isnan(kept)]
    if len(kept) < 2:
        return Interval(float(kept[0]) if len(kept) else np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    means = [rng.choice(kept, len(kept)).mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(kept.mean()), float(low), float(high))


def bootstrap_difference(
    a: Sequence[float],
    b: Sequence[float],
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean of a - b over images with its percentile interval, images paired by position.

    An image that is NaN in either is skipped. Raises ArgumentError where the lengths differ.
    """
    if len(a) != len(b):
        raise ArgumentError(f"expected two values per image, got {len(a)} and {len(b)} images")
    return bootstrap_mean(np.subtract(a, b).tolist(), seed, resamples, level)
