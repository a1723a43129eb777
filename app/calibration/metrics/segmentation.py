"""What label maps are measured by: overlap, its uncertainty-aware form, and the boundary band.

Confusion matrices are int64 [K,K], rows the labels, columns the predictions. Summed over a set
they give the set's figure; one image's give that image's.
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

Counts = NDArray[np.int64]
Ratios = NDArray[np.float64]


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> Counts:
    """Count pixels by label and prediction, both int64 [m] in 0..K-1: int64 [K,K]."""
    cells = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).cpu().numpy()


def accuracy(confusion: Counts) -> float:
    """Share of pixels, in [0,1], whose prediction is their label; NaN without pixels."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else np.nan


def mean_iou(confusion: Counts) -> float:
    """Mean in [0,1] of TP/(TP+FP+FN) over classes that are labelled or predicted, else NaN."""
    return _mean(class_iou(confusion))


def mean_dice(confusion: Counts) -> float:
    """Mean in [0,1] of 2TP/(2TP+FP+FN) over classes that are labelled or predicted, else NaN."""
    return _mean(class_dice(confusion))


def class_iou(confusion: Counts) -> Ratios:
    """TP/(TP+FP+FN) in [0,1] of each class, NaN for those neither labelled nor predicted: [K]."""
    hits = np.diagonal(confusion)
    return _ratios(hits, confusion.sum(0) + confusion.sum(1) - hits)


def class_dice(confusion: Counts) -> Ratios:
    """2TP/(2TP+FP+FN) in [0,1] of each class, NaN for those neither labelled nor predicted: [K]."""
    return _ratios(2 * np.diagonal(confusion), confusion.sum(0) + confusion.sum(1))


def class_recall(confusion: Counts) -> Ratios:
    """TP/(TP+FN) in [0,1] of each class, NaN for those without a labelled pixel: [K]."""
    return _ratios(np.diagonal(confusion), confusion.sum(1))


def boundary_band(labels: Tensor, radius: int = 2) -> Tensor:
    """Mark the labelled pixels near another class, for boundary ECE: int64 [h,w] to bool [h,w].

    Near is a Chebyshev distance of at most `radius` to a labelled pixel of another class.
    Unlabelled pixels (IGNORE) neither make nor enter the band. Boundary ECE is the image-wise ECE
    of an `Evaluation` that is given the band's pixels only. Raises ArgumentError for other than
    two axes or a radius below 1.
    """
    if labels.ndim != 2 or radius < 1:
        raise ArgumentError(
            f"expected a label map [h,w] and a radius of at least 1, got {list(labels.shape)} "
            f"and {radius}"
        )
    valid = labels != IGNORE
    # Pooling pads with -inf, and float64 holds every label exactly.
    values = labels.double()[None]
    highest = _dilated(torch.where(valid, values, -torch.inf), radius)
    lowest = -_dilated(torch.where(valid, -values, -torch.inf), radius)
    return valid & ((highest != values) | (lowest != values))[0]


def theta_grid(num_classes: int, points: int = 10) -> list[float]:
    """Confidences evenly spaced over [1/K, 1], both ends taken, to average UIoU over.

    The benchmark's own grid is not published; the lowest point makes UIoU the plain IoU.
    """
    return [float(theta) for theta in np.linspace(1 / num_classes, 1, points)]


class UncertaintyIoU:
    """UIoU (Sakaridis et al. 2021, ACDC): IoU that also credits doubt where labels are doubtful.

    A pixel is invalidated where its confidence is below theta. Per class it is then
    (TP+TI)/(TP+TI+FP+FN+FI), over kept pixels for T/F P/N, over invalidated ones for TI (marked
    invalid in the ground truth) and FI (not marked). With theta = 1/K it is the IoU. It moves with
    temperature and is no measure of calibration. Memory O(thetas x classes).
    """

    def __init__(self, num_classes: int, thetas: Sequence[float]) -> None:
        if not thetas:
            raise ArgumentError("expected at least one theta, got none")
        self.num_classes = num_classes
        self.thetas = tuple(thetas)
        self.credited: Counts = np.zeros((len(thetas), num_classes), np.int64)
        self.union: Counts = np.zeros_like(self.credited)

    def add(self, confidence: Tensor, predicted: Tensor, labels: Tensor, invalid: Tensor) -> Self:
        """Count labelled pixels: confidence float [m], predicted and labels int64 [m] in 0..K-1.

        `invalid` bool [m] marks the pixels whose class the ground truth itself holds doubtful.
        """
        for row, theta in enumerate(self.thetas):
            kept = confidence >= torch.tensor(theta, dtype=confidence.dtype)
            confusion = confusion_matrix(labels[kept], predicted[kept], self.num_classes)
            hits = np.diagonal(confusion)
            invalidated = self._count(labels[~kept])
            self.credited[row] += hits + self._count(labels[~kept & invalid])
            self.union[row] += confusion.sum(0) + confusion.sum(1) - hits + invalidated
        return self

    def merge(self, other: "UncertaintyIoU") -> Self:
        """Take over what another has counted; ArgumentError where classes or thetas differ."""
        if (other.num_classes, other.thetas) != (self.num_classes, self.thetas):
            raise ArgumentError(
                f"expected {self.num_classes} classes and thetas {self.thetas}, "
                f"got {other.num_classes} and {other.thetas}"
            )
        self.credited += other.credited
        self.union += other.union
        return self

    def uiou(self) -> list[float]:
        """Mean over classes at each theta, in [0,1]; NaN without pixels."""
        return [_mean(_ratios(*rows)) for rows in zip(self.credited, self.union, strict=True)]

    def auiou(self) -> float:
        """Plain mean of UIoU over the thetas, in [0,1]; NaN without pixels."""
        return float(np.mean(self.uiou()))

    def _count(self, labels: Tensor) -> Counts:
        return torch.bincount(labels, minlength=self.num_classes).cpu().numpy()


def _dilated(values: Tensor, radius: int) -> Tensor:
    """Take the highest value in each pixel's square of side 2 radius + 1: [1,h,w]."""
    return max_pool2d(values, 2 * radius + 1, stride=1, padding=radius)


def _ratios(parts: Counts, wholes: Counts) -> Ratios:
    """Divide parts [K] by wholes [K]; NaN where the whole is empty."""
    ratios: Ratios = np.divide(parts, wholes, out=np.full(len(parts), np.nan), where=wholes > 0)
    return ratios


def _mean(ratios: Ratios) -> float:
    """Mean over the classes that have a ratio, NaN without any."""
    held = ratios[~np.isnan(ratios)]
    return float(held.mean()) if len(held) else np.nan
