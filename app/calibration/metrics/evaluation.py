"""Evaluate calibration, ranking and segmentation metrics image by image in bounded memory.

Conventions: confidence is the highest probability; NLL clips probabilities at 1e-12; the Brier
score is the sum over classes, in [0,2] (Brier 1950). Image-wise ECE weighs images equally; with
equal pixel counts and bins it is at least the pooled ECE.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from app.calibration.dataset import IGNORE
from app.calibration.metrics.confidence_histogram import ConfidenceHistogram
from app.calibration.metrics.reliability import ReliabilityBin, ReliabilityBins
from app.calibration.metrics.segmentation import Counts, accuracy, confusion_matrix, mean_iou
from app.calibration.predictions import Prediction
from app.errors import ArgumentError

IMAGE_BINS = 10
CONFIDENCE_MARGIN = 1e-6  # bounds the NLL of correctness where a confidence is rounded to 1
POOLED_BINS = 15
LOG_FLOOR = math.log(1e-12)


@dataclass(frozen=True)
class Metrics:
    """A set's metrics; NaN where one is undefined, as AUROC is without errors."""

    images: int  # those with a labelled pixel
    pixels: int
    ece_image: float  # 10 bins, plain mean over images
    ece_pooled: float  # 15 bins, all pixels weigh equally
    nll: float
    brier: float
    correctness_nll: float  # of confidence against correctness, plain mean over images
    auroc_misprediction: float
    aurc: float
    miou: float
    accuracy: float


class ImageMetrics(NamedTuple):
    """One image's metrics; 0 pixels and NaN where no pixel is labelled."""

    pixels: int
    ece: float
    nll: float
    brier: float
    correctness_nll: float  # of confidence against correctness, a proper score
    aurc: float
    accuracy: float


