"""Meta-Cal (Ma and Blaschko 2021): temperature scaling of low entropy, uniform otherwise.

Pixels whose uncalibrated entropy in nats is below eta get temperature scaling. All others are
rejected: they get 1/K for each class, or softmax(z/T) with a large temperature T that the caller
sets (Meta-Cal* of Wang et al. 2023). A margin of 1e-5 keeps the predicted class on top. Eta is
fitted on whole images that the temperature's fit does not use, since the 500 samples of the paper
would be a small part of one image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from app.calibration.base import FitContext, Invariances, Pixelwise, clamped_temperature
from app.calibration.dataset import IGNORE, LabelledImage, Subset, ValidationSet, View
from app.calibration.methods.isotonic import Array, pool_adjacent_violators
from app.calibration.methods.temperature import fit_inverse_temperature
from app.calibration.sampling import chunks, count_classes, require_two_classes
from app.calibration.splits import split
from app.errors import ArgumentError

ETA_FRACTION = 0.2  # of the images
ENTROPY_BINS = 16384  # over [0, log K]
ACCURACY_BINS = 20
MARGIN = 1e-5  # log-odds of the predicted class of a rejected pixel: a tie would be class 0


class MetaCal(Pixelwise):
    """softmax(z/T) where the entropy is below eta, else uniform or of a large temperature.

    `miscoverage` in (0,1) is the fraction of correct pixels that are rejected. With `accuracy` in
    (0,1), eta is set so that the accepted pixels have that accuracy. `rejected_temperature`,
    clamped to [0.05, 1e4], is that of the rejected pixels; without one they are uniform.
    """

    method: ClassVar[str] = "metacal"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=False)
    options: ClassVar[Mapping[str, str]] = {"rejected_temperature": "rejected_temperature"}
    beta: Tensor
    beta_rejected: Tensor  # 0: uniform
    eta: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        miscoverage: float = 0.05,
        accuracy: float | None = None,
        rejected_temperature: float | None = None,
    ) -> None:
        super().__init__(num_classes)
        for name, value in (("miscoverage", miscoverage), ("accuracy", accuracy)):
            if value is not None and not 0 < value < 1:
                raise ArgumentError(f"expected {name} between 0 and 1, got {value}")
        self.miscoverage, self.accuracy = miscoverage, accuracy
        self.register_buffer("beta", torch.ones(()))
        inverse = (
            0.0 if rejected_temperature is None else 1 / clamped_temperature(rejected_temperature)
        )
        self.register_buffer("beta_rejected", torch.tensor(inverse))
        self.register_buffer("eta", torch.tensor(2 * float(np.log(num_classes)) + 1))

    def calibrate_rows(self, rows: Tensor) -> Tensor:
        """Map logits [...,K] to log-probabilities [...,K]."""
        accepted = entropy(rows) < self.eta
        predicted = rows.argmax(dim=-1, keepdim=True)
        margin = MARGIN * (torch.arange(rows.shape[-1], device=rows.device) == predicted)
        rejected = rows * self.beta_rejected + margin
        return torch.where(accepted, rows * self.beta, rejected).log_softmax(dim=-1)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Fit eta on a fifth of the images, the temperature on accepted pixels of the others.

        Raises ArgumentError where fewer than two classes are labelled, or where the images do not
        reach the requested accuracy.
        """
        require_two_classes(count_classes(data))
        parts = split(data, 1 - ETA_FRACTION, context.seed)
        others, chosen = (Subset(data, part) for part in parts)
        histogram = _entropies(chosen, context)
        eta = (
            eta_for_miscoverage(histogram[0], self.miscoverage)
            if self.accuracy is None
            else eta_for_accuracy(histogram, self.accuracy)
        )
        eta *= float(np.log(self.num_classes)) / ENTROPY_BINS
        accepted = Accepted(others, lambda rows: entropy(rows)[..., 0] < eta)
        if any((accepted[index].labels != IGNORE).any() for index in range(len(accepted))):
            self.beta.fill_(fit_inverse_temperature(accepted, context))
        self.eta.fill_(eta)

    def summary(self) -> dict[str, float]:
        """Return the temperature, eta in nats, and the rejected pixels' temperature if any."""
        found = {"temperature": 1 / self.beta.item(), "eta": self.eta.item()}
        if self.beta_rejected > 0:
            found["rejected_temperature"] = 1 / self.beta_rejected.item()
        return found


