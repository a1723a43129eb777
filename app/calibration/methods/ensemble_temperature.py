"""Ensemble temperature scaling (Zhang et al. 2020): three distributions, mixed.

First the temperature, then the weights, each a convex problem in the negative log-likelihood. At
T near 1 the first two distributions are the same, and only the sum of their weights means much.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from app.calibration.base import FitContext, Invariances, Pixelwise
from app.calibration.dataset import ValidationSet
from app.calibration.methods.temperature import fit_inverse_temperature
from app.calibration.sampling import chunks, count_classes, require_two_classes
from app.calibration.solvers import minimise

ROWS = 1 << 18  # of probabilities at a time
SMALLEST_WEIGHT = 1e-30  # a weight of zero has no logarithm


class Ensemble(Pixelwise):
    """w0 softmax(z/T) + w1 softmax(z) + w2/K, w on the simplex; labels never change."""

    method: ClassVar[str] = "ets"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=True)
    beta: Tensor
    weights: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("beta", torch.ones(()))
        self.register_buffer("weights", torch.tensor([1.0, 0.0, 0.0]))

    def calibrate_rows(self, rows: Tensor) -> Tensor:
        """Logits [...,K] to log-probabilities [...,K]."""
        scaled = (rows * self.beta).log_softmax(dim=-1)
        plain = rows.log_softmax(dim=-1)
        uniform = torch.zeros_like(rows).log_softmax(dim=-1)
        parts = torch.stack([scaled, plain, uniform], dim=-1)
        return (parts + self.weights.clamp_min(SMALLEST_WEIGHT).log()).logsumexp(dim=-1)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Minimise the mean negative log-likelihood, temperature first; needs two classes."""
        counts = count_classes(data)
        require_two_classes(counts)
        beta = fit_inverse_temperature(data, context)
        start = torch.tensor([[0.98, 0.01, 0.01]], dtype=torch.float64)
        problem = MixtureProblem(data, int(counts.sum()), beta, start)
        weights = minimise(problem, start, context, "weights", torch.zeros_like(start))[0]
        self.beta.fill_(beta)
        self.weights.copy_(weights / weights.sum())

    def summary(self) -> dict[str, float]:
        """Give the temperature and the weights; w0 + w1 is what is identified at T near 1."""
        scaled, plain, uniform = self.weights.tolist()
        return {
            "temperature": 1 / self.beta.item(),
            "weight_scaled": scaled,
            "weight_plain": plain,
            "weight_scaled_plus_plain": scaled + plain,
            "weight_uniform": uniform,
        }


class MixtureProblem:
    """Weights w >= 0 of least E[-log(w.q)] + sum(w), q the true class's three probabilities.

    The sum is what a Lagrange multiplier would add: at the minimum w adds up to one. See
    `optimisation.Problem`. All q are kept, 24 bytes a pixel: logits are read once.
    """

    def __init__(self, data: ValidationSet, pixels: int, beta: float, start: Tensor) -> None:
        # In one piece: small ones among the chunks' temporaries would keep those from being freed.
        self.true, filled = torch.empty(pixels, 3, dtype=torch.float64), 0
        for logits, labels in chunks(data):
            self.true[filled : filled + len(labels)] = _true_probabilities(logits, labels, beta)
            filled += len(labels)
        hessian = torch.zeros(3, 3, dtype=torch.float64)
        for mixture, true in self._mixtures(start[0]):
            ratio = true / mixture[:, None]
            hessian += ratio.T @ ratio
        self.inverse = torch.linalg.inv(hessian / pixels + 1e-9 * torch.eye(3))

    def evaluate(self, point: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Value [1] and gradient [1,3]; infinite where a true class gets probability 0."""
        value, gradient = point.new_zeros(()), torch.zeros_like(point[0])
        for mixture, true in self._mixtures(point[0]):
            value -= mixture.log().sum()
            gradient -= (true / mixture[:, None]).sum(0)
        count = len(self.true)
        return (value / count + point.sum())[None], (gradient / count + 1)[None]

    def precondition(self, gradient: Tensor) -> Tensor:
        """Divide by the Hessian at the start."""
        divided: Tensor = gradient @ self.inverse
        return divided

    def _mixtures(self, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for true in torch.split(self.true, ROWS):
            yield true @ weights, true


def _true_probabilities(logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Take the true class's probability in each of the three parts, float64 [m,3]."""
    place = labels[:, None]
    scaled = (logits * beta).log_softmax(1).gather(1, place)
    plain = logits.log_softmax(1).gather(1, place)
    uniform = torch.zeros_like(plain) - torch.log(torch.tensor(float(logits.shape[1])))
    return torch.cat([scaled, plain, uniform], dim=1).double().exp()
