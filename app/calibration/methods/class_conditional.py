"""Class-conditional calibrators: one affine map, the expert, for each uncalibrated top class.

The class of a pixel's highest logit (the lowest index on exact ties) selects the expert, which
acts on the pixel's log-probabilities. The experts of CDC are unconstrained and can change the
label. Those of CMSap act on the margins to the top class, those of CMSop on the gaps between
ranked classes, both with positive entries: CMSap preserves the label, CMSop the whole order. Each
expert is a convex problem; an expert without pixels stays the identity.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from app.calibration.base import FitContext, Invariances, Pixelwise, floored_log_softmax, with_one
from app.calibration.dataset import ValidationSet, pixels
from app.calibration.sampling import class_counts
from app.calibration.softmax_regression import ExpertPixels, Penalty, centred, fit_regression

RIDGE = 10.0  # in pixels: an expert with few pixels stays near the identity
SMALLEST = 1e-6  # lower bound of the entries; also the start of those that are 0 at the identity
SMALLEST_DIAGONAL = 0.01  # a temperature of at most 100, beyond which classes tie in float32


class Conditional(Pixelwise):
    """Hold experts theta [K,R,D] with the bias in the last column; subclasses define the features.

    Experts with fewer than `min_pixels` pixels stay the identity. `pull` is the weight of the
    ridge towards the identity, in pixels.
    """

    theta: Tensor

    def __init__(self, num_classes: int, *, min_pixels: int = 1, pull: float = RIDGE) -> None:
        super().__init__(num_classes)
        self.min_pixels, self.pull = min_pixels, pull
        self.register_buffer("theta", self.identity().float())

    @classmethod
    def required_pixels(cls, num_classes: int) -> int:
        """Return the count of parameters [K,K-1,K]: one pixel for each."""
        return num_classes * (num_classes - 1) * num_classes

    def identity(self) -> Tensor:
        """Return the parameters of the identity, float64 [K,R,D]."""
        size = self.num_classes - 1
        one = torch.full((size, size + 1), SMALLEST, dtype=torch.float64)
        one.fill_diagonal_(1)
        return one.repeat(self.num_classes, 1, 1)

    def bounds(self) -> Tensor | None:
        """Return lower bounds of the parameters, float64 [K,R,D], or None."""
        lower = torch.full_like(self.identity(), SMALLEST)
        lower.diagonal(dim1=1, dim2=2).fill_(SMALLEST_DIAGONAL)
        return lower

    def arrange(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Map logits [m,K] to features [m,D-1] and the class at each position, int64 [m,K]."""
        raise NotImplementedError

    def logits(self, outputs: Tensor) -> Tensor:
        """Convert outputs [m,R] of an expert to logits [m,K] by position."""
        raise NotImplementedError

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Convert slopes in the logits [m,K] to slopes in the outputs [m,R]."""
        raise NotImplementedError

    def project(self, gradient: Tensor, absent: Tensor) -> Tensor:  # noqa: ARG002
        """Return gradients [K,R,D] unchanged; see `softmax_regression.Form`."""
        return gradient

    def calibrate_rows(self, rows: Tensor) -> Tensor:
        """Map logits [...,K] to log-probabilities [...,K]."""
        table = rows.reshape(-1, self.num_classes)
        features, positions = self.arrange(table)
        outputs = self._outputs(with_one(features), table.argmax(dim=1))
        logs = self.logits(outputs).log_softmax(dim=-1)
        return torch.zeros_like(table).scatter(1, positions, logs).reshape(rows.shape)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Minimise each expert's mean negative log-likelihood; needs labels of two classes."""
        form = ConditionalForm(self)
        theta, _ = fit_regression(form, data, context, Penalty(torch.zeros(()), self.pull))
        if self.min_pixels > 1:
            counts = _count_by_top_class(data)
            theta = torch.where((counts < self.min_pixels)[:, None, None], form.start, theta)
        self.theta.copy_(theta)

    def summary(self) -> dict[str, float]:
        """Count the experts that differ from the identity."""
        moved = (self.theta - self.identity().float()).abs().amax(dim=(1, 2)) > 1e-5
        return {"fitted_experts": float(moved.sum().item())}

    def _outputs(self, features: Tensor, top: Tensor) -> Tensor:
        """Multiply features [m,D] by the expert of each pixel's top class, int64 [m], to [m,R]."""
        if torch.compiler.is_exporting():
            return self._outputs_of_all(features, top)
        order = top.argsort()
        counts = torch.bincount(top, minlength=self.num_classes).tolist()
        parts = _cut(features[order], counts)
        outputs = torch.cat([part @ one.T for part, one in zip(parts, self.theta, strict=True)])
        return torch.empty_like(outputs).index_copy_(0, order, outputs)

    def _outputs_of_all(self, features: Tensor, top: Tensor) -> Tensor:
        """Compute `_outputs` without data-dependent shapes, with K times the work, for exports."""
        outputs = features @ self.theta[0].T
        for expert in range(1, self.num_classes):
            own = features @ self.theta[expert].T
            outputs = torch.where((top == expert)[:, None], own, outputs)
        return outputs


