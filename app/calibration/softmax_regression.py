"""Softmax regression of labels on features: what vector, matrix and conditional fits come down to.

Given features x [D] of a pixel, an expert's parameters theta [R,D] make R numbers theta x, which
a `Form` turns into K logits. The mean negative log-likelihood is convex in theta. The
preconditioner is the Kronecker product of the average Hessian in the numbers and the features'
second moment, weighted by how undecided a pixel is; it makes a handful of passes enough where
plain gradients need hundreds, because features of one network are close to collinear.
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
    """Pixels of one expert."""

    expert: int
    features: Tensor  # float32 [m,D]
    targets: Tensor  # int64 [m], positions among the logits that the form makes
    absent: Tensor | None  # bool [m,K], those logits whose class has no labelled pixel in the set


class Form(Protocol):
    """How pixels become features, and an expert's numbers become logits."""

    start: Tensor  # float64 [E,R,D], the identity
    lower: Tensor | None  # float64 [E,R,D], bounds of the parameters

    def scaled(self, beta: float) -> Tensor:
        """Parameters that multiply every logit by beta, float64 [E,R,D]."""

    def by_expert(self, rows: Tensor, labels: Tensor, absent: Tensor) -> Iterable[ExpertPixels]:
        """Part pixels by expert: logits [m,K], labels [m], absent classes bool [K]."""

    def logits(self, numbers: Tensor) -> Tensor:
        """Numbers [m,R] to logits [m,K]; linear up to a constant."""

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Slopes in the logits [m,K] to slopes in the numbers [m,R]."""

    def project(self, gradient: Tensor, absent: Tensor) -> Tensor:
        """Take out of gradients [E,R,D] what can only be rounding, as no softmax sees it.

        The preconditioner would blow it up, since the likelihood has no curvature there.
        """


@dataclass(frozen=True)
class Penalty:
    """Weights [E,R,D] on squared distances from the start, and what holds a row together.

    `pull` is a ridge towards the start, worth that many pixels: it keeps a separable set's
    parameters finite. `rows_sum_to_one` forbids moves that change the sum over the first D-1
    features, which the data can't see when those are centred.
    """

    weights: Tensor
    pull: float
    rows_sum_to_one: bool = False

    def gradient(self, difference: Tensor, weights: Tensor) -> Tensor:
        """Differences from the start [E,R,D] to the penalty's gradient [E,R,D]."""
        gradient = 2 * weights * difference
        if self.rows_sum_to_one:
            gradient[..., :-1] -= gradient[..., :-1].mean(dim=-1, keepdim=True)
        return gradient


class Regression:
    """The optimisation problem; see `optimisation.Problem`."""

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
        weights, wanted = theta.float(), active.tolist()
        value, gradient = point.new_zeros(len(point)), torch.zeros_like(theta)
        for group in self.by_expert():
            if wanted[group.expert]:
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
        """Divide by the Kronecker product and the penalty, in the product's eigenvectors."""
        rotated = self.outer.mT @ gradient.view(self.shape) @ self.inner
        divided: Tensor = self.outer @ (rotated / self.curvature) @ self.inner.mT
        return divided.flatten(1)

    def _log_probabilities(self, group: ExpertPixels, weights: Tensor) -> Tensor:
        logits = self.form.logits(group.features @ weights[group.expert].T)
        if group.absent is not None:
            logits = logits.masked_fill(group.absent, -torch.inf)
        return logits.log_softmax(dim=1)

    def _measure(self, weights: Tensor) -> None:
        """One pass for the counts, the penalties' scale and the Kronecker factors."""
        experts, numbers, inputs = self.shape
        counts = torch.zeros(experts, dtype=torch.float64)
        outer = torch.zeros(experts, numbers, numbers, dtype=torch.float64)
        inner = torch.zeros(experts, inputs, inputs, dtype=torch.float64)
        for group in self.by_expert():
            probabilities = self._log_probabilities(group, weights).exp()
            counts[group.expert] += len(probabilities)
            doubt = 1 - probabilities.square().sum(1)
            outer[group.expert] += self._outer(probabilities)
            weighted = group.features * doubt[:, None]
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
        """Sum of the Hessians in the numbers, [R,R]."""
        total = probabilities.sum(0, dtype=torch.float64).diag()
        hessian = total - summed_products(probabilities, probabilities)
        return self.form.pull_back(self.form.pull_back(hessian).T)


def centred(gradient: Tensor, absent: Tensor) -> Tensor:
    """Gradients [E,K,D] less their mean over present classes; absent ones have none."""
    present = (~absent).double()[:, None]
    balanced: Tensor = (gradient - gradient.sum(1, keepdim=True) / present.sum()) * present
    return balanced


def fit_regression(
    form: Form, data: ValidationSet, context: FitContext, penalty: Penalty
) -> tuple[Tensor, Tensor]:
    """Solve for theta, float64 [E,R,D], and say which classes are absent, bool [K].

    Solved on a few pixels first, then on a sample in memory; where that was not every pixel, a few
    streamed passes finish the job. Absent classes are taken out of the partition function: their
    parameters stay where they were, since every other choice is either arbitrary or minus infinity.
    Raises ArgumentError where fewer than two classes are labelled.
    """
    sample = draw(data, context)
    require_two_classes(sample.counts)
    absent = sample.counts == 0
    # Curvature near the solution is what preconditions well, so the temperature goes first.
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
    """Keep a sample's groups at hand, a few MB at a time."""
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
