"""Identity: the plain softmax, the uncalibrated model as a candidate."""

from typing import ClassVar

from torch import Tensor

from app.calibration.base import Calibrator, FitContext, Invariances, finite_logits
from app.calibration.dataset import ValidationSet


class Identity(Calibrator):
    """softmax(z)."""

    method: ClassVar[str] = "identity"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=True)
    auto_rank: ClassVar[int | None] = 0
    combines_with_selective: ClassVar[bool] = False

    def forward(self, logits: Tensor) -> Tensor:
        """Compute the log-softmax of logits [N,K,...]."""
        return finite_logits(logits).log_softmax(dim=1)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Do nothing: there are no parameters."""

    def scale(self) -> float | None:
        """Return 1."""
        return 1.0
