"""Class-conditional calibrators: one affine expert for each uncalibrated top class.

A pixel is routed by the class of its highest logit (the lowest index on exact ties) to an expert
that acts on its log-probabilities. CDC's experts are free and can change the decision; CMSap's
act on margins to the top class and CMSop's on the gaps between ranked classes, with positive
entries, which keeps the decision and the whole order. Each expert's fit is a convex problem of
its own; experts that no pixel reaches stay the identity.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from app.calibration.base import FitContext, Invariances, Pixelwise, floored_log_softmax, with_one
from app.calibration.dataset import ValidationSet, pixels
from app.calibration.sampling import class_counts
from app.calibration.softmax_regression import ExpertPixels, Penalty, centred, fit_regression

PULL = 10.0  # pixels' worth of ridge: an expert with few pixels stays near the identity
SMALLEST = 1e-6  # positive entries keep decisions; also the start of those that are 0 at identity
SMALLEST_DIAGONAL = 0.01  # a temperature of 100 at most, or float32 would tie the classes


class Conditional(Pixelwise):
    """Experts theta [K,R,D], each a bias in the last column; subclasses say what they act on.

    `min_pixels` is how many pixels an expert needs to be fitted at all; `pull` is a ridge towards
    the identity that weighs as much as that many pixels.
    """

    theta: Tensor

    def __init__(self, num_classes: int, *, min_pixels: int = 1, pull: float = PULL) -> None:
        super().__init__(num_classes)
        self.min_pixels, self.pull = min_pixels, pull
        self.register_buffer("theta", self.identity().float())

    def identity(self) -> Tensor:
        """Give parameters that leave every pixel as it is, float64 [K,R,D]."""
        size = self.num_classes - 1
        one = torch.full((size, size + 1), SMALLEST, dtype=torch.float64)
        one.fill_diagonal_(1)
        return one.repeat(self.num_classes, 1, 1)

    def bounds(self) -> Tensor | None:
        """Give lower bounds of the parameters, float64 [K,R,D]."""
        lower = torch.full_like(self.identity(), SMALLEST)
        lower.diagonal(dim1=1, dim2=2).fill_(SMALLEST_DIAGONAL)
        return lower

    def arrange(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [m,K] to features [m,D-1] and the class at each place, int64 [m,K]."""
        raise NotImplementedError

    def logits(self, numbers: Tensor) -> Tensor:
        """Turn numbers [m,R] of an expert into logits [m,K] in places."""
        raise NotImplementedError

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Take slopes in the logits [m,K] to slopes in the numbers [m,R]."""
        raise NotImplementedError

    def project(self, gradient: Tensor, absent: Tensor) -> Tensor:  # noqa: ARG002
        """Leave gradients [K,R,D] as they are; see `regression.Form`."""
        return gradient

    def calibrate_rows(self, rows: Tensor) -> Tensor:
        """Logits [...,K] to log-probabilities [...,K]."""
        table = rows.reshape(-1, self.num_classes)
        features, places = self.arrange(table)
        numbers = self._numbers(with_one(features), table.argmax(dim=1))
        logs = self.logits(numbers).log_softmax(dim=-1)
        return torch.zeros_like(table).scatter(1, places, logs).reshape(rows.shape)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Minimise each expert's mean negative log-likelihood; needs labels of two classes."""
        form = ConditionalForm(self)
        theta, _ = fit_regression(form, data, context, Penalty(torch.zeros(()), self.pull))
        if self.min_pixels > 1:
            counts = _routed_counts(data)
            theta = torch.where((counts < self.min_pixels)[:, None, None], form.start, theta)
        self.theta.copy_(theta)

    def summary(self) -> dict[str, float]:
        """Count the experts that differ from the identity."""
        moved = (self.theta - self.identity().float()).abs().amax(dim=(1, 2)) > 1e-5
        return {"fitted_experts": float(moved.sum().item())}

    def _numbers(self, features: Tensor, top: Tensor) -> Tensor:
        """Each pixel's expert times its features: [m,D] and int64 [m] to [m,R]."""
        if torch.compiler.is_exporting():
            return self._numbers_of_all(features, top)
        order = top.argsort()
        counts = torch.bincount(top, minlength=self.num_classes).tolist()
        parts = _cut(features[order], counts)
        numbers = torch.cat([part @ one.T for part, one in zip(parts, self.theta, strict=True)])
        return torch.empty_like(numbers).index_copy_(0, order, numbers)

    def _numbers_of_all(self, features: Tensor, top: Tensor) -> Tensor:
        """Do the same without data-dependent shapes, at K times the work: for exported graphs."""
        numbers = features @ self.theta[0].T
        for expert in range(1, self.num_classes):
            own = features @ self.theta[expert].T
            numbers = torch.where((top == expert)[:, None], own, numbers)
        return numbers


