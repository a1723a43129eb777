"""Where a model's confidence goes wrong: the same reliability, read over groups of pixels.

All functions look at one image and give bins that merge over a set, so that memory does not grow
with it. After Wang et al. 2023 ("On Calibrating Semantic Segmentation Models"): pixels that are
right and wrong, crop size, one scale against several; boundaries and classes besides.
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

BINS = 15  # of a group, whose pixels are pooled
CROP_BINS = 10  # of a crop, which stands for an image
BOUNDARY, INTERIOR = "boundary", "interior"
CORRECT, MISPREDICTED = "correct", "mispredicted"

Name = TypeVar("Name", bound=Hashable)


class SubsetMetrics(NamedTuple):
    """A group's pixels and, over them, mean confidence, accuracy and pooled ECE, all in 0..1.

    NaN where the group is empty.
    """

    pixels: int
    confidence: float
    accuracy: float
    ece: float

    @property
    def surplus(self) -> float:
        """Mean confidence minus accuracy: above 0 is over-confident."""
        return self.confidence - self.accuracy


class ScaleComparison(NamedTuple):
    """One scale against several; `labels_changed` is a share of labelled pixels."""

    single: SubsetMetrics
    multi: SubsetMetrics
    labels_changed: float


def subset_metrics(bins: ReliabilityBins) -> SubsetMetrics:
    """Read a group's figures off its bins."""
    pixels = int(bins.counts.sum())
    if not pixels:
        return SubsetMetrics(0, np.nan, np.nan, np.nan)
    confidence, accuracy = bins.confidence.sum() / pixels, bins.hits.sum() / pixels
    return SubsetMetrics(pixels, float(confidence), float(accuracy), bins.ece())


def by_correctness(prediction: Prediction, labels: Tensor) -> dict[str, ReliabilityBins]:
    """Part labelled pixels into right and wrong ones; labels int64 [*grid], IGNORE aside.

    Among the right ones ECE is what confidence lacks to 1, among the wrong ones all of it.
    """
    right = prediction.classes == labels
    subsets = {CORRECT: right, MISPREDICTED: ~right}
    return {name: subset_bins(prediction, labels, where) for name, where in subsets.items()}


def by_boundary(
    prediction: Prediction, labels: Tensor, radius: int = 2, bins: int = BINS
) -> dict[str, ReliabilityBins]:
    """Part labelled pixels [h,w] into those near another class and the others.

    See `boundary_band` for what is near and what is refused.
    """
    band = boundary_band(labels, radius)
    subsets = {BOUNDARY: band, INTERIOR: ~band}
    return {name: subset_bins(prediction, labels, where, bins) for name, where in subsets.items()}


def by_class(
    prediction: Prediction, labels: Tensor, *, labelled: bool = False
) -> dict[int, ReliabilityBins]:
    """Part labelled pixels by the class they are predicted as, or that they are labelled as.

    By prediction, accuracy is the class's precision: what a reader of the mask needs. By label it
    is the class's recall. Classes without such a pixel are left out.
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
    """ECE (10 bins) of `crops` random square crops of each size, for means over a set.

    Maps are [h,w]; a crop is cut off at a shorter side. The smaller a crop, the fewer errors can
    cancel out in a bin, so image-wise figures of different sizes do not compare. Crops without a
    labelled pixel are left out. Raises ArgumentError for a size or number below 1.
    """
    sizes = tuple(sizes)
    if crops < 1 or min(sizes, default=1) < 1:
        raise ArgumentError(f"expected crops and sizes of at least 1, got {crops} of {sizes}")
    errors: dict[int, list[float]] = {}
    for size in sizes:
        cuts = [_crop(labels, size, rng) for _ in range(crops)]
        values = [_cut(prediction, labels, cut) for cut in cuts]
        errors[size] = [value for value in values if not np.isnan(value)]
    return errors


def by_scale(single: Prediction, multi: Prediction, labels: Tensor) -> ScaleComparison:
    """Compare an image's prediction at one scale with the one from several scales."""
    everywhere = labels != IGNORE
    pixels = int(everywhere.sum())
    changed = int(((single.classes != multi.classes) & everywhere).sum())
    return ScaleComparison(
        subset_metrics(subset_bins(single, labels, everywhere)),
        subset_metrics(subset_bins(multi, labels, everywhere)),
        changed / pixels if pixels else np.nan,
    )


def merge(into: dict[Name, ReliabilityBins], subsets: Mapping[Name, ReliabilityBins]) -> None:
    """Take over what another image's groups have counted, group by group."""
    for name, bins in subsets.items():
        into.setdefault(name, ReliabilityBins(bins.bins)).merge(bins)


def subset_bins(
    prediction: Prediction, labels: Tensor, where: Tensor, bins: int = BINS
) -> ReliabilityBins:
    """Count the labelled pixels among those marked in `where`, bool [*grid]."""
    kept = where & (labels != IGNORE)
    right = prediction.classes[kept] == labels[kept]
    return ReliabilityBins(bins).add(prediction.probabilities[kept], right)


def _crop(labels: Tensor, size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Place a crop at random in a map [h,w]."""
    starts = [int(rng.integers(max(side - size, 0) + 1)) for side in labels.shape]
    return slice(starts[0], starts[0] + size), slice(starts[1], starts[1] + size)


def _cut(prediction: Prediction, labels: Tensor, cut: tuple[slice, slice]) -> float:
    """ECE of one crop; NaN where nothing is labelled."""
    part = Prediction(prediction.mask[cut], prediction.confidence[cut])
    everywhere = torch.ones_like(labels[cut], dtype=torch.bool)
    return subset_bins(part, labels[cut], everywhere, CROP_BINS).ece()
