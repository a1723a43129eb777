"""Ensemble temperature scaling (Zhang et al. 2020): a mixture of three distributions.

The temperature is fitted first, then the weights, each a convex problem in the negative
log-likelihood. At T near 1 the first two distributions coincide, and only the sum of their weights
is identified.
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

ROWS = 1 << 18  # pixels at a time
SMALLEST_WEIGHT = 1e-30  # keeps the logarithm of a zero weight finite


class Ensemble(Pixelwise):
    """w0 softmax(z/T) + w1 softmax(z) + w2/K, w on the simplex; labels never change."""

    method: ClassVar[str] = "ets"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=True)
    auto_rank: ClassVar[int | None] = 2
    beta: Tensor
    weights: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("beta", torch.ones(()))
        self.register_buffer("weights", torch.tensor([1.0, 0.0, 0.0]))

    def calibrate_rows(self, rows: Tensor) -> Tensor:
        """Map logits [...,K] to log-probabilities [...,K]."""
        scaled = (rows * self.beta).log_softmax(dim=-1)
        plain = rows.log_softmax(dim=-1)
        uniform = torch.zeros_like(rows).log_softmax(dim=-1)
        parts = torch.stack([scaled, plain, uniform], dim=-1)
        return (parts + self.weights.clamp_min(SMALLEST_WEIGHT).log()).logsumexp(dim=-1)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Minimise the mean negative log-likelihood, temperature first.

        Raises ArgumentError where fewer than two classes are labelled.
        """
        counts = count_classes(data)
        require_two_classes(counts)
        beta = fit_inverse_temperature(data, context)
        start = torch.tensor([[0.98, 0.01, 0.01]], dtype=torch.float64)
        problem = MixtureProblem(data, int(counts.sum()), beta, start)
        weights = minimise(problem, start, context, "weights", torch.zeros_like(start))[0]
        self.beta.fill_(beta)
        self.weights.copy_(weights / weights.sum())

    def summary(self) -> dict[str, float]:
        """Return the temperature and the weights; at T near 1 only w0 + w1 is identified."""
        scaled, plain, uniform = self.weights.tolist()
        return {
            "temperature": 1 / self.beta.item(),
            "weight_scaled": scaled,
            "weight_plain": plain,
            "weight_scaled_plus_plain": scaled + plain,
            "weight_uniform": uniform,
        }


class MixtureProblem:
    """Minimise E[-log(w.q)] + sum(w) over weights w >= 0; q: the label's three probabilities.

    The term sum(w) replaces a Lagrange multiplier: at the minimum the weights sum to 1. See
    `solvers.Problem`. All q are held in memory, 24 bytes a pixel, so the logits are read once.
    """

    def __init__(self, data: ValidationSet, pixels: int, beta: float, start: Tensor) -> None:
        # One allocation: small ones between the chunks' temporaries would fragment the heap.
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
        """Compute the value [1] and gradient [1,3]; infinite where a label's probability is 0."""
        value, gradient = point.new_zeros(()), torch.zeros_like(point[0])
        for mixture, true in self._mixtures(point[0]):
            value -= mixture.log().sum()
            gradient -= (true / mixture[:, None]).sum(0)
        count = len(self.true)
        return (value / count + point.sum())[None], (gradient / count + 1)[None]

    def precondition(self, gradient: Tensor) -> Tensor:
        """Multiply a gradient [1,3] by the inverse Hessian at the start."""
        divided: Tensor = gradient @ self.inverse
        return divided

    def _mixtures(self, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for true in torch.split(self.true, ROWS):
            yield true @ weights, true


def _true_probabilities(logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Compute the label's probability under each of the three distributions, float64 [m,3]."""
    place = labels[:, None]
    scaled = (logits * beta).log_softmax(1).gather(1, place)
    plain = logits.log_softmax(1).gather(1, place)
    uniform = torch.zeros_like(plain) - torch.log(torch.tensor(float(logits.shape[1])))
    return torch.cat([scaled, plain, uniform], dim=1).double().exp()