class ConditionalForm:
    """The experts as a regression; see `regression.Form`. Targets are places."""

    def __init__(self, calibrator: Conditional) -> None:
        self.calibrator = calibrator
        self.start, self.lower = calibrator.identity(), calibrator.bounds()
        self.logits, self.pull_back = calibrator.logits, calibrator.pull_back
        self.project = calibrator.project

    def scaled(self, beta: float) -> Tensor:
        """Multiply every expert's matrix, float64 [K,R,D]."""
        return self.start * beta

    def by_expert(self, rows: Tensor, labels: Tensor, absent: Tensor) -> Iterator[ExpertPixels]:
        """Part pixels by their top class."""
        top = rows.argmax(dim=1)
        order = top.argsort(stable=True)
        counts = torch.bincount(top, minlength=rows.shape[1]).tolist()
        parts = zip(_cut(rows[order], counts), _cut(labels[order], counts), strict=True)
        for expert, (own, targets) in enumerate(parts):
            if len(own):
                features, places = self.calibrator.arrange(own)
                found = (places == targets[:, None]).to(torch.uint8).argmax(dim=1)
                gone = absent[places] if absent.any() else None
                yield ExpertPixels(expert, with_one(features), found, gone)


class CDC(Conditional):
    """softmax(A_c log p + b_c), c the uncalibrated top class; labels may change."""

    method: ClassVar[str] = "cdc"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=False, order=False)

    def identity(self) -> Tensor:
        """Give unit matrices without bias, float64 [K,K,K+1]."""
        one = torch.eye(self.num_classes, self.num_classes + 1, dtype=torch.float64)
        return one.repeat(self.num_classes, 1, 1)

    def bounds(self) -> Tensor | None:
        """Set no bounds."""
        return None

    def arrange(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give log-probabilities [m,K], each class at its own place."""
        return floored_log_softmax(rows), torch.arange(rows.shape[1]).expand(rows.shape)

    def logits(self, numbers: Tensor) -> Tensor:
        """Leave the numbers [m,K] as they are."""
        return numbers

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Leave the slopes [m,K] as they are."""
        return slopes

    def project(self, gradient: Tensor, absent: Tensor) -> Tensor:
        """Centre over present classes."""
        return centred(gradient, absent)


class CMSap(Conditional):
    """Margins to the top class, m~ = B_c m + mu_c with positive entries: keeps the decision.

    The top class gets logit 0, every other -m~. Positivity is kept by bounds, so the problem
    stays convex in B and mu.
    """

    method: ClassVar[str] = "cmsap"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=False)

    def arrange(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give margins [m,K-1] of the other classes, and the classes, the top one first."""
        top = rows.argmax(dim=1, keepdim=True)
        others = torch.arange(rows.shape[1] - 1)
        others = others + (others >= top)
        places = torch.cat([top, others], dim=1)
        logs = rows.log_softmax(dim=1).gather(1, places)
        return (logs[:, :1] - logs[:, 1:]).clamp_min(0), places

    def logits(self, numbers: Tensor) -> Tensor:
        """Turn calibrated margins [m,K-1] into logits [m,K], the top class first."""
        return torch.cat([torch.zeros_like(numbers[:, :1]), -numbers], dim=1)

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Take slopes [m,K] to the margins' [m,K-1]."""
        return -slopes[:, 1:]


class CMSop(Conditional):
    """Gaps between ranked classes, g~ = B_c g + mu_c with positive entries: keeps the order."""

    method: ClassVar[str] = "cmsop"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=True)

    def arrange(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give gaps [m,K-1] between neighbours in rank, and the classes in descending order."""
        logs = rows.log_softmax(dim=1)
        # The exporter knows no stable sort, but ONNX's TopK is one; torch's may not be.
        ranked, places = (
            logs.topk(rows.shape[1], dim=1)
            if torch.compiler.is_exporting()
            else logs.sort(dim=1, descending=True, stable=True)
        )
        return ranked[:, :-1] - ranked[:, 1:], places

    def logits(self, numbers: Tensor) -> Tensor:
        """Turn calibrated gaps [m,K-1] into logits [m,K] in rank order."""
        return torch.cat([torch.zeros_like(numbers[:, :1]), -numbers.cumsum(dim=1)], dim=1)

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Take slopes [m,K] to the gaps' [m,K-1]: each gap moves every class below it."""
        return -slopes[:, 1:].flip(1).cumsum(dim=1).flip(1)


def _cut(table: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """Cut a table into parts of the sizes given."""
    parts: tuple[Tensor, ...] = table.split(sizes)  # type: ignore[no-untyped-call]
    return parts


def _routed_counts(data: ValidationSet) -> Tensor:
    """Count the labelled pixels that each top class has, int64 [K]."""
    counts = torch.zeros(data.num_classes, dtype=torch.int64)
    for logits, _ in pixels(data):
        counts += class_counts(logits.argmax(dim=1), data.num_classes)
    return counts
