"""Abstention with a guaranteed error among accepted pixels: Learn then Test by image.

Images are the independent draws (one frame per group), fresh ones that neither the segmenter, the
calibrator, nor the thresholds have seen. A guarantee is marginal: it holds over draws of the whole
set, neither per class nor per image, and not after a shift. Sources: Angelopoulos et al. 2021
(Learn then Test, fixed-sequence testing), Waudby-Smith and Ramdas 2024 (betting), Bates et al.
2021 (Hoeffding-Bentkus), Angelopoulos et al. 2024 (conformal risk control).
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.metrics.confidence_histogram import ConfidenceHistogram
from app.errors import ArgumentError

Risk = Literal["pooled", "image_mean"]
PValue = Literal["betting", "hoeffding_bentkus"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What has to be fixed before the images are looked at.

    "pooled" is E[accepted and wrong] / E[accepted], images weighing equally; "image_mean" is the
    mean of each image's error rate among its accepted pixels, 0 where it accepts none. Testing
    goes from the strictest threshold down to the first that fails, from each of `starts` evenly
    spaced beginnings at level delta / starts. `seed` orders the images for betting. Raises
    ArgumentError for alpha or delta outside (0,1).
    """

    alpha: float
    delta: float
    risk: Risk = "pooled"
    p_value: PValue = "betting"
    starts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 1 and 0 < self.delta < 1):
            raise ArgumentError(
                f"expected alpha and delta in (0,1), got {self.alpha} and {self.delta}"
            )


@dataclass(frozen=True)
class Certificate:
    """With probability 1 - delta over the images drawn, the risk at the threshold is <= alpha.

    `threshold` is None where nothing could be certified: abstain everywhere. `coverage` is the
    mean share of pixels with confidence >= threshold in these images, and `risk` their risk as
    measured (NaN where nothing is accepted), not a bound.
    """

    threshold: float | None
    alpha: float
    delta: float
    coverage: float
    risk: float
    images: int


class Acceptance:
    """For each image and threshold, the share of pixels accepted, and accepted but wrong.

    Memory O(images x thresholds). Thresholds must fall strictly, from the first to be tested.
    """

    def __init__(self, thresholds: Sequence[float]) -> None:
        if not len(thresholds) or (np.diff(thresholds) >= 0).any():
            raise ArgumentError(f"expected strictly falling thresholds, got {list(thresholds)}")
        self.thresholds = tuple(float(t) for t in thresholds)
        self.accepted: list[Floats] = []
        self.wrong: list[Floats] = []
        self._units: list[Hashable] = []  # what each image is a draw of

    def add(self, confidence: Tensor, correct: Tensor, group: int | None = None) -> Self:
        """Take one image's labelled pixels: confidence float [m], correct bool [m].

        `group` names where it comes from. An image without pixels is left out. Thresholds are
        compared in the confidence's own type.
        """
        values, hit = confidence.cpu().numpy(), correct.cpu().numpy()
        if len(values):
            self.accepted.append(self._shares(values, len(values)))
            self.wrong.append(self._shares(values[~hit], len(values)))
            self._units.append(object() if group is None else group)
        return self

    def by_group(self) -> "Acceptance":
        """Put each group's images into one: its frames are no independent draws, groups are."""
        whole = Acceptance(self.thresholds)
        for unit in dict.fromkeys(self._units):
            frames = [place for place, other in enumerate(self._units) if other == unit]
            whole.accepted.append(np.mean([self.accepted[place] for place in frames], axis=0))
            whole.wrong.append(np.mean([self.wrong[place] for place in frames], axis=0))
            whole._units.append(unit)
        return whole

    def below(self, index: int) -> "Acceptance":
        """Leave out the thresholds before an index."""
        rest = Acceptance(self.thresholds[index:])
        rest.accepted = [fractions[index:] for fractions in self.accepted]
        rest.wrong = [fractions[index:] for fractions in self.wrong]
        return rest

    def _shares(self, values: NDArray[np.floating], whole: int) -> Floats:
        """Share of `whole` with a value >= each threshold."""
        below = np.searchsorted(np.sort(values), np.asarray(self.thresholds, values.dtype))
        fractions: Floats = (len(values) - below) / whole
        return fractions


def threshold_grid(
    tuning: ConfidenceHistogram, points: int = 50, start: float = 0.5
) -> list[float]:
    """Falling thresholds from coverage `start` to 1 on a tuning split, at most `points`.

    The tuning split must not share images with the certified one. The pooled risk has no power
    near coverage 0, so testing starts where half the pixels are accepted.
    """
    levels = np.linspace(start, 1, points)
    return sorted({tuning.threshold(float(level)) for level in levels}, reverse=True)


