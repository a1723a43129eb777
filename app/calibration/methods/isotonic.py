"""Isotonic regression: a monotone function of each class's probability, renormalised.

IRM (Zhang et al. 2020) fits one strictly increasing function to the one-vs-rest pairs of all
classes, which keeps the order of the classes; the one-vs-all form (Zadrozny and Elkan 2002) fits
one function for each class and can change labels. Probabilities are binned by log-odds, which
resolves those near 0 and near 1.
"""

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import FitContext, Invariances, Pixelwise
from app.calibration.dataset import ValidationSet
from app.calibration.sampling import chunks, count_classes, require_two_classes

BINS = 4096
LIMIT = 30.0  # log-odds are clamped to [-30, 30]
PRIOR = 1.0  # pseudo-pixels a block at its uncalibrated probability: pure blocks avoid 0 and 1
SMALLEST_SLOPE = 1e-3  # in log-odds: constant blocks would tie classes

Array = NDArray[np.float64]


class Isotonic(Pixelwise):
    """f(p_k) / sum_j f(p_j), one strictly increasing f; labels never change.

    `table` [rows,4097] holds the log-odds of f at equally spaced log-odds of p in [-30,30]; f is
    interpolated linearly in between. `rows` is 1 for a pooled function, else K.
    """

    method: ClassVar[str] = "isotonic"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=True)
    auto_rank: ClassVar[int | None] = 3
    pooled: ClassVar[bool] = True
    table: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        rows = 1 if self.pooled else num_classes
        grid = torch.linspace(-LIMIT, LIMIT, BINS + 1, dtype=torch.float64).float()
        self.register_buffer("table", grid.repeat(rows, 1))

    def calibrate_rows(self, rows: Tensor) -> Tensor:
        """Map logits [...,K] to log-probabilities [...,K]."""
        place = (log_odds(rows) + LIMIT) * (BINS / (2 * LIMIT))
        low = place.floor().clamp(0, BINS - 1)
        index = low.long()
        if not self.pooled:
            index = index + torch.arange(self.num_classes) * (BINS + 1)
        flat = self.table.flatten()
        below, above = flat[index], flat[index + 1]
        logs = torch.nn.functional.logsigmoid(below + (place - low) * (above - below))
        return logs - logs.logsumexp(dim=-1, keepdim=True)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Fit by pool-adjacent-violators over 4,096 bins of log-odds.

        In the one-vs-all form a class without a labelled pixel keeps the identity. Raises
        ArgumentError where fewer than two classes are labelled.
        """
        counts = count_classes(data)
        require_two_classes(counts)
        total, right, moment = _histograms(data, context)
        if self.pooled:
            total, right, moment = (part.sum(0, keepdims=True) for part in (total, right, moment))
        identity = type(self)(self.num_classes).table
        for row in range(len(self.table)):
            if self.pooled or counts[row]:
                fitted = _knots(total[row], right[row], moment[row])
                self.table[row] = torch.from_numpy(fitted)
            else:
                self.table[row] = identity[row]

    def summary(self) -> dict[str, float]:
        """Return the largest absolute change of log-odds."""
        identity = type(self)(self.num_classes).table
        return {"largest_change_of_log_odds": (self.table - identity).abs().max().item()}


class IsotonicOneVsAll(Isotonic):
    """f_k(p_k) / sum_j f_j(p_j), one increasing f_k for each class; labels may change."""

    method: ClassVar[str] = "isotonic_ova"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=False, order=False)
    auto_rank: ClassVar[int | None] = None
    pooled: ClassVar[bool] = False


def log_odds(rows: Tensor) -> Tensor:
    """Compute log(p_k / (1 - p_k)) in [-30, 30] from logits [...,K], exact for p_k close to 1."""
    logs = rows.log_softmax(dim=-1)
    probabilities = logs.exp()
    top = torch.arange(rows.shape[-1]) == rows.argmax(dim=-1, keepdim=True)
    # For the top class 1 - p cancels in float32; the sum of the other probabilities does not.
    rest = torch.where(top, 0.0, probabilities).sum(dim=-1, keepdim=True)
    complement = torch.where(top, rest, 1 - probabilities)
    return (logs - complement.clamp_min(1e-30).log()).clamp(-LIMIT, LIMIT)


def pool_adjacent_violators(values: Array, weights: Array) -> Array:
    """Compute the nondecreasing sequence [n] of least weighted squared distance to values [n]."""
    means: list[float] = []
    masses: list[float] = []
    sizes: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, mass, size = value, weight, 1
        while means and means[-1] >= mean:
            joined = masses[-1] + mass
            mean = (means.pop() * masses[-1] + mean * mass) / joined
            mass, size = joined, size + sizes.pop()
            masses.pop()
        means.append(mean)
        masses.append(mass)
        sizes.append(size)
    return np.repeat(means, sizes)


def _histograms(data: ValidationSet, context: FitContext) -> tuple[Array, Array, Array]:
    """Count pixels, and those of the class, and sum log-odds, by class and bin [K,4096]."""
    size = data.num_classes * BINS
    sums = torch.zeros(3, size, dtype=torch.float64)
    for done, (logits, labels) in enumerate(chunks(data)):
        context.progress("histograms", min(done / (4 * len(data)), 1.0))
        odds = log_odds(logits).double()
        bins = ((odds + LIMIT) * (BINS / (2 * LIMIT))).floor().clamp(0, BINS - 1).long()
        places = (bins + torch.arange(data.num_classes) * BINS).flatten()
        own = places.view_as(bins).gather(1, labels[:, None])[:, 0]
        sums[0] += torch.bincount(places, minlength=size)
        sums[1] += torch.bincount(own, minlength=size)
        sums[2] += torch.bincount(places, odds.flatten(), minlength=size)
    context.progress("histograms", 1.0)
    total, right, moment = sums.view(3, data.num_classes, BINS).numpy()
    return total, right, moment


def _knots(total: Array, right: Array, moment: Array) -> Array:
    """Compute one function's log-odds at the edges of the bins [4097], strictly increasing.

    The function is linear between the centres of the pooled blocks, with slope 1 outside of them.
    """
    edges = np.linspace(-LIMIT, LIMIT, BINS + 1)
    total, right, moment = (part[total > 0] for part in (total, right, moment))
    fitted = pool_adjacent_violators(right / total, total)
    starts = np.flatnonzero(np.r_[True, np.diff(fitted) > 0])
    mass, hits, moment = (np.add.reduceat(part, starts) for part in (total, right, moment))
    centres = moment / mass
    odds = np.exp(centres)  # of the uncalibrated probability p; the prior adds p and 1 - p
    hits, misses = hits + PRIOR * odds / (1 + odds), mass - hits + PRIOR / (1 + odds)
    values = np.maximum.accumulate(np.log(hits) - np.log(misses)).clip(-LIMIT, LIMIT)
    inner = np.interp(edges, centres, values)
    outer = np.minimum(edges - centres[0], 0) + np.maximum(edges - centres[-1], 0)
    knots: Array = inner + outer + SMALLEST_SLOPE * edges
    return knots
