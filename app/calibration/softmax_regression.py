"""Softmax regression of labels on features, for matrix and class-conditional calibrators.

For features x [D] of a pixel, an expert's parameters theta [R,D] give R outputs theta x, which a
`Form` maps to K logits. The mean negative log-likelihood is convex in theta. The preconditioner is
the Kronecker product of the mean Hessian in the outputs and the features' second moment weighted
by 1 - sum of squared probabilities. With it a few passes suffice where plain gradients need
hundreds, because the features of one network are nearly collinear.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from app.calibration.base import FitContext, summed_products
from app.calibration.dataset import ValidationSet
from app.calibration.methods.temperature import fit_inverse_temperature
from app.calibration.sampling import CHUNK_FLOATS, Sample, chunks, draw, require_two_classes
from app.calibration.solvers import minimise


class ExpertPixels(NamedTuple):
    """Features and targets of one expert's pixels."""

    expert: int
    features: Tensor  # float32 [m,D]
    targets: Tensor  # int64 [m], positions among the logits that the form makes
    absent: Tensor | None  # bool [m,K], those logits whose class has no labelled pixel in the set


class Form(Protocol):
    """Map from pixels to features, and from an expert's outputs to logits."""

    start: Tensor  # float64 [E,R,D], the identity
    lower: Tensor | None  # float64 [E,R,D], bounds of the parameters

    def scaled(self, beta: float) -> Tensor:
        """Return the parameters that multiply every logit by beta, float64 [E,R,D]."""

    def by_expert(self, rows: Tensor, labels: Tensor, absent: Tensor) -> Iterable[ExpertPixels]:
        """Divide pixels by expert: logits [m,K], labels [m], absent classes bool [K]."""

    def logits(self, outputs: Tensor) -> Tensor:
        """Map outputs [m,R] to logits [m,K]; linear up to a constant."""

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Map gradients in the logits [m,K] to gradients in the outputs [m,R]."""

    def project(self, gradient: Tensor, absent: Tensor) -> Tensor:
        """Remove from gradients [E,R,D] the directions that leave the softmax unchanged.

        Their values are rounding errors, which the preconditioner would amplify because the
        likelihood has no curvature there.
        """


@dataclass(frozen=True)
class Penalty:
    """Weights [E,R,D] on squared distances from the start, and constraints on rows.

    `pull` is a ridge towards the start with the weight of that many pixels; it keeps parameters
    finite on separable sets. `rows_sum_to_one` fixes each row's sum over the first D-1 features,
    which the likelihood does not depend on when these are centred.
    """

    weights: Tensor
    pull: float
    rows_sum_to_one: bool = False

    def gradient(self, difference: Tensor, weights: Tensor) -> Tensor:
        """Compute the penalty's gradient [E,R,D] from differences to the start [E,R,D]."""
        gradient = 2 * weights * difference
        if self.rows_sum_to_one:
            gradient[..., :-1] -= gradient[..., :-1].mean(dim=-1, keepdim=True)
        return gradient


