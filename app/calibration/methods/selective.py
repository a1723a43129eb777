"""Selective scaling (Wang et al. 2023): two temperatures, for correct and misclassified pixels.

The selector is a small network that estimates the probability that a pixel's label is correct. It
reads the log-probabilities: batch normalisation, ReLU, K to 2K, batch normalisation, ReLU, 2K to
K, batch normalisation, ReLU, K to 1. The paper's first K-to-K layer, which stays the identity when
trained, and its second output, of which only the difference counts, are left out. Batch
normalisation is folded into the layers after training, so the state is plain matrices.

Both temperatures are fitted by the convex negative log-likelihood on held-out images, and neither
changes the order of the classes. Hard routing applies one of them by the selector's prediction, as
in the paper; soft mixing weighs both distributions with its probability.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear, relu

from app.calibration.base import (
    Calibrator,
    FitContext,
    Invariances,
    clamped_temperature,
    finite_logits,
    floored_log_softmax,
    uniform_where_broken,
)
from app.calibration.dataset import IGNORE, LabelledImage, Subset, ValidationSet, View
from app.calibration.methods.identity import Identity
from app.calibration.methods.temperature import fit_inverse_temperature
from app.calibration.sampling import Sample, count_classes, draw, require_two_classes
from app.calibration.solvers import Schedule, descend, minimise
from app.calibration.splits import split
from app.errors import ArgumentError

BATCH_PIXELS = 4096
MISPREDICTION_COPIES = 1  # misclassified pixels weigh 1 + this in training, as in released code
SCHEDULE = Schedule("training the selector", rate=3e-3, rounds=30, patience=4)


class Selector(nn.Module):
    """Estimate the log-odds that the top class is correct; 0 before a fit.

    `forward` returns log-odds as trained, with the double weight of misclassified pixels;
    `calibrated` corrects them by Platt scaling.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = (num_classes, 2 * num_classes, num_classes, 1)
        self.register_buffer("scale", torch.ones(num_classes))
        self.register_buffer("shift", torch.zeros(num_classes))
        self.register_buffer("platt", torch.tensor([1.0, 0.0]))
        for layer in range(3):
            self.register_buffer(f"weight{layer}", torch.zeros(widths[layer + 1], widths[layer]))
            self.register_buffer(f"bias{layer}", torch.zeros(widths[layer + 1]))

    scale: Tensor
    shift: Tensor
    platt: Tensor
    weight0: Tensor
    bias0: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Map logits [...,K] to log-odds [...,1] of a correct label; above 0 routes to T_ok."""
        hidden = relu(floored_log_softmax(rows) * self.scale + self.shift)
        hidden = relu(linear(hidden, self.weight0, self.bias0))
        hidden = relu(linear(hidden, self.weight1, self.bias1))
        return linear(hidden, self.weight2, self.bias2)

    def calibrated(self, odds: Tensor) -> Tensor:
        """Map trained log-odds to those whose sigmoid is P(correct) on held-out pixels."""
        return odds * self.platt[0] + self.platt[1]

    def fit(self, train: Sample, select: Sample, context: FitContext) -> None:
        """Train on one sample; use the other for early stopping and to calibrate the odds."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            network = _network(self.num_classes)
        inputs, correct = _examples(train)
        held_inputs, held_correct = _examples(select)
        _train(network, inputs, correct, (held_inputs, held_correct), context)
        self._fold(network)
        with torch.no_grad():
            odds = self(held_inputs)[:, 0]
        start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        problem = PlattProblem(odds.double(), held_correct.double())
        self.platt.copy_(minimise(problem, start, context, "calibrating the selector")[0])

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return len(self.scale)

    def _fold(self, network: nn.Sequential) -> None:
        """Copy a trained network's layers, with batch normalisation folded into them."""
        norms = [module for module in network if isinstance(module, nn.BatchNorm1d)]
        layers = [module for module in network if isinstance(module, nn.Linear)]
        with torch.no_grad():
            scale, shift = _scale_and_shift(norms[0])
            self.scale.copy_(scale)
            self.shift.copy_(shift)
            for place, layer in enumerate(layers):
                weight, bias = layer.weight.detach(), layer.bias.detach()
                if place + 1 < len(norms):
                    scale, shift = _scale_and_shift(norms[place + 1])
                    weight, bias = weight * scale[:, None], bias * scale + shift
                self.get_buffer(f"weight{place}").copy_(weight)
                self.get_buffer(f"bias{place}").copy_(bias)


