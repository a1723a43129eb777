"""Temperature scaling (Guo et al. 2017): divide all logits by one temperature.

The mean negative log-likelihood is convex in the inverse temperature beta. A few guarded Newton
steps, each one pass over the pixels, solve it to convergence. Labels never change.

Without a misclassified pixel the likelihood alone has no maximum: it rises with beta without end.
So beta has a weak prior, normal with mean 1 and standard deviation 0.5. With N independent pixels
the objective is

    mean NLL + (beta - 1)^2 / (2 * 0.5^2 * N).

Pixels of one image are correlated, so each image counts for at most 100. (On 51 frames of CamVid
val the derivative of the loss varies between images as if each had 250 independent pixels. This is
an upper bound, as neighbouring frames resemble each other.) A prior of beta instead of log T keeps
the objective convex, restrains large beta most, and varies little between 0 and 1, where the beta
of over-confident models is.
"""

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import (
    Calibrator,
    FitContext,
    Invariances,
    finite_logits,
)
from app.calibration.dataset import Subset, ValidationSet, groups_of, pixels
from app.calibration.sampling import chunks, require_classes
from app.errors import ArgumentError
from app.numerics import LOG2_E, compiled, power_of_two
from app.schemas.fit import TEMPERATURE_RANGE

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Sums = NDArray[np.float64]

NEWTON_STEPS = 30
FOLDS = 4
BLOCK = 512  # pixels at a time, so that the sums over their classes stay in the L1 cache
BETA_RANGE = (1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0])
PRIOR_DEVIATION = 0.5  # of beta, around 1
INDEPENDENT_PIXELS = 100  # that an image counts for at most

_LOWEST, _ZERO = np.float32(-3e38), np.float32(0)
_LOWEST_GAP = np.float32(-1e6)  # logit below the top one at which exp(beta gap) is 0 at any beta


class Temperature(Calibrator):
    """softmax(z / T), T in [0.05, 1e4]; stored as the multiplier beta = 1/T."""

    method: ClassVar[str] = "temperature"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=True)
    auto_rank: ClassVar[int | None] = 1
    beta: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("beta", torch.ones(()))

    def forward(self, logits: Tensor) -> Tensor:
        """Compute log-softmax(beta z) of logits [N,K,...]."""
        return (finite_logits(logits) * self.beta).log_softmax(dim=1)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Minimise the mean negative log-likelihood over all labelled pixels, with the prior."""
        self.beta.fill_(fit_inverse_temperature(data, context))

    def scale(self) -> float | None:
        """Return the inverse temperature."""
        return self.beta.item()

    def summary(self) -> dict[str, float]:
        """Return the temperature."""
        return {"temperature": 1 / self.beta.item()}


def fit_inverse_temperature(data: ValidationSet, context: FitContext) -> float:
    """Find the beta in [1e-4, 20] of least mean negative log-likelihood with the prior.

    The result is accurate to 1e-7 relative. The sign of the derivative narrows a bracket. Newton's
    step is used if it stays inside the bracket, otherwise the bracket is halved in log beta.
    """
    low, high = BETA_RANGE
    beta = 1.0
    for step in range(NEWTON_STEPS):
        context.progress("temperature", step / NEWTON_STEPS)
        slope, curvature = _derivatives(data, beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        proposal = beta - slope / curvature if curvature > 0 else 0.0
        if not low < proposal < high:
            proposal = (low * high) ** 0.5
        if abs(proposal - beta) <= 1e-7 * beta:
            break
        beta = proposal
    context.progress("temperature", 1.0)
    return beta


def fit_inverse_temperature_if_better(data: ValidationSet, context: FitContext) -> float:
    """Return the inverse temperature of least NLL, or 1 where that has no lower held-out NLL.

    Each image is held out once, in four folds that keep groups together. With a single group, and
    where the images outside a fold have no labelled pixel, the temperature of all images is taken.
    """
    names, group = np.unique(np.asarray(groups_of(data)), return_inverse=True)
    fold = np.random.default_rng(context.seed).permutation(len(names))[group] % FOLDS
    scaled = unscaled = 0.0
    for number in range(min(FOLDS, len(names))):
        held_out, others = (
            Subset(data, np.flatnonzero(chosen).tolist())
            for chosen in (fold == number, fold != number)
        )
        if not any(True for _ in pixels(others)):
            break
        losses = summed_nll(held_out, (fit_inverse_temperature(others, context), 1.0))
        scaled, unscaled = scaled + losses[0], unscaled + losses[1]
    else:
        if scaled >= unscaled:
            return 1.0
    return fit_inverse_temperature(data, context)


def summed_nll(data: ValidationSet, scales: tuple[float, ...]) -> list[float]:
    """Sum the negative log-likelihood of softmax(scale z) for each scale, in one pass."""
    totals = [0.0] * len(scales)
    for logits, labels in chunks(data):
        for index, scale in enumerate(scales):
            logs = (logits * scale).log_softmax(dim=1).gather(1, labels[:, None])
            totals[index] -= logs.double().sum().item()
    return totals


def _derivatives(data: ValidationSet, beta: float) -> tuple[float, float]:
    """Compute the first and second derivative of the objective in beta, in one pass."""
    sums = np.zeros(2)
    count = independent = 0
    for logits, labels in pixels(data):
        require_classes(labels, data.num_classes)  # the kernel does not check its indices
        add_derivatives(np.ascontiguousarray(logits.numpy().T), labels.numpy(), beta, sums)
        count += len(labels)
        independent += min(len(labels), INDEPENDENT_PIXELS)
    if count == 0:
        raise ArgumentError("expected at least one labelled pixel to fit on, got none")
    slope, curvature = (sums / count).tolist()
    prior = 1 / (independent * PRIOR_DEVIATION**2)
    return slope + prior * (beta - 1), curvature + prior


@compiled
def add_derivatives(logits: Floats, labels: Labels, beta: float, sums: Sums) -> None:
    """Add the derivatives of each pixel's loss in beta to `sums`, float64 [2].

    Logits are float32 [K,m], labels int64 [m]. The first derivative is the mean logit minus the
    label's logit, the second the variance of the logits, both under softmax(beta z).
    """
    gain, count = np.float32(beta * LOG2_E), len(labels)
    top, total = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    first, second = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        top[:] = _LOWEST
        for k in range(len(logits)):
            row = logits[k, start : start + size]
            for x in range(size):
                top[x] = max(top[x], row[x])
        total[:] = 0
        first[:] = 0
        second[:] = 0
        for k in range(len(logits)):
            row = logits[k, start : start + size]
            for x in range(size):
                gap = max(row[x] - top[x], _LOWEST_GAP)
                power = power_of_two(gap * gain)
                total[x] += power
                first[x] += power * gap
                second[x] += power * gap * gap
        for x in range(size):
            mean = first[x] / total[x]
            sums[0] += mean - (logits[labels[start + x], start + x] - top[x])
            sums[1] += max(second[x] / total[x] - mean * mean, _ZERO)
