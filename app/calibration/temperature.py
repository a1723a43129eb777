"""Temperature scaling (Guo et al. 2017): one number that divides all logits.

The mean negative log-likelihood is convex in the inverse temperature beta, so a coarse grid and a
few guarded Newton steps, each one streaming pass, solve it to convergence. Labels never change.
"""

from typing import ClassVar

import torch
from torch import Tensor

from app.calibration.base import (
    TEMPERATURE_RANGE,
    Calibrator,
    FitContext,
    Invariances,
    prepared,
)
from app.calibration.validation import ValidationSet, pixels
from app.errors import ArgumentError

NEWTON_STEPS = 30
BETA_RANGE = (1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0])


class Temperature(Calibrator):
    """softmax(z / T), T in [0.05, 1e4]; kept as the multiplier beta = 1/T."""

    method: ClassVar[str] = "temperature"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=True)
    beta: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("beta", torch.ones(()))

    def forward(self, logits: Tensor) -> Tensor:
        """Logits [N,K,...] to log-softmax(beta z)."""
        return (prepared(logits) * self.beta).log_softmax(dim=1)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Minimise the mean negative log-likelihood over all labelled pixels."""
        self.beta.fill_(fit_inverse_temperature(data, context))

    def scale(self) -> float | None:
        """Give the inverse temperature."""
        return self.beta.item()

    def summary(self) -> dict[str, float]:
        """Give the temperature."""
        return {"temperature": 1 / self.beta.item()}


def fit_inverse_temperature(data: ValidationSet, context: FitContext) -> float:
    """Find the beta in [1e-4, 20] of least mean negative log-likelihood, to 1e-7 relative.

    Newton's step is taken where it stays inside the bracket that the gradient's sign has left,
    and the bracket is halved (in log beta) otherwise; a perfect model ends at the upper end.
    """
    low, high = BETA_RANGE
    beta = 1.0
    for step in range(NEWTON_STEPS):
        context.progress("temperature", step / NEWTON_STEPS)
        slope, curvature = _derivatives(data, beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        proposal = beta - slope / curvature if curvature > 0 else 0.0
        if not low < proposal < high:
            proposal = (low * high) ** 0.5
        if abs(proposal - beta) <= 1e-7 * beta:
            break
        beta = proposal
    context.progress("temperature", 1.0)
    return beta


def _derivatives(data: ValidationSet, beta: float) -> tuple[float, float]:
    """First and second derivative of the mean negative log-likelihood in beta, one pass."""
    slope = curvature = 0.0
    count = 0
    for logits, labels in pixels(data):
        probabilities = (logits * beta).softmax(dim=1)
        mean = (probabilities * logits).sum(dim=1)
        chosen = logits.gather(1, labels[:, None])[:, 0]
        spread = (probabilities * (logits - mean[:, None]).square()).sum(dim=1)
        slope += (mean - chosen).double().sum().item()
        curvature += spread.double().sum().item()
        count += len(labels)
    if count == 0:
        raise ArgumentError("expected at least one labelled pixel to fit on, got none")
    return slope / count, curvature / count