@dataclass(frozen=True)
class Accepted(View):
    """Keep the labels of a set only where a rule on logits [...,K] holds."""

    rule: Callable[[Tensor], Tensor]

    def __getitem__(self, index: int) -> LabelledImage:
        image = self.whole[index]
        accepted = self.rule(image.logits.float().movedim(0, -1))
        return image._replace(labels=image.labels.where(accepted, IGNORE))


def entropy(rows: Tensor) -> Tensor:
    """Compute the entropy of softmax in nats, [...,1] in [0, log K], from logits [...,K]."""
    logs = rows.log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1, keepdim=True)


def eta_for_miscoverage(correct: Array, miscoverage: float) -> float:
    """Return the bin edge above the (1 - miscoverage) quantile of the correct pixels' entropies.

    `correct` [bins] counts pixels by entropy. Raises ArgumentError where there are none.
    """
    if correct.sum() == 0:
        raise ArgumentError("expected correctly predicted pixels to set eta on, got none")
    reached = np.cumsum(correct) >= (1 - miscoverage) * correct.sum()
    return float(np.flatnonzero(reached)[0] + 1)


def eta_for_accuracy(histogram: Array, accuracy: float) -> float:
    """Return the entropy, in bins, up to which the running accuracy is `accuracy`.

    `histogram` [2,bins] counts correct and wrong pixels by entropy. Twenty bins of equal mass
    give accuracies and mean entropies. A decreasing isotonic fit of the entropy on the running
    mean of the accuracies is evaluated at `accuracy`. Raises ArgumentError outside the range of
    the running means.
    """
    counts = histogram.sum(0)
    # A fine bin belongs to the coarse bin of its last pixel.
    coarse = np.ceil(np.cumsum(counts) / max(counts.sum(), 1) * ACCURACY_BINS).astype(int) - 1
    coarse = coarse.clip(0, ACCURACY_BINS - 1)
    mass, right, moment = (
        np.bincount(coarse, weights, ACCURACY_BINS)
        for weights in (counts, histogram[0], counts * (np.arange(len(counts)) + 0.5))
    )
    held = mass > 0
    running = np.cumsum(right[held] / mass[held]) / np.arange(1, held.sum() + 1)
    entropies = moment[held] / mass[held]
    if not running.min() <= accuracy <= running.max():
        raise ArgumentError(
            f"expected an accuracy in {running.min():.4f}..{running.max():.4f}, got {accuracy}"
        )
    order = np.argsort(running, kind="stable")
    falling = -pool_adjacent_violators(-entropies[order], np.ones(len(order)))
    return float(np.interp(accuracy, running[order], falling))


def _entropies(data: ValidationSet, context: FitContext) -> Array:
    """Count correct and wrong pixels by entropy, [2,bins]."""
    counts = torch.zeros(2, ENTROPY_BINS, dtype=torch.float64)
    scale = ENTROPY_BINS / float(np.log(data.num_classes))
    for done, (logits, labels) in enumerate(chunks(data)):
        context.progress("entropies", min(done / (4 * len(data)), 1.0))
        bins = (entropy(logits)[:, 0] * scale).floor().clamp(0, ENTROPY_BINS - 1).long()
        correct = logits.argmax(dim=1) == labels
        counts[0] += torch.bincount(bins[correct], minlength=ENTROPY_BINS)
        counts[1] += torch.bincount(bins[~correct], minlength=ENTROPY_BINS)
    context.progress("entropies", 1.0)
    histogram: Array = counts.numpy()
    return histogram
