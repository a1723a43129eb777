"""How good a selector's verdicts are: which pixels it took for mispredicted, and which were."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from app.calibration.base import Calibrator
from app.calibration.dataset import IGNORE, LabelledImage


class ErrorDetectionMetrics(NamedTuple):
    """Shares in 0..1, NaN where nothing was counted.

    `accuracy` is the share of pixels with a true verdict, `recall` the share of mispredicted
    pixels that were suspected, `precision` the share of suspected pixels that were mispredicted
    (Wang et al. 2023 speak of a selector that predicts misprediction).
    """

    accuracy: float
    recall: float
    precision: float


@dataclass
class ErrorDetection:
    """Counts of pixels; two halves added equal one pass."""

    pixels: int = 0
    predicted: int = 0
    wrong: int = 0
    both: int = 0

    def add(self, predicted: Tensor, wrong: Tensor) -> None:
        """Count pixels: bool [m] twice."""
        self.pixels += len(wrong)
        self.predicted += int(predicted.sum())
        self.wrong += int(wrong.sum())
        self.both += int((predicted & wrong).sum())

    def metrics(self) -> ErrorDetectionMetrics:
        """Sum up."""
        mistaken = self.predicted + self.wrong - 2 * self.both
        return ErrorDetectionMetrics(
            accuracy=_share(self.pixels - mistaken, self.pixels),
            recall=_share(self.both, self.wrong),
            precision=_share(self.both, self.predicted),
        )


def predicted_errors(calibrator: Calibrator, image: LabelledImage, logits: Tensor) -> Tensor | None:
    """Give an image's labelled pixels' verdicts, bool [m], from their logits [m,K].

    A spatial calibrator reads the whole image instead; one without a selector gives None.
    """
    if not calibrator.invariances.spatial:
        detection = calibrator.predict_errors(logits.T[None])
        return None if detection is None else detection[0]
    detection = calibrator.with_image(image.image).predict_errors(image.logits[None].float())
    return None if detection is None else detection[0][image.labels != IGNORE]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