def certify(images: Acceptance, plan: Plan) -> Certificate:
    """Find the lowest threshold whose risk is <= alpha with probability 1 - delta.

    The guarantee holds for any number of images; a small number only certifies less. Raises
    ArgumentError without images and for starts outside 1..thresholds.
    """
    if not 1 <= plan.starts <= len(images.thresholds):
        raise ArgumentError(f"expected 1..{len(images.thresholds)} starts, got {plan.starts}")
    count = len(images.accepted)
    if not count:
        raise ArgumentError("expected at least 1 labelled image, got 0")
    accepted, wrong = np.stack(images.accepted), np.stack(images.wrong)  # [n,m]
    chosen = _lowest_certified(accepted, wrong, plan)
    if chosen is None:
        return Certificate(None, plan.alpha, plan.delta, 0.0, np.nan, count)
    a, e = accepted[:, chosen], wrong[:, chosen]
    coverage = float(a.mean())
    pooled = float(e.mean()) / coverage if coverage else np.nan
    measured = pooled if plan.risk == "pooled" else float(_rates(e, a).mean())
    threshold = images.thresholds[chosen]
    return Certificate(threshold, plan.alpha, plan.delta, coverage, measured, count)


def conformal_threshold(images: Acceptance, alpha: float) -> float | None:
    """Lowest threshold at which the expected share of accepted wrong pixels is <= alpha, or None.

    Conformal risk control: an expectation over images that are merely exchangeable, without a
    delta. The share is of all pixels, not of accepted ones, since only that falls with the
    threshold. Raises ArgumentError without images.
    """
    count = len(images.wrong)
    if not count:
        raise ArgumentError("expected at least 1 labelled image, got 0")
    bounds = (np.stack(images.wrong).sum(0) + 1) / (count + 1)
    met = np.flatnonzero(bounds <= alpha)
    return images.thresholds[met[-1]] if len(met) else None


def pooled_losses(accepted: Floats, wrong: Floats, alpha: float) -> Floats:
    """Losses in [0,1] whose mean is <= alpha exactly where the pooled risk is: [n,m] shares."""
    return wrong - alpha * accepted + alpha


def betting_p_values(losses: Floats, alpha: float, delta: float) -> Floats:
    """P-values of "mean loss > alpha" by betting: losses [n,m] in [0,1], random rows, to [m].

    1 / the highest capital ever held (Ville); stakes look at earlier rows only and suit `delta`.
    """
    n = len(losses)
    rank = np.arange(1, n + 1)[:, None]
    means = (alpha + losses.cumsum(0)) / (rank + 1)
    variances = (0.25 + np.square(losses - means).cumsum(0)) / (rank + 1)
    before = np.concatenate([np.full((1, losses.shape[1]), 0.25), variances[:-1]])
    stakes = np.minimum(np.sqrt(2 * math.log(1 / delta) / (n * before)), 0.75 / (1 - alpha))
    capital = np.log1p(stakes * (alpha - losses)).cumsum(0).max(0)
    p_values: Floats = np.exp(-np.maximum(capital, 0))
    return p_values


def hoeffding_bentkus_p_values(means: Floats, n: int, alpha: float) -> Floats:
    """P-values of "mean loss > alpha" from means [m] of n losses in [0,1], to [m]."""
    kept = np.minimum(means, alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.where(kept > 0, kept * np.log(kept / alpha), 0.0)
    entropy = zero + (1 - kept) * np.log((1 - kept) / (1 - alpha))
    # A sum that is an integer but for rounding must not be rounded up to the next one.
    successes = np.ceil(n * means - 1e-9).astype(np.int64)
    bentkus = math.e * _binomial_cdf(n, alpha)[successes]
    p_values: Floats = np.minimum(np.minimum(np.exp(-n * entropy), bentkus), 1.0)
    return p_values


def fixed_sequence(p_values: Floats, level: float, starts: int = 1) -> int | None:
    """Index of the last hypothesis rejected going down from any of the starts, or None."""
    ends = []
    for start in np.linspace(0, len(p_values), starts, endpoint=False).astype(int):
        kept = np.flatnonzero(p_values[start:] > level)
        end = int(start + kept[0]) if len(kept) else len(p_values)
        if end > start:
            ends.append(end - 1)
    return max(ends, default=None)


def _lowest_certified(accepted: Floats, wrong: Floats, plan: Plan) -> int | None:
    """Index of the lowest threshold that the plan's tests certify, or None."""
    pooled = plan.risk == "pooled"
    losses = pooled_losses(accepted, wrong, plan.alpha) if pooled else _rates(wrong, accepted)
    level = plan.delta / plan.starts
    if plan.p_value == "betting":
        order = np.random.default_rng(plan.seed).permutation(len(losses))
        p_values = betting_p_values(losses[order], plan.alpha, level)
    else:
        p_values = hoeffding_bentkus_p_values(losses.mean(0), len(losses), plan.alpha)
    return fixed_sequence(p_values, level, plan.starts)


def _rates(wrong: Floats, accepted: Floats) -> Floats:
    """Error rates among accepted pixels, 0 where none is accepted."""
    return np.divide(wrong, accepted, out=np.zeros_like(wrong), where=accepted > 0)


def _binomial_cdf(n: int, p: float) -> Floats:
    """P(Bin(n,p) <= k) for k = 0..n."""
    k = np.arange(n)
    steps = np.log((n - k) / (k + 1)) + math.log(p) - math.log1p(-p)
    masses = n * math.log1p(-p) + np.concatenate([[0.0], steps.cumsum()])
    cdf: Floats = np.minimum(np.exp(masses).cumsum(), 1.0)
    return cdf
