"""Units of images that a bootstrap interval of an evaluation resamples.

Frames of a video are autocorrelated, so that an interval over single frames is too narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.calibration.metrics.intervals import Interval, bootstrap_mean
from app.errors import ArgumentError

SEED = 0  # of the bootstrap
BLOCK = 8  # consecutive images
MIN_UNITS = 10  # the percentile interval of fewer is too narrow


@dataclass(frozen=True)
class ResamplingUnits:
    """The unit of each image in file order, and the name of such a unit."""

    index: Sequence[int]
    singular: str
    plural: str

    @classmethod
    def of(cls, groups: Sequence[int] | None, images: int) -> "ResamplingUnits":
        """Return the given groups or, without any, blocks of 8 images in file order.

        Blocks of consecutive frames are valid for a video, and for independent images too. Raises
        ArgumentError for another number of groups than of images.
        """
        if groups is None:
            blocks = [index // BLOCK for index in range(images)]
            return cls(blocks, f"block of {BLOCK} images", f"blocks of {BLOCK} images")
        if len(groups) != images:
            raise ArgumentError(f"expected a group for each of {images} images, got {len(groups)}")
        return cls(groups, "group", "groups")

    def count(self, values: Sequence[float]) -> int:
        """Count the units that hold an image whose value is not NaN."""
        return len(np.unique(np.asarray(self.index)[~np.isnan(values)]))

    def interval(self, values: Sequence[float]) -> Interval:
        """Compute the mean over images and its 95% interval; NaN bounds below ten units."""
        interval = bootstrap_mean(values, SEED, self.index)
        if self.count(values) < MIN_UNITS:
            return Interval(interval.mean, math.nan, math.nan)
        return interval

    def difference(self, a: Sequence[float], b: Sequence[float]) -> Interval:
        """Compute the mean of a - b over paired images and its 95% interval, as `interval`."""
        return self.interval(np.subtract(a, b).tolist())
