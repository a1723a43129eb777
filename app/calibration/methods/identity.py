"""No calibration: the plain softmax, a candidate like any other."""

from typing import ClassVar

from torch import Tensor

from app.calibration.base import Calibrator, FitContext, Invariances, finite_logits
from app.calibration.dataset import ValidationSet


class Identity(Calibrator):
    """softmax(z)."""

    method: ClassVar[str] = "identity"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=True)

    def forward(self, logits: Tensor) -> Tensor:
        """Logits [N,K,...] to log-softmax."""
        return finite_logits(logits).log_softmax(dim=1)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Learn nothing."""

    def scale(self) -> float | None:
        """Leave logits as they are."""
        return 1.0
