"""Segmentation metrics of label maps: accuracy, IoU, Dice, recall, UIoU and the boundary band.

Confusion matrices are int64 [K,K], labels by rows and predictions by columns. The sum of a set's
matrices gives the metrics of the set, one image's matrix those of the image.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d

from app.calibration.dataset import IGNORE
from app.errors import ArgumentError

ROUNDING = 1e-6  # relative

Counts = NDArray[np.int64]
Ratios = NDArray[np.float64]


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> Counts:
    """Count pixels by label and prediction, both int64 [m] in 0..K-1: int64 [K,K]."""
    cells = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).cpu().numpy()


def accuracy(confusion: Counts) -> float:
    """Compute the fraction of pixels in [0,1] whose prediction is their label, or NaN."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else np.nan


def mean_iou(confusion: Counts) -> float:
    """Compute the mean IoU in [0,1] over classes that are labelled or predicted, or NaN."""
    return _mean(class_iou(confusion))


def class_iou(confusion: Counts) -> Ratios:
    """Compute TP/(TP+FP+FN) of each class, [K]; NaN where neither labelled nor predicted."""
    hits = np.diagonal(confusion)
    return _ratios(hits, confusion.sum(0) + confusion.sum(1) - hits)


def class_dice(confusion: Counts) -> Ratios:
    """Compute 2TP/(2TP+FP+FN) of each class, [K]; NaN where neither labelled nor predicted."""
    return _ratios(2 * np.diagonal(confusion), confusion.sum(0) + confusion.sum(1))


def class_recall(confusion: Counts) -> Ratios:
    """Compute TP/(TP+FN) of each class, [K]; NaN without a labelled pixel."""
    return _ratios(np.diagonal(confusion), confusion.sum(1))


def boundary_band(labels: Tensor, radius: int = 2) -> Tensor:
    """Mark the labelled pixels near another class: int64 [h,w] to bool [h,w].

    Near is a Chebyshev distance of at most `radius` to a labelled pixel of another class.
    Unlabelled pixels (IGNORE) are ignored on both sides. Raises ArgumentError for other than two
    axes or a radius below 1.
    """
    if labels.ndim != 2 or radius < 1:
        raise ArgumentError(
            f"expected a label map [h,w] and a radius of at least 1, got {list(labels.shape)} "
            f"and {radius}"
        )
    valid = labels != IGNORE
    # Pooling pads with -inf, and float64 represents every label exactly.
    values = labels.double()[None]
    highest = _dilated(torch.where(valid, values, -torch.inf), radius)
    lowest = -_dilated(torch.where(valid, -values, -torch.inf), radius)
    return valid & ((highest != values) | (lowest != values))[0]


def theta_grid(num_classes: int, points: int = 10) -> list[float]:
    """List confidence thresholds evenly spaced over [1/K, 1], ends included, for AUIoU.

    The benchmark's own grid is not published. At 1/K, UIoU equals IoU.
    """
    return [float(theta) for theta in np.linspace(1 / num_classes, 1, points)]


class UncertaintyIoU:
    """Uncertainty-aware IoU (UIoU) and its average over thresholds (Sakaridis et al. 2021, ACDC).

    A pixel is invalidated where its confidence is below theta. The UIoU of a class is
    (TP+TI)/(TP+TI+FP+FN+FI), with TP, FP and FN over the other pixels, TI the invalidated pixels
    that the ground truth marks as invalid, and FI those that it does not. UIoU depends on
    temperature and does not measure calibration. Memory O(thetas x classes). Raises ArgumentError
    without thetas.
    """

    def __init__(self, num_classes: int, thetas: Sequence[float]) -> None:
        if not thetas:
            raise ArgumentError("expected at least one theta, got none")
        self.num_classes = num_classes
        self.thetas = tuple(thetas)
        self.credited: Counts = np.zeros((len(thetas), num_classes), np.int64)
        self.union: Counts = np.zeros_like(self.credited)

    def add(self, confidence: Tensor, predicted: Tensor, labels: Tensor, invalid: Tensor) -> Self:
        """Add labelled pixels: confidence float [m], predicted and labels int64 [m] in 0..K-1.

        `invalid` bool [m] marks the pixels whose class is uncertain in the ground truth.
        """
        for row, theta in enumerate(self.thetas):
            # A uniform pixel's confidence is 1/K up to rounding, and is kept at theta = 1/K.
            kept = confidence >= torch.tensor(theta * (1 - ROUNDING), dtype=confidence.dtype)
            confusion = confusion_matrix(labels[kept], predicted[kept], self.num_classes)
            hits = np.diagonal(confusion)
            invalidated = self._count(labels[~kept])
            self.credited[row] += hits + self._count(labels[~kept & invalid])
            self.union[row] += confusion.sum(0) + confusion.sum(1) - hits + invalidated
        return self

    def merge(self, other: "UncertaintyIoU") -> Self:
        """Add another object's counts; raises ArgumentError for other classes or thetas."""
        if (other.num_classes, other.thetas) != (self.num_classes, self.thetas):
            raise ArgumentError(
                f"expected {self.num_classes} classes and thetas {self.thetas}, "
                f"got {other.num_classes} and {other.thetas}"
            )
        self.credited += other.credited
        self.union += other.union
        return self

    def uiou(self) -> list[float]:
        """Compute UIoU, the mean over classes in [0,1], at each theta; NaN without pixels."""
        return [_mean(_ratios(*rows)) for rows in zip(self.credited, self.union, strict=True)]

    def auiou(self) -> float:
        """Compute AUIoU, the mean UIoU over the thetas, in [0,1]; NaN without pixels."""
        return float(np.mean(self.uiou()))

    def _count(self, labels: Tensor) -> Counts:
        return torch.bincount(labels, minlength=self.num_classes).cpu().numpy()


def _dilated(values: Tensor, radius: int) -> Tensor:
    """Compute the maximum over each pixel's square of side 2 radius + 1: [1,h,w]."""
    return max_pool2d(values, 2 * radius + 1, stride=1, padding=radius)


def _ratios(parts: Counts, wholes: Counts) -> Ratios:
    """Divide parts [K] by wholes [K]; NaN where the whole is 0."""
    ratios: Ratios = np.divide(parts, wholes, out=np.full(len(parts), np.nan), where=wholes > 0)
    return ratios


def _mean(ratios: Ratios) -> float:
    """Compute the mean over the classes whose ratio is not NaN; NaN without any."""
    held = ratios[~np.isnan(ratios)]
    return float(held.mean()) if len(held) else np.nan
