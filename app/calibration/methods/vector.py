"""Vector scaling (Guo et al. 2017): a weight and a bias for each class."""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from app.calibration.base import (
    FitContext,
    Invariances,
    Pixelwise,
    floored_log_softmax,
    summed_products,
)
from app.calibration.dataset import ValidationSet
from app.calibration.methods.temperature import fit_inverse_temperature
from app.calibration.sampling import (
    Sample,
    chunks,
    cut,
    draw,
    require_two_classes,
)
from app.calibration.solvers import minimise

RIDGE = 0.01  # towards the identity, in pixels: keeps parameters finite for separable sets


class Vector(Pixelwise):
    """softmax(w * z + b), elementwise; labels may change."""

    method: ClassVar[str] = "vector"
    invariances: ClassVar[Invariances] = Invariances(translation=False, argmax=False, order=False)
    weight: Tensor
    bias: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("weight", torch.ones(num_classes))
        self.register_buffer("bias", torch.zeros(num_classes))

    def features(self, rows: Tensor) -> Tensor:
        """Return the features that the weights multiply: the logits [...,K]."""
        return rows

    def calibrate_rows(self, rows: Tensor) -> Tensor:
        """Map logits [...,K] to log-probabilities [...,K]."""
        return (self.features(rows) * self.weight + self.bias).log_softmax(dim=-1)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Minimise the mean negative log-likelihood; needs labels of two classes."""
        sample = draw(data, context)
        require_two_classes(sample.counts)
        beta = fit_inverse_temperature(sample.subsampled(1).as_set(), context)
        start = torch.cat([torch.full_like(self.weight, beta), torch.zeros_like(self.bias)])
        point = start.double()[None]
        few = sample.subsampled(point.numel())
        sources: list[Sample | ValidationSet] = [sample] if few is sample else [few, sample]
        sources += [] if sample.complete else [data]
        for source in sources:
            problem = VectorProblem(self, source, sample.counts == 0, point)
            point = minimise(problem, point, context, "solving")
        weight, bias = point[0].chunk(2)
        bias[sample.counts > 0] -= bias[sample.counts > 0].mean()
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def summary(self) -> dict[str, float]:
        """Return the smallest and largest weight and the largest absolute bias."""
        return {
            "smallest_weight": self.weight.min().item(),
            "largest_weight": self.weight.max().item(),
            "largest_bias": self.bias.abs().max().item(),
        }


class VectorTI(Vector):
    """softmax(w * log p + b): vector scaling, invariant to constants added to the logits."""

    method: ClassVar[str] = "vector_ti"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=False, order=False)
    auto_rank: ClassVar[int | None] = 7

    def features(self, rows: Tensor) -> Tensor:
        """Return log-probabilities [...,K] in [-30, 0]."""
        return floored_log_softmax(rows)


class VectorProblem:
    """Define the optimisation problem in 2K parameters, preconditioned by the Hessian at the start.

    See `solvers.Problem`. Classes without a labelled pixel are left out of the partition function,
    so their parameters stay at the identity.
    """

    def __init__(
        self, calibrator: Vector, source: Sample | ValidationSet, absent: Tensor, start: Tensor
    ) -> None:
        self.calibrator, self.source, self.start = calibrator, source, start
        self.absent = absent if absent.any() else None
        hessian, self.count = self._hessian(start)
        # Where weights and biases are collinear, rounding may make an eigenvalue negative.
        least = 1e-6 * hessian.diagonal().mean() + 1e-9
        curvature, vectors = torch.linalg.eigh(hessian)
        self.inverse = (vectors / curvature.clamp_min(least)) @ vectors.T
        self.ridge = RIDGE / self.count
        self.identity = torch.cat([torch.ones_like(absent), torch.zeros_like(absent)]).double()

    def evaluate(self, point: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Compute the mean negative log-likelihood with ridge [1] and its gradient [1,2K]."""
        value, gradient = 0.0, torch.zeros_like(point[0])
        for features, labels in self._batches():
            logs = self._log_probabilities(features, point)
            value -= logs.gather(1, labels[:, None]).double().sum().item()
            ones = torch.ones_like(logs[:, :1])
            slopes = logs.exp_().scatter_add_(1, labels[:, None], -ones)
            gradient += torch.cat([(slopes * features).sum(0), slopes.sum(0)])
        difference = point - self.identity
        ridge = self.ridge * difference.square().sum(1)
        return value / self.count + ridge, gradient / self.count + 2 * self.ridge * difference

    def precondition(self, gradient: Tensor) -> Tensor:
        """Multiply a gradient [1,2K] by the inverse Hessian at the start."""
        divided: Tensor = gradient @ self.inverse
        return divided

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        if isinstance(self.source, Sample):
            parts = cut(self.source.logits, self.source.labels)
        else:
            parts = chunks(self.source)
        for logits, labels in parts:
            yield self.calibrator.features(logits), labels

    def _log_probabilities(self, features: Tensor, point: Tensor) -> Tensor:
        weight, bias = point[0].float().chunk(2)
        logits = features * weight + bias
        if self.absent is not None:
            logits = logits.masked_fill(self.absent, -torch.inf)
        return logits.log_softmax(dim=1)

    def _hessian(self, point: Tensor) -> tuple[Tensor, int]:
        """Compute the mean Hessian [2K,2K] in (weights, biases), and count the pixels."""
        size, count = point.shape[1] // 2, 0
        hessian = torch.zeros(2 * size, 2 * size, dtype=torch.float64)
        for features, _ in self._batches():
            probabilities = self._log_probabilities(features, point).exp()
            weighted = probabilities * features
            both = torch.cat([weighted, probabilities], dim=1)
            cross = weighted.sum(0).diag()
            top = torch.cat([(weighted * features).sum(0).diag(), cross], dim=1)
            bottom = torch.cat([cross, probabilities.sum(0).diag()], dim=1)
            hessian += torch.cat([top, bottom]) - summed_products(both, both)
            count += len(features)
        return hessian / count, count