class Regression:
    """Penalised negative log-likelihood of E experts, a `solvers.Problem`."""

    def __init__(
        self,
        form: Form,
        by_expert: Callable[[], Iterator[ExpertPixels]],
        penalty: Penalty,
        absent: Tensor,
        point: Tensor,
    ) -> None:
        self.form, self.by_expert, self.penalty, self.absent = form, by_expert, penalty, absent
        self.shape = form.start.shape
        self._measure(point.view(self.shape).float())

    def evaluate(self, point: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Mean negative log-likelihoods with penalties [E], and their gradients [E,R*D]."""
        theta = point.view(self.shape)
        weights, evaluated = theta.float(), active.tolist()
        value, gradient = point.new_zeros(len(point)), torch.zeros_like(theta)
        for group in self.by_expert():
            if evaluated[group.expert]:
                logs = self._log_probabilities(group, weights)
                value[group.expert] -= logs.gather(1, group.targets[:, None]).double().sum()
                slopes = logs.exp_().scatter_add_(
                    1, group.targets[:, None], -torch.ones_like(logs[:, :1])
                )
                pulled = self.form.pull_back(slopes)
                gradient[group.expert] += summed_products(pulled, group.features)
        difference = theta - self.form.start
        value = value / self.counts + (self.penalties * difference.square()).sum((1, 2))
        gradient = self.form.project(gradient / self.counts[:, None, None], self.absent)
        gradient += self.penalty.gradient(difference, self.penalties)
        return value, gradient.flatten(1)

    def precondition(self, gradient: Tensor) -> Tensor:
        """Divide by the Kronecker product plus the penalty, in the product's eigenbasis."""
        rotated = self.outer.mT @ gradient.view(self.shape) @ self.inner
        divided: Tensor = self.outer @ (rotated / self.curvature) @ self.inner.mT
        return divided.flatten(1)

    def _log_probabilities(self, group: ExpertPixels, weights: Tensor) -> Tensor:
        logits = self.form.logits(group.features @ weights[group.expert].T)
        if group.absent is not None:
            logits = logits.masked_fill(group.absent, -torch.inf)
        return logits.log_softmax(dim=1)

    def _measure(self, weights: Tensor) -> None:
        """Compute counts, penalty weights and Kronecker factors in one pass."""
        experts, outputs, inputs = self.shape
        counts = torch.zeros(experts, dtype=torch.float64)
        outer = torch.zeros(experts, outputs, outputs, dtype=torch.float64)
        inner = torch.zeros(experts, inputs, inputs, dtype=torch.float64)
        for group in self.by_expert():
            probabilities = self._log_probabilities(group, weights).exp()
            counts[group.expert] += len(probabilities)
            uncertainty = 1 - probabilities.square().sum(1)
            outer[group.expert] += self._outer(probabilities)
            weighted = group.features * uncertainty[:, None]
            inner[group.expert] += summed_products(weighted, group.features)
        self.counts = counts.clamp_min(1)
        self.penalties = self.penalty.weights + (self.penalty.pull / self.counts)[:, None, None]
        total = outer.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-12)[:, None, None]
        rows, self.outer = torch.linalg.eigh(outer / self.counts[:, None, None])
        columns, self.inner = torch.linalg.eigh(inner / total)
        product = (rows[:, :, None] * columns[:, None, :]).clamp_min(0)
        least = 1e-6 * product.mean((1, 2), keepdim=True) + 1e-12
        self.curvature = product + 2 * self.penalties.mean((1, 2), keepdim=True) + least

    def _outer(self, probabilities: Tensor) -> Tensor:
        """Compute the sum of the Hessians in the outputs, [R,R]."""
        total = probabilities.sum(0, dtype=torch.float64).diag()
        hessian = total - summed_products(probabilities, probabilities)
        return self.form.pull_back(self.form.pull_back(hessian).T)


def centred(gradient: Tensor, absent: Tensor) -> Tensor:
    """Subtract from gradients [E,K,D] their mean over present classes; absent ones become 0."""
    present = (~absent).double()[:, None]
    balanced: Tensor = (gradient - gradient.sum(1, keepdim=True) / present.sum()) * present
    return balanced


def fit_regression(
    form: Form, data: ValidationSet, context: FitContext, penalty: Penalty
) -> tuple[Tensor, Tensor]:
    """Fit theta, float64 [E,R,D], and return it with the absent classes, bool [K].

    Fitted on a subsample, then on a sample in memory and, where that is not every pixel, on
    streamed passes over the set. Absent classes are excluded from the partition function and keep
    their start parameters, as the likelihood either does not depend on them or has no maximum.
    Raises ArgumentError where fewer than two classes are labelled.
    """
    sample = draw(data, context)
    require_two_classes(sample.counts)
    absent = sample.counts == 0
    # The temperature is fitted first: curvature near the solution preconditions better.
    beta = fit_inverse_temperature(sample.subsampled(1).as_set(), context)
    point = form.scaled(beta).flatten(1)
    few = sample.subsampled(form.start.numel())
    for part in [sample] if few is sample else [few, sample]:
        held = _held(form, part, absent)
        problem = Regression(form, held.__iter__, penalty, absent, point)
        point = _solve(problem, point, context)
    if not sample.complete:
        held.clear()
        problem = Regression(form, lambda: _streamed(form, data, absent), penalty, absent, point)
        point = _solve(problem, point, context)
    return point.view(form.start.shape), absent


def _solve(problem: Regression, point: Tensor, context: FitContext) -> Tensor:
    bounds = problem.form.lower
    lower = None if bounds is None else bounds.flatten(1)
    return minimise(problem, point, context, "solving", lower)


def _held(form: Form, sample: Sample, absent: Tensor) -> list[ExpertPixels]:
    """Compute a sample's features by expert, in chunks of 2 MB."""
    size = max(CHUNK_FLOATS // sample.logits.shape[1], 1)
    by_expert = form.by_expert(sample.logits, sample.labels, absent)
    return [part for group in by_expert for part in _parts(group, size)]


def _parts(group: ExpertPixels, size: int) -> Iterator[ExpertPixels]:
    for start in range(0, len(group.targets), size):
        part = slice(start, start + size)
        absent = None if group.absent is None else group.absent[part]
        yield ExpertPixels(group.expert, group.features[part], group.targets[part], absent)


def _streamed(form: Form, data: ValidationSet, absent: Tensor) -> Iterator[ExpertPixels]:
    for rows, labels in chunks(data):
        yield from form.by_expert(rows, labels, absent)
