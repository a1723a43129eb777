"""How good a selector's verdicts are: which pixels it took for mispredicted, and which were."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from app.calibration.base import Calibrator
from app.calibration.dataset import IGNORE, LabelledImage


class SelectorFigures(NamedTuple):
    """Shares in 0..1, NaN where nothing was counted.

    `accuracy` is the share of pixels with a true verdict, `recall` the share of mispredicted
    pixels that were suspected, `precision` the share of suspected pixels that were mispredicted
    (Wang et al. 2023 speak of a selector that predicts misprediction).
    """

    accuracy: float
    recall: float
    precision: float


@dataclass
class Verdicts:
    """Counts of pixels; two halves added equal one pass."""

    pixels: int = 0
    suspected: int = 0
    wrong: int = 0
    both: int = 0

    def add(self, suspected: Tensor, wrong: Tensor) -> None:
        """Count pixels: bool [m] twice."""
        self.pixels += len(wrong)
        self.suspected += int(suspected.sum())
        self.wrong += int(wrong.sum())
        self.both += int((suspected & wrong).sum())

    def figures(self) -> SelectorFigures:
        """Sum up."""
        mistaken = self.suspected + self.wrong - 2 * self.both
        return SelectorFigures(
            accuracy=_share(self.pixels - mistaken, self.pixels),
            recall=_share(self.both, self.wrong),
            precision=_share(self.both, self.suspected),
        )


def suspected_pixels(calibrator: Calibrator, image: LabelledImage, logits: Tensor) -> Tensor | None:
    """Give an image's labelled pixels' verdicts, bool [m], from their logits [m,K].

    A spatial calibrator reads the whole image instead; one without a selector gives None.
    """
    if not calibrator.invariances.spatial:
        verdicts = calibrator.suspects(logits.T[None])
        return None if verdicts is None else verdicts[0]
    verdicts = calibrator.seeing(image.picture).suspects(image.logits[None].float())
    return None if verdicts is None else verdicts[0][image.labels != IGNORE]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