class PlattProblem:
    """Platt scaling: logistic regression of correctness on log-odds; see `solvers.Problem`."""

    def __init__(self, odds: Tensor, correct: Tensor) -> None:
        self.features = torch.stack([odds, torch.ones_like(odds)], dim=1)
        self.correct = correct
        probability = odds.sigmoid()
        weighted = self.features * (probability * (1 - probability))[:, None]
        hessian = weighted.T @ self.features / len(odds)
        self.inverse = torch.linalg.inv(hessian + 1e-4 * torch.eye(2, dtype=hessian.dtype))
        self.ridge = 1.0 / len(odds)

    def evaluate(self, point: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Compute the mean loss [1] with a ridge of one pixel, and its gradient [1,2]."""
        odds = self.features @ point[0]
        difference = point - torch.tensor([1.0, 0.0], dtype=point.dtype)
        value = binary_cross_entropy_with_logits(odds, self.correct)
        gradient = (odds.sigmoid() - self.correct) @ self.features / len(odds)
        ridge = self.ridge * difference.square().sum()
        return (value + ridge)[None], gradient[None] + 2 * self.ridge * difference

    def precondition(self, gradient: Tensor) -> Tensor:
        """Multiply a gradient [1,2] by the inverse Hessian at the start."""
        divided: Tensor = gradient @ self.inverse
        return divided


def _network(num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm1d(num_classes),
        nn.ReLU(),
        nn.Linear(num_classes, 2 * num_classes),
        nn.BatchNorm1d(2 * num_classes),
        nn.ReLU(),
        nn.Linear(2 * num_classes, num_classes),
        nn.BatchNorm1d(num_classes),
        nn.ReLU(),
        nn.Linear(num_classes, 1),
    )


def _examples(sample: Sample) -> tuple[Tensor, Tensor]:
    """Return logits [m,K] and whether the top class is the label, float32 [m]."""
    return sample.logits, (sample.logits.argmax(dim=1) == sample.labels).float()


def _train(
    network: nn.Sequential,
    inputs: Tensor,
    correct: Tensor,
    held_out: tuple[Tensor, Tensor],
    context: FitContext,
) -> None:
    generator = torch.Generator().manual_seed(context.seed)

    def loss(rows: Tensor, targets: Tensor) -> Tensor:
        weight = 1 + MISPREDICTION_COPIES * (1 - targets)
        odds = network(floored_log_softmax(rows))[:, 0]
        total = binary_cross_entropy_with_logits(odds, targets, weight, reduction="sum")
        return total / weight.sum()

    def batches() -> Iterator[Tensor]:
        order = torch.randperm(len(inputs), generator=generator)
        for start in range(0, len(order), BATCH_PIXELS):
            chosen = order[start : start + BATCH_PIXELS]
            if len(chosen) > 1:  # batch normalisation needs two pixels
                yield loss(inputs[chosen], correct[chosen])

    def held_out_loss() -> float:
        network.eval()
        with torch.no_grad():
            return loss(*held_out).item()

    descend(network, batches, held_out_loss, context, SCHEDULE)
    network.eval()


def _scale_and_shift(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return the scale and shift that a batch normalisation applies in evaluation."""
    if norm.running_var is None or norm.running_mean is None:
        raise AssertionError("batch normalisation keeps running statistics here")
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


TRAIN_FRACTION = 0.7  # of the images; the rest stops training and sets the temperatures
SELECTOR_FLOATS = 2**23  # more than some hundred pixels an image improve the selector little


class Selective(Calibrator):
    """q softmax(g/T_ok) + (1-q) softmax(g/T_mis) with q = P(correct); hard: q is 0 or 1.

    g are the logits, or another calibrator's log-probabilities in the `selective+<other>` forms;
    the selector always reads the logits. `mixing` is "soft" or "hard"; `mispredicted` fixes T_mis,
    clamped to [0.05, 1e4] (the paper used 2 and 1e10), and T_ok at 1. `of_base` are arguments of
    the other calibrator.
    """

    method: ClassVar[str] = "selective"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=True)
    auto_rank: ClassVar[int | None] = 5
    combines_with_selective: ClassVar[bool] = False
    options: ClassVar[Mapping[str, str]] = {
        "routing": "mixing",
        "mispredicted_temperature": "mispredicted",
    }
    base_class: ClassVar[type[Calibrator]] = Identity
    beta_ok: Tensor
    beta_mis: Tensor
    soft: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        mixing: str = "soft",
        mispredicted: float | None = None,
        **of_base: object,
    ) -> None:
        super().__init__(num_classes)
        if mixing not in ("soft", "hard"):
            raise ArgumentError(f"expected mixing to be soft or hard, got {mixing}")
        self.mispredicted = mispredicted
        make: Callable[..., Calibrator] = self.base_class
        self.base = make(num_classes, **of_base)
        self.selector = Selector(num_classes)
        self.register_buffer("beta_ok", torch.ones(()))
        self.register_buffer("beta_mis", torch.ones(()))
        self.register_buffer("soft", torch.tensor(float(mixing == "soft")))

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits [N,K,...] to log-probabilities."""
        odds = self._odds(logits)
        hard = torch.where(odds > 0, 60.0, -60.0)  # their sigmoid is 1 and 0 in float32
        odds = torch.where(self.soft > 0, self.selector.calibrated(odds), hard)
        based = self.base.with_image(self.image)(logits)
        correct = (based * self.beta_ok).log_softmax(dim=1)
        misclassified = (based * self.beta_mis).log_softmax(dim=1)
        mixed = torch.logaddexp(
            correct - torch.nn.functional.softplus(-odds),
            misclassified - torch.nn.functional.softplus(odds),
        )
        return uniform_where_broken(mixed, logits)

    def predict_errors(self, logits: Tensor) -> Tensor:
        """Return the pixels that hard routing assigns T_mis: logits [N,K,...] to bool [N,...]."""
        return self._odds(logits)[:, 0] <= 0

    def _odds(self, logits: Tensor) -> Tensor:
        """Compute the selector's log-odds [N,1,...] as trained from logits [N,K,...]."""
        odds: Tensor = self.selector(finite_logits(logits).movedim(1, -1))
        return odds.movedim(-1, 1)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Fit the base and the selector on 70 % of the images, the temperatures on the others.

        Without a misclassified pixel both temperatures are that of plain temperature scaling. A
        single image is used for both. Raises ArgumentError where fewer than two classes are
        labelled.
        """
        require_two_classes(count_classes(data))
        parts = split(data, TRAIN_FRACTION, context.seed)
        train, select = (Subset(data, part) for part in parts)
        self.base.fit(train, context)
        trained, held = (draw(part, context, SELECTOR_FLOATS) for part in (train, select))
        if (trained.logits.argmax(1) == trained.labels).all():
            self._revert(select, context)
            return
        self.selector.fit(trained, held, context)
        self.beta_ok.fill_(1.0)
        if self.mispredicted is None:
            self.beta_ok.fill_(self._beta(select, context, lambda odds: odds > 0))
            self.beta_mis.fill_(self._beta(select, context, lambda odds: odds <= 0))
        else:
            self.beta_mis.fill_(1 / clamped_temperature(self.mispredicted))

    def summary(self) -> dict[str, float]:
        """Return both temperatures."""
        return {"t_ok": 1 / self.beta_ok.item(), "t_mis": 1 / self.beta_mis.item()}

    def _revert(self, select: ValidationSet, context: FitContext) -> None:
        self.selector = Selector(self.num_classes)
        beta = self._beta(select, context, torch.isfinite)
        self.beta_ok.fill_(beta)
        self.beta_mis.fill_(beta)

    def _beta(
        self, data: ValidationSet, context: FitContext, chosen: Callable[[Tensor], Tensor]
    ) -> float:
        """Fit the inverse temperature on the chosen pixels, or on all where there are none."""
        routed = Routed(data, self.base, self.selector, chosen)
        if not any((routed[index].labels != IGNORE).any() for index in range(len(routed))):
            return fit_inverse_temperature(replace(routed, chosen=torch.isfinite), context)
        return fit_inverse_temperature(routed, context)


@dataclass(frozen=True)
class Routed(View):
    """Replace logits by the base's log-probabilities; label only pixels of chosen odds."""

    base: Calibrator
    selector: Selector
    chosen: Callable[[Tensor], Tensor]

    def __getitem__(self, index: int) -> LabelledImage:
        logits, labels, image = self.whole[index]
        with torch.no_grad():
            based = self.base.with_image(image)(logits[None])[0]
            odds = self.selector(finite_logits(logits[None]).movedim(1, -1))[0, ..., 0]
        return LabelledImage(based, labels.where(self.chosen(odds), IGNORE))


def over(other: type[Calibrator]) -> type[Selective]:
    """Return the class of `selective+<other>`, which scales another method's log-probabilities."""
    guarantees = other.invariances

    class SelectiveOver(Selective):
        __doc__ = f"Selective scaling of {other.method}'s log-probabilities."
        method = f"selective+{other.method}"
        invariances = guarantees
        auto_rank = None
        options: ClassVar[Mapping[str, str]] = {**Selective.options, **other.options}
        needs_image = other.needs_image
        needs_maps = other.needs_maps
        base_class = other

    return SelectiveOver
