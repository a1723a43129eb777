"""Reliability by subset of pixels: correctness, boundary, class and crop size.

The functions take one image and return bins that merge over a set, so that memory does not grow
with the set. Source: Wang et al. 2023 ("On Calibrating Semantic Segmentation Models") for
correctness and crop size.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from app.calibration.dataset import IGNORE
from app.calibration.metrics.reliability import ReliabilityBins
from app.calibration.metrics.segmentation import boundary_band
from app.calibration.predictions import Prediction
from app.errors import ArgumentError

BINS = 15  # of a subset, whose pixels are pooled over images
CROP_BINS = 10  # of a crop, as of an image
BOUNDARY, INTERIOR = "boundary", "interior"
CORRECT, MISPREDICTED = "correct", "mispredicted"

Name = TypeVar("Name", bound=Hashable)


class SubsetMetrics(NamedTuple):
    """A subset's number of pixels, and its mean confidence, accuracy and pooled ECE in 0..1.

    The last three are NaN where the subset is empty.
    """

    pixels: int
    confidence: float
    accuracy: float
    ece: float

    @property
    def surplus(self) -> float:
        """Compute mean confidence minus accuracy; above 0 is overconfident."""
        return self.confidence - self.accuracy


def subset_metrics(bins: ReliabilityBins) -> SubsetMetrics:
    """Compute a subset's metrics from its bins."""
    pixels = int(bins.counts.sum())
    if not pixels:
        return SubsetMetrics(0, np.nan, np.nan, np.nan)
    confidence, accuracy = bins.confidence.sum() / pixels, bins.hits.sum() / pixels
    return SubsetMetrics(pixels, float(confidence), float(accuracy), bins.ece())


def by_correctness(prediction: Prediction, labels: Tensor) -> dict[str, ReliabilityBins]:
    """Bin correct and mispredicted labelled pixels; labels int64 [*grid], IGNORE where unlabelled.

    ECE is 1 - mean confidence on correct pixels and mean confidence on mispredicted ones.
    """
    correct = prediction.classes == labels
    subsets = {CORRECT: correct, MISPREDICTED: ~correct}
    return {name: subset_bins(prediction, labels, where) for name, where in subsets.items()}


def by_boundary(
    prediction: Prediction, labels: Tensor, radius: int = 2, bins: int = BINS
) -> dict[str, ReliabilityBins]:
    """Bin labelled pixels [h,w] by whether they lie in the `boundary_band` of another class.

    Raises ArgumentError as `boundary_band` does.
    """
    band = boundary_band(labels, radius)
    subsets = {BOUNDARY: band, INTERIOR: ~band}
    return {name: subset_bins(prediction, labels, where, bins) for name, where in subsets.items()}


def by_class(
    prediction: Prediction, labels: Tensor, *, labelled: bool = False
) -> dict[int, ReliabilityBins]:
    """Bin labelled pixels by predicted class or, with `labelled`, by label.

    Accuracy is the class's precision by prediction and its recall by label. Classes without a
    pixel are omitted.
    """
    classes = labels if labelled else prediction.classes
    present = torch.unique(classes[labels != IGNORE]).tolist()
    return {k: subset_bins(prediction, labels, classes == k) for k in present}


def by_crop_size(
    prediction: Prediction,
    labels: Tensor,
    sizes: Iterable[int],
    crops: int,
    rng: np.random.Generator,
) -> dict[int, list[float]]:
    """Compute ECE (10 bins) on `crops` random square crops of each size.

    Maps are [h,w]; a crop is limited by a shorter side. Fewer gaps cancel out in the bins of
    smaller crops, so ECE of different sizes is not comparable. Crops without a labelled pixel are
    omitted. Raises ArgumentError for a size or number below 1.
    """
    sizes = tuple(sizes)
    if crops < 1 or min(sizes, default=1) < 1:
        raise ArgumentError(f"expected crops and sizes of at least 1, got {crops} of {sizes}")
    errors: dict[int, list[float]] = {}
    for size in sizes:
        placed = [_crop(labels, size, rng) for _ in range(crops)]
        values = [_crop_ece(prediction, labels, crop) for crop in placed]
        errors[size] = [value for value in values if not np.isnan(value)]
    return errors


def merge(into: dict[Name, ReliabilityBins], subsets: Mapping[Name, ReliabilityBins]) -> None:
    """Add the bins of another image to `into`, subset by subset."""
    for name, bins in subsets.items():
        into.setdefault(name, ReliabilityBins(bins.bins)).merge(bins)


def subset_bins(
    prediction: Prediction, labels: Tensor, where: Tensor, bins: int = BINS
) -> ReliabilityBins:
    """Bin the labelled pixels marked in `where`, bool [*grid]."""
    kept = where & (labels != IGNORE)
    correct = prediction.classes[kept] == labels[kept]
    return ReliabilityBins(bins).add(prediction.probabilities[kept], correct)


def _crop(labels: Tensor, size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Return the slices of a random crop of a map [h,w]."""
    starts = [int(rng.integers(max(side - size, 0) + 1)) for side in labels.shape]
    return slice(starts[0], starts[0] + size), slice(starts[1], starts[1] + size)


def _crop_ece(prediction: Prediction, labels: Tensor, crop: tuple[slice, slice]) -> float:
    """Compute the ECE of one crop; NaN where no pixel is labelled."""
    part = Prediction(prediction.mask[crop], prediction.confidence[crop])
    everywhere = torch.ones_like(labels[crop], dtype=torch.bool)
    return subset_bins(part, labels[crop], everywhere, CROP_BINS).ece()
