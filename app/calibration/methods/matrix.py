"""Affine calibrators: matrix and Dirichlet scaling, and the translation-invariant matrix.

All are convex softmax regressions, started at the identity. Classes without a labelled pixel keep
their row of the identity. The biases are centred, since a common shift cancels in the softmax. The
class with the highest probability can change.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from app.calibration.base import FitContext, Invariances, Pixelwise, floored_log_softmax, with_one
from app.calibration.dataset import ValidationSet
from app.calibration.softmax_regression import ExpertPixels, Penalty, centred, fit_regression

RIDGE = 0.01  # towards the identity, in pixels: keeps parameters finite for separable sets


class Matrix(Pixelwise):
    """softmax(W z + b) (Guo et al. 2017); labels may change.

    `off_diagonal` and `bias_weight` are lambda and mu of ODIR (Kull et al. 2019), the weights of
    the mean squared off-diagonal entry of W and of the mean squared bias.
    """

    method: ClassVar[str] = "matrix"
    invariances: ClassVar[Invariances] = Invariances(translation=False, argmax=False, order=False)
    rows_sum_to_one: ClassVar[bool] = False
    weight: Tensor
    bias: Tensor

    def __init__(
        self, num_classes: int, *, off_diagonal: float = 0.0, bias_weight: float = 0.0
    ) -> None:
        super().__init__(num_classes)
        self.off_diagonal, self.bias_weight = off_diagonal, bias_weight
        self.register_buffer("weight", torch.eye(num_classes))
        self.register_buffer("bias", torch.zeros(num_classes))

    def features(self, rows: Tensor) -> Tensor:
        """Return the features that the matrix multiplies: the logits [...,K]."""
        return rows

    def calibrate_rows(self, rows: Tensor) -> Tensor:
        """Map logits [...,K] to log-probabilities [...,K]."""
        return linear(self.features(rows), self.weight, self.bias).log_softmax(dim=-1)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Minimise mean negative log-likelihood plus ODIR; needs labels of two classes."""
        theta, absent = fit_regression(MatrixForm(self), data, context, self._penalty())
        weight, bias = theta[0, :, :-1], theta[0, :, -1]
        bias[~absent] -= bias[~absent].mean()
        if self.rows_sum_to_one:
            weight += (1 - weight.sum(dim=1, keepdim=True)) / self.num_classes  # rounding
        self.weight.copy_(torch.where(absent[:, None], torch.eye(self.num_classes), weight))
        self.bias.copy_(torch.where(absent, 0.0, bias))

    def summary(self) -> dict[str, float]:
        """Return the mean diagonal entry and the largest absolute other entry and bias."""
        diagonal = self.weight.diagonal()
        return {
            "mean_diagonal": diagonal.mean().item(),
            "largest_off_diagonal": (self.weight - diagonal.diag()).abs().max().item(),
            "largest_bias": self.bias.abs().max().item(),
        }

    def _penalty(self) -> Penalty:
        size = self.num_classes
        off = (1 - torch.eye(size)) * self.off_diagonal / (size * (size - 1))
        bias = torch.full((size, 1), self.bias_weight / size)
        weights = torch.cat([off, bias], dim=1).double()[None]
        return Penalty(weights, RIDGE, self.rows_sum_to_one)


class MatrixTI(Matrix):
    """softmax(W z + b) with equal row sums, W1 = s1: the translation-invariant MSc.

    The sum s multiplies a constant over classes, which cancels in the softmax. It stays 1, and W
    acts on centred log-probabilities. For two classes this is Platt scaling.
    """

    method: ClassVar[str] = "matrix_ti"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=False, order=False)
    rows_sum_to_one: ClassVar[bool] = True

    def features(self, rows: Tensor) -> Tensor:
        """Return log-probabilities [...,K] minus their mean over classes."""
        logs = floored_log_softmax(rows)
        return logs - logs.mean(dim=-1, keepdim=True)


class Dirichlet(Matrix):
    """softmax(W log p + b) with ODIR (Kull et al. 2019)."""

    method: ClassVar[str] = "dirichlet"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=False, order=False)
    auto_rank: ClassVar[int | None] = 8

    def __init__(
        self, num_classes: int, *, off_diagonal: float = 1e-3, bias_weight: float = 1e-3
    ) -> None:
        super().__init__(num_classes, off_diagonal=off_diagonal, bias_weight=bias_weight)

    def features(self, rows: Tensor) -> Tensor:
        """Return log-probabilities [...,K] in [-30, 0]."""
        return floored_log_softmax(rows)


class MatrixForm:
    """One expert whose outputs are the logits; see `softmax_regression.Form`."""

    def __init__(self, calibrator: Matrix) -> None:
        self.lower: Tensor | None = None
        self.calibrator = calibrator
        self.start = torch.eye(calibrator.num_classes, calibrator.num_classes + 1).double()[None]

    def scaled(self, beta: float) -> Tensor:
        """Return parameters that multiply all logits by beta, float64 [1,K,K+1]."""
        theta = self.start * beta
        if self.calibrator.rows_sum_to_one:
            theta[..., :-1] += (1 - beta) / self.calibrator.num_classes
        return theta

    def by_expert(self, rows: Tensor, labels: Tensor, absent: Tensor) -> Iterator[ExpertPixels]:
        """Return all pixels as one group."""
        features = with_one(self.calibrator.features(rows))
        yield ExpertPixels(0, features, labels, absent.expand_as(rows) if absent.any() else None)

    def logits(self, outputs: Tensor) -> Tensor:
        """Return the outputs [m,K]: they are the logits."""
        return outputs

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Return the slopes [m,K]: the outputs are the logits."""
        return slopes

    def project(self, gradient: Tensor, absent: Tensor) -> Tensor:
        """Centre over present classes, and over features where the row sums are fixed."""
        gradient = centred(gradient, absent)
        if self.calibrator.rows_sum_to_one:
            gradient[..., :-1] -= gradient[..., :-1].mean(dim=-1, keepdim=True)
        return gradient