class ConditionalForm:
    """State the experts as a regression; see `softmax_regression.Form`. Targets are positions."""

    def __init__(self, calibrator: Conditional) -> None:
        self.calibrator = calibrator
        self.start, self.lower = calibrator.identity(), calibrator.bounds()
        self.logits, self.pull_back = calibrator.logits, calibrator.pull_back
        self.project = calibrator.project

    def scaled(self, beta: float) -> Tensor:
        """Return parameters that multiply all logits by beta, float64 [K,R,D]."""
        return self.start * beta

    def by_expert(self, rows: Tensor, labels: Tensor, absent: Tensor) -> Iterator[ExpertPixels]:
        """Group pixels by their top class."""
        top = rows.argmax(dim=1)
        order = top.argsort(stable=True)
        counts = torch.bincount(top, minlength=rows.shape[1]).tolist()
        parts = zip(_cut(rows[order], counts), _cut(labels[order], counts), strict=True)
        for expert, (own, targets) in enumerate(parts):
            if len(own):
                features, positions = self.calibrator.arrange(own)
                found = (positions == targets[:, None]).to(torch.uint8).argmax(dim=1)
                gone = absent[positions] if absent.any() else None
                yield ExpertPixels(expert, with_one(features), found, gone)


class CDC(Conditional):
    """softmax(A_c log p + b_c), c the uncalibrated top class; labels may change."""

    method: ClassVar[str] = "cdc"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=False, order=False)

    @classmethod
    def required_pixels(cls, num_classes: int) -> int:
        """Return the count of parameters [K,K,K+1]: one pixel for each."""
        return num_classes * num_classes * (num_classes + 1)

    def identity(self) -> Tensor:
        """Return unit matrices without bias, float64 [K,K,K+1]."""
        one = torch.eye(self.num_classes, self.num_classes + 1, dtype=torch.float64)
        return one.repeat(self.num_classes, 1, 1)

    def bounds(self) -> Tensor | None:
        """Return None: the parameters are free."""
        return None

    def arrange(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities [m,K], each class at its own position."""
        return floored_log_softmax(rows), torch.arange(rows.shape[1]).expand(rows.shape)

    def logits(self, outputs: Tensor) -> Tensor:
        """Return the outputs [m,K]: they are the logits."""
        return outputs

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Return the slopes [m,K]: the outputs are the logits."""
        return slopes

    def project(self, gradient: Tensor, absent: Tensor) -> Tensor:
        """Centre over present classes."""
        return centred(gradient, absent)


class CMSap(Conditional):
    """Margins to the top class, m~ = B_c m + mu_c with positive entries; labels never change.

    The logit of the top class is 0, every other is -m~. Bounds keep the entries positive, so the
    problem is convex in B and mu.
    """

    method: ClassVar[str] = "cmsap"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=False)
    auto_rank: ClassVar[int | None] = 4

    def arrange(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return margins [m,K-1] of the other classes, and the classes [m,K], the top one first."""
        top = rows.argmax(dim=1, keepdim=True)
        others = torch.arange(rows.shape[1] - 1)
        others = others + (others >= top)
        positions = torch.cat([top, others], dim=1)
        logs = rows.log_softmax(dim=1).gather(1, positions)
        return (logs[:, :1] - logs[:, 1:]).clamp_min(0), positions

    def logits(self, outputs: Tensor) -> Tensor:
        """Convert calibrated margins [m,K-1] to logits [m,K], the top class first."""
        return torch.cat([torch.zeros_like(outputs[:, :1]), -outputs], dim=1)

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Convert slopes [m,K] in the logits to slopes in the margins [m,K-1]."""
        return -slopes[:, 1:]


class CMSop(Conditional):
    """Gaps between ranked classes, g~ = B_c g + mu_c with positive entries; the order is kept."""

    method: ClassVar[str] = "cmsop"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=True)

    def arrange(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return gaps [m,K-1] between consecutive ranks, and the classes [m,K] in that order."""
        logs = rows.log_softmax(dim=1)
        # The exporter has no stable sort, but ONNX's TopK is stable; torch's may not be.
        ranked, positions = (
            logs.topk(rows.shape[1], dim=1)
            if torch.compiler.is_exporting()
            else logs.sort(dim=1, descending=True, stable=True)
        )
        return ranked[:, :-1] - ranked[:, 1:], positions

    def logits(self, outputs: Tensor) -> Tensor:
        """Convert calibrated gaps [m,K-1] to logits [m,K] in the order of the ranks."""
        return torch.cat([torch.zeros_like(outputs[:, :1]), -outputs.cumsum(dim=1)], dim=1)

    def pull_back(self, slopes: Tensor) -> Tensor:
        """Convert slopes [m,K] to slopes in the gaps [m,K-1]; a gap moves every class below it."""
        return -slopes[:, 1:].flip(1).cumsum(dim=1).flip(1)


def _cut(table: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """Split the rows of a table into parts of the given sizes."""
    parts: tuple[Tensor, ...] = table.split(sizes)  # type: ignore[no-untyped-call]
    return parts


def _count_by_top_class(data: ValidationSet) -> Tensor:
    """Count the labelled pixels by top class, int64 [K]."""
    counts = torch.zeros(data.num_classes, dtype=torch.int64)
    for logits, _ in pixels(data):
        counts += class_counts(logits.argmax(dim=1), data.num_classes)
    return counts
