"""Assess one calibrator over a labelled set: overall, by subset, by class and by image.

Memory is O(K^2 + bins) and a few numbers per image.
"""

from typing import NamedTuple, Self

import numpy as np
from torch import Tensor

from app.calibration.dataset import IGNORE
from app.calibration.metrics import subsets
from app.calibration.metrics.evaluation import IMAGE_BINS, Evaluation
from app.calibration.metrics.reliability import ReliabilityBin, ReliabilityBins
from app.calibration.metrics.segmentation import class_dice, class_iou, class_recall
from app.calibration.metrics.subsets import SubsetMetrics
from app.calibration.predictions import Prediction

CONFIDENT = 0.9  # wrong pixels of at least this confidence are confident errors
TWENTIETHS = 20  # bins; (0.85, 0.95] is exactly two of them
ABOUT_90 = slice(17, 19)


class ImageAssessment(NamedTuple):
    """One image's metrics in 0..1; 0 pixels and NaN where no pixel is labelled.

    `ece` has 10 bins. `confident_errors` is the fraction of labelled pixels that are wrong with a
    confidence of at least 0.9.
    """

    pixels: int
    ece: float
    accuracy: float
    confidence: float
    confident_errors: float


class ClassAssessment(NamedTuple):
    """One class's metrics in 0..1; NaN where their denominator is 0.

    `pixels` is the number of pixels labelled as the class. `predicted` is over the pixels
    predicted as the class, so its accuracy is the class's precision.
    """

    pixels: int
    iou: float
    dice: float
    recall: float
    predicted: SubsetMetrics


class Assessment:
    """Metrics of a set, its subsets and its images, accumulated image by image."""

    def __init__(self, num_classes: int) -> None:
        self.evaluation = Evaluation(num_classes)
        self.twentieths = ReliabilityBins(TWENTIETHS)
        self.images: list[ImageAssessment] = []  # in the order added
        self.boundary_errors: list[float] = []  # each image's ECE on its boundary band
        self._kinds: dict[str, ReliabilityBins] = {}
        self._classes: dict[int, ReliabilityBins] = {}

    def add(self, prediction: Prediction, labels: Tensor, nll: float, brier: float) -> Self:
        """Add one image: maps [h,w], with labels IGNORE where unlabelled.

        `nll` and `brier` are sums over labelled pixels. Labels and predictions must be in 0..K-1.
        """
        kept = labels != IGNORE
        confidence, correct = prediction.probabilities[kept], (prediction.classes == labels)[kept]
        self.evaluation.add_prediction(prediction, labels, nll, brier)
        self.twentieths.add(confidence, correct)
        band = subsets.by_boundary(prediction, labels, bins=IMAGE_BINS)[subsets.BOUNDARY]
        self.boundary_errors.append(band.ece())
        for partition in (subsets.by_correctness, subsets.by_boundary):
            subsets.merge(self._kinds, partition(prediction, labels))
        subsets.merge(self._classes, subsets.by_class(prediction, labels))
        whole = self.evaluation.images[-1]
        confident_errors = int(((confidence >= CONFIDENT) & ~correct).sum())
        self.images.append(
            ImageAssessment(
                pixels=whole.pixels,
                ece=whole.ece,
                accuracy=whole.accuracy,
                confidence=float(confidence.double().mean()),
                confident_errors=confident_errors / whole.pixels if whole.pixels else np.nan,
            )
        )
        return self

    def merge(self, other: "Assessment") -> Self:
        """Add the images of another assessment after those of this one.

        Raises ArgumentError for another number of classes.
        """
        self.evaluation.merge(other.evaluation)
        self.twentieths.merge(other.twentieths)
        self.images += other.images
        self.boundary_errors += other.boundary_errors
        subsets.merge(self._kinds, other._kinds)  # noqa: SLF001 - of the same class
        subsets.merge(self._classes, other._classes)  # noqa: SLF001
        return self

    @property
    def boundary_ece(self) -> float:
        """Compute image-wise ECE (10 bins) on the boundary bands; NaN without a boundary."""
        errors = [error for error in self.boundary_errors if not np.isnan(error)]
        return float(np.mean(errors)) if errors else np.nan

    @property
    def about_90(self) -> SubsetMetrics:
        """Compute the metrics of the pixels whose confidence is in (0.85, 0.95]."""
        near = ReliabilityBins(TWENTIETHS)
        for selected, all_bins in (
            (near.counts, self.twentieths.counts),
            (near.hits, self.twentieths.hits),
            (near.confidence, self.twentieths.confidence),
        ):
            selected[ABOUT_90] = all_bins[ABOUT_90]
        return subsets.subset_metrics(near)

    @property
    def overall(self) -> SubsetMetrics:
        """Compute the metrics of all labelled pixels."""
        return subsets.subset_metrics(self.evaluation.bins)

    def kind(self, name: str) -> SubsetMetrics:
        """Compute the metrics of correct, mispredicted, boundary or interior pixels."""
        return subsets.subset_metrics(self._bins(name))

    def kind_reliability(self, name: str) -> list[ReliabilityBin]:
        """List the pooled bins of correct, mispredicted, boundary or interior pixels."""
        return self._bins(name).curve()

    def _bins(self, name: str) -> ReliabilityBins:
        return self._kinds.get(name, ReliabilityBins(subsets.BINS))

    def classes(self) -> list[ClassAssessment]:
        """Compute the metrics of each class, by id."""
        confusion = self.evaluation.confusion
        rows = zip(
            confusion.sum(1),
            class_iou(confusion),
            class_dice(confusion),
            class_recall(confusion),
            strict=True,
        )
        empty = ReliabilityBins(subsets.BINS)
        return [
            ClassAssessment(
                pixels=int(pixels),
                iou=float(iou),
                dice=float(dice),
                recall=float(recall),
                predicted=subsets.subset_metrics(self._classes.get(k, empty)),
            )
            for k, (pixels, iou, dice, recall) in enumerate(rows)
        ]
