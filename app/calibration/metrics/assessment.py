"""One way of reading confidence, measured over a labelled set from every side a person asks about.

Memory is O(K^2 + bins) and a few numbers per image.
"""

from typing import NamedTuple, Self

import numpy as np
from torch import Tensor

from app.calibration.dataset import IGNORE
from app.calibration.metrics import subsets as analyses
from app.calibration.metrics.evaluation import IMAGE_BINS, Evaluation
from app.calibration.metrics.reliability import ReliabilityBins
from app.calibration.metrics.segmentation import class_dice, class_iou, class_recall
from app.calibration.metrics.subsets import SubsetMetrics
from app.calibration.predictions import Prediction

CONFIDENT = 0.9  # from here on a wrong pixel is an error at high confidence
TWENTIETHS = 20  # so that 0.85..0.95 is two whole bins
ABOUT_90 = slice(17, 19)


class ImageAssessment(NamedTuple):
    """One image's figures in 0..1; NaN (and 0 pixels) where nothing is labelled.

    `confident_errors` is the share of labelled pixels that are wrong at a confidence of 0.9 or
    more, `ece` has 10 bins.
    """

    pixels: int
    ece: float
    accuracy: float
    confidence: float
    confident_errors: float


class ClassAssessment(NamedTuple):
    """One class's figures in 0..1; NaN where it has no pixel to measure them on.

    `pixels` are those labelled as the class, of which `recall` are predicted as it. `predicted`
    is over the pixels predicted as it, so its accuracy is the class's precision.
    """

    pixels: int
    iou: float
    dice: float
    recall: float
    predicted: SubsetMetrics


class Assessment:
    """Accumulates figures, groups of pixels, and images."""

    def __init__(self, num_classes: int) -> None:
        self.evaluation = Evaluation(num_classes)
        self.twentieths = ReliabilityBins(TWENTIETHS)
        self.images: list[ImageAssessment] = []  # in the order added
        self.boundary_errors: list[float] = []  # each image's ECE on its boundary band
        self._kinds: dict[str, ReliabilityBins] = {}
        self._classes: dict[int, ReliabilityBins] = {}

    def add(self, prediction: Prediction, labels: Tensor, nll: float, brier: float) -> Self:
        """Count one image: maps [h,w], labels IGNORE where unlabelled; sums over labelled pixels.

        Labels and predictions must be classes of the set.
        """
        kept = labels != IGNORE
        confidence, right = prediction.probabilities[kept], (prediction.classes == labels)[kept]
        self.evaluation.add_prediction(prediction, labels, nll, brier)
        self.twentieths.add(confidence, right)
        band = analyses.by_boundary(prediction, labels, bins=IMAGE_BINS)[analyses.BOUNDARY]
        self.boundary_errors.append(band.ece())
        for subsets in (analyses.by_correctness, analyses.by_boundary):
            analyses.merge(self._kinds, subsets(prediction, labels))
        analyses.merge(self._classes, analyses.by_class(prediction, labels))
        whole = self.evaluation.images[-1]
        sure_but_wrong = int(((confidence >= CONFIDENT) & ~right).sum())
        self.images.append(
            ImageAssessment(
                pixels=whole.pixels,
                ece=whole.ece,
                accuracy=whole.accuracy,
                confidence=float(confidence.double().mean()),
                confident_errors=sure_but_wrong / whole.pixels if whole.pixels else np.nan,
            )
        )
        return self

    @property
    def boundary_ece(self) -> float:
        """Image-wise ECE (10 bins) on the boundary bands; NaN where no classes meet."""
        errors = [error for error in self.boundary_errors if not np.isnan(error)]
        return float(np.mean(errors)) if errors else np.nan

    @property
    def about_90(self) -> SubsetMetrics:
        """Figures of the pixels whose confidence is in (0.85, 0.95]."""
        near = ReliabilityBins(TWENTIETHS)
        for ours, all_bins in (
            (near.counts, self.twentieths.counts),
            (near.hits, self.twentieths.hits),
            (near.confidence, self.twentieths.confidence),
        ):
            ours[ABOUT_90] = all_bins[ABOUT_90]
        return analyses.subset_metrics(near)

    @property
    def overall(self) -> SubsetMetrics:
        """Figures of all labelled pixels."""
        return analyses.subset_metrics(self.evaluation.bins)

    def kind(self, name: str) -> SubsetMetrics:
        """Figures of right, wrong, boundary or interior pixels, by the names in `analyses`."""
        return analyses.subset_metrics(self._kinds.get(name, ReliabilityBins(analyses.BINS)))

    def classes(self) -> list[ClassAssessment]:
        """Figures of every class, by id."""
        confusion = self.evaluation.confusion
        rows = zip(
            confusion.sum(1),
            class_iou(confusion),
            class_dice(confusion),
            class_recall(confusion),
            strict=True,
        )
        nothing = ReliabilityBins(analyses.BINS)
        return [
            ClassAssessment(
                pixels=int(pixels),
                iou=float(iou),
                dice=float(dice),
                recall=float(recall),
                predicted=analyses.subset_metrics(self._classes.get(k, nothing)),
            )
            for k, (pixels, iou, dice, recall) in enumerate(rows)
        ]