class Evaluation:
    """Metrics accumulated over the images of a set; merging two halves equals one pass.

    Memory is O(K^2 + bins) and seven numbers per image.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.bins = ReliabilityBins(POOLED_BINS)
        self.confidence_histogram = ConfidenceHistogram()
        self.confusion: Counts = np.zeros((num_classes, num_classes), np.int64)
        self.images: list[ImageMetrics] = []  # in the order added, so that two can be paired
        self.nll = self.brier = 0.0  # sums over pixels

    def add(
        self, log_probabilities: Tensor, labels: Tensor, predicted: Tensor | None = None
    ) -> Self:
        """Add one image's labelled pixels: log-probabilities float [m,K], labels int64 [m].

        `predicted` int64 [m] are the classes of the label map, by default the most probable ones.
        An image with m = 0 adds NaN to `images` and changes nothing else. Raises ArgumentError
        for other shapes, for NaN, and for labels outside 0..K-1.
        """
        if predicted is None:
            predicted = log_probabilities.argmax(1) if log_probabilities.ndim == 2 else labels
        self._check(log_probabilities, labels, predicted)
        probabilities = log_probabilities.exp()
        chosen = log_probabilities.gather(1, labels[:, None])[:, 0]
        nll = -chosen.clamp(min=LOG_FLOOR).double().sum().item()
        squares = probabilities.square().sum(1) - 2 * chosen.exp() + 1
        brier = squares.double().sum().item()
        # A top log-probability may exceed 0 by a rounding.
        confidence = log_probabilities.amax(1).exp().clamp(max=1)
        self.count(confidence, labels, predicted, nll, brier)
        return self

    def add_prediction(
        self,
        prediction: Prediction,
        labels: Tensor,
        nll: float = math.nan,
        brier: float = math.nan,
    ) -> None:
        """Count one image's prediction against its labels int64, IGNORE where unlabelled.

        `nll` and `brier` are sums over the labelled pixels, NaN where only the label's probability
        is known.
        """
        labelled = labels != IGNORE
        self.count(
            prediction.probabilities[labelled],
            labels[labelled],
            prediction.classes[labelled],
            nll,
            brier,
        )

    def count(
        self, confidence: Tensor, labels: Tensor, predicted: Tensor, nll: float, brier: float
    ) -> None:
        """Add one image from its confidence, without the K probabilities of each pixel.

        Labelled pixels: confidence float [m] in 0..1, labels and predicted int64 [m] in 0..K-1;
        `nll` and `brier` are sums over them.
        """
        correct = predicted == labels
        confidence_histogram = ConfidenceHistogram().add(confidence, correct)
        confusion = confusion_matrix(labels, predicted, self.num_classes)
        pixels = len(labels)
        self.images.append(
            ImageMetrics(
                pixels=pixels,
                ece=ReliabilityBins(IMAGE_BINS).add(confidence, correct).ece(),
                nll=nll / pixels if pixels else np.nan,
                brier=brier / pixels if pixels else np.nan,
                correctness_nll=_log_loss(confidence, correct),
                aurc=confidence_histogram.aurc(),
                accuracy=accuracy(confusion),
            )
        )
        self.bins.add(confidence, correct)
        self.confidence_histogram.merge(confidence_histogram)
        self.confusion += confusion
        self.nll += nll
        self.brier += brier

    def merge(self, other: "Evaluation") -> Self:
        """Add another evaluation; raises ArgumentError for another number of classes."""
        if other.num_classes != self.num_classes:
            raise ArgumentError(f"expected {self.num_classes} classes, got {other.num_classes}")
        self.bins.merge(other.bins)
        self.confidence_histogram.merge(other.confidence_histogram)
        self.confusion += other.confusion
        self.images += other.images
        self.nll += other.nll
        self.brier += other.brier
        return self

    def result(self) -> Metrics:
        """Compute the metrics of all images added."""
        labelled = [image for image in self.images if image.pixels]
        pixels = int(self.confusion.sum())
        return Metrics(
            images=len(labelled),
            pixels=pixels,
            ece_image=_mean(image.ece for image in labelled),
            ece_pooled=self.bins.ece(),
            nll=self.nll / pixels if pixels else np.nan,
            brier=self.brier / pixels if pixels else np.nan,
            correctness_nll=_mean(image.correctness_nll for image in labelled),
            auroc_misprediction=self.confidence_histogram.auroc(),
            aurc=self.confidence_histogram.aurc(),
            miou=mean_iou(self.confusion),
            accuracy=accuracy(self.confusion),
        )

    def reliability(self) -> list[ReliabilityBin]:
        """List the pooled bins (lower, upper, pixels, mean confidence, accuracy)."""
        return self.bins.curve()

    def _check(self, log_probabilities: Tensor, labels: Tensor, predicted: Tensor) -> None:
        shapes = [list(t.shape) for t in (log_probabilities, labels, predicted)]
        m = len(labels) if labels.ndim else 0
        if shapes != [[m, self.num_classes], [m], [m]]:
            raise ArgumentError(
                f"expected log-probabilities [m,{self.num_classes}], labels [m] and predicted "
                f"[m], got {shapes}"
            )
        for name, classes in (("labels", labels), ("predicted classes", predicted)):
            if m and not 0 <= classes.min() <= classes.max() < self.num_classes:
                raise ArgumentError(
                    f"expected {name} in 0..{self.num_classes - 1}, got "
                    f"{classes.min().item()}..{classes.max().item()}"
                )
        if torch.isnan(log_probabilities).any():
            raise ArgumentError("expected log-probabilities, got NaN among them")


def _mean(values: Iterable[float]) -> float:
    """Compute a plain mean; NaN without values."""
    kept = list(values)
    return float(np.mean(kept)) if kept else np.nan


def _log_loss(confidence: Tensor, correct: Tensor) -> float:
    """Compute the mean of -log of the probability given to (in)correctness; NaN without pixels."""
    if not len(correct):
        return np.nan
    bounded = confidence.double().clamp(CONFIDENCE_MARGIN, 1 - CONFIDENCE_MARGIN)
    return float(-torch.where(correct, bounded, 1 - bounded).log().mean())
