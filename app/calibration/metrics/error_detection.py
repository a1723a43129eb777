"""Error-detection metrics: pixels predicted as wrong against pixels that are wrong."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from app.calibration.base import Calibrator
from app.calibration.dataset import IGNORE, LabelledImage


class ErrorDetectionMetrics(NamedTuple):
    """Accuracy, recall and precision in 0..1 with "mispredicted" as the positive class.

    NaN where the denominator is 0. Source: Wang et al. 2023, who call the detector a selector.
    """

    accuracy: float
    recall: float
    precision: float


@dataclass
class ErrorDetection:
    """Number of pixels: all, predicted as wrong, wrong, and both."""

    pixels: int = 0
    predicted: int = 0
    wrong: int = 0
    both: int = 0

    def add(self, predicted: Tensor, wrong: Tensor) -> None:
        """Add pixels: predicted as wrong and wrong, both bool [m]."""
        self.pixels += len(wrong)
        self.predicted += int(predicted.sum())
        self.wrong += int(wrong.sum())
        self.both += int((predicted & wrong).sum())

    def metrics(self) -> ErrorDetectionMetrics:
        """Compute the metrics of all pixels added."""
        mistaken = self.predicted + self.wrong - 2 * self.both
        return ErrorDetectionMetrics(
            accuracy=_fraction(self.pixels - mistaken, self.pixels),
            recall=_fraction(self.both, self.wrong),
            precision=_fraction(self.both, self.predicted),
        )


def predicted_errors(calibrator: Calibrator, image: LabelledImage, logits: Tensor) -> Tensor | None:
    """Predict which labelled pixels of an image are wrong, bool [m], from their logits [m,K].

    Spatial calibrators use the whole image instead of `logits`. None for calibrators without a
    misclassification detector.
    """
    if not calibrator.invariances.spatial:
        detection = calibrator.predict_errors(logits.T[None])
        return None if detection is None else detection[0]
    detection = calibrator.with_image(image.image).predict_errors(image.logits[None].float())
    return None if detection is None else detection[0][image.labels != IGNORE]


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
