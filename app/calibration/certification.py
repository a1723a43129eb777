"""The thresholds behind `max_error`: a fixed grid of error levels, each tested on fresh images.

Levels are tested from the loosest to the strictest, and the first that fails ends it. So a client
who asks for x is always served by the largest level of the grid up to x, or by none: no choice
that looks at the test images stands between the level and its guarantee, which therefore holds
with probability 1 - delta for each x (see `risk` for the tests themselves).

Which thresholds are tested, and with which a level's tests begin, is read off tuning images: the
tests have most power where the share of accepted pixels times the level is farthest above the
share of accepted errors.

What may be promised of a fitted calibrator, read off the test images as they are emitted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from app.calibration.base import Calibrator, FitContext
from app.calibration.dataset import IGNORE, ValidationSet, groups_of
from app.calibration.drift import Reference, histogram, reference_of
from app.calibration.metrics.confidence_histogram import ConfidenceHistogram
from app.calibration.predictions import predict, predicts_at_image_size
from app.calibration.risk_control import Acceptance, Plan, certify, threshold_grid

LEVELS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
DELTA = 0.1
LARGEST_STAKE = 0.75  # of what betting may put on a level at once; see `risk`


@dataclass(frozen=True)
class CertifiedThreshold:
    """Among pixels with confidence >= `threshold` at most `max_error` are wrong.

    That holds with probability 1 - `delta` over the images drawn. `coverage` and `error` are what
    was measured on the certification images, images weighing equally.
    """

    max_error: float
    threshold: float
    delta: float
    coverage: float
    error: float
    images: int


@dataclass(frozen=True)
class Certification:
    """What could be certified, from the strictest level on, and why the other levels could not."""

    thresholds: tuple[CertifiedThreshold, ...]
    uncertified: dict[float, str]
    images: int
    at_image_size: bool  # else on the logits' grid


def certify_levels(
    images: Acceptance,
    tuning: ConfidenceHistogram,
    seed: int,
    *,
    at_image_size: bool,
    levels: Sequence[float] = LEVELS,
    delta: float = DELTA,
) -> Certification:
    """Certify a threshold for each level, down to the first level that fails.

    The tuning images must share none with those that certify.
    """
    count = len(images.accepted)
    found: list[CertifiedThreshold] = []
    uncertified: dict[float, str] = {}
    for level in sorted(levels, reverse=True):
        if uncertified:
            uncertified[level] = f"the looser level {max(uncertified)} could not be certified"
            continue
        tested = images.below(first_to_test(tuning, images.thresholds, level))
        certificate = certify(tested, Plan(level, delta, seed=seed)) if count else None
        if certificate is None or certificate.threshold is None:
            uncertified[level] = why_not(tested, level, delta)
            continue
        found.append(
            CertifiedThreshold(
                max_error=level,
                threshold=certificate.threshold,
                delta=delta,
                coverage=certificate.coverage,
                error=certificate.risk,
                images=count,
            )
        )
    return Certification(
        tuple(found[::-1]), dict(sorted(uncertified.items())), count, at_image_size
    )


def certify_nothing(reason: str, levels: Sequence[float] = LEVELS) -> Certification:
    """Refuse all levels for one reason."""
    return Certification((), dict.fromkeys(sorted(levels), reason), 0, at_image_size=False)


def thresholds_to_test(tuning: ConfidenceHistogram) -> list[float]:
    """Place thresholds at even steps of coverage on the tuning images, from 2% to all."""
    return threshold_grid(tuning, points=50, start=0.02)


def first_to_test(tuning: ConfidenceHistogram, thresholds: Sequence[float], level: float) -> int:
    """Index of the threshold where the tuning images leave the widest margin below a level."""
    best = max(tuning.risk_coverage(), key=lambda step: step.coverage * (level - step.risk))
    falling = -np.asarray(thresholds)
    index = int(np.searchsorted(falling, -tuning.threshold(best.coverage)))
    return min(index, len(thresholds) - 1)


def least_images(level: float, delta: float) -> int:
    """Count the images that could certify a level if no accepted pixel of theirs was wrong."""
    return math.ceil(math.log(1 / delta) / math.log1p(LARGEST_STAKE * level / (1 - level)))


def why_not(images: Acceptance, level: float, delta: float) -> str:
    """Say why a level failed: too few images, or too many errors."""
    count, needed = len(images.accepted), least_images(level, delta)
    if count < needed:
        return f"expected at least {needed} images to test on, even were all right, got {count}"
    accepted = sum(fractions[0] for fractions in images.accepted)
    wrong = sum(fractions[0] for fractions in images.wrong)
    measured = wrong / accepted if accepted else math.nan
    return (
        f"expected surely fewer errors than {level:.0%} where confidence is at least "
        f"{images.thresholds[0]:.4f}, got {measured:.2%} on {count} images"
    )


TOO_FEW = "the images that certify also chose among the methods: there are too few"


@dataclass(frozen=True)
class Guarantees:
    """Certified thresholds, and how answers look where they hold."""

    certification: Certification
    reference: Reference | None  # None for tables, whose rows need not make up whole images


def compute_guarantees(
    test: ValidationSet,
    calibrator: Calibrator,
    tuning: ConfidenceHistogram,
    context: FitContext,
    *,
    independent_test: bool,
) -> Guarantees:
    """Certify thresholds and take the reference in one pass over the test images.

    Where the set names groups, these take the place of images in what is certified.

    `tuning` places the thresholds to test, and has not seen the test images unless
    `independent_test` is false; then nothing is certified.
    """
    images = Acceptance(thresholds_to_test(tuning))
    rows, groups = [], groups_of(test)
    for index in range(len(test)):
        context.progress("certifying", index / len(test))
        prediction, labels = predict(test, index, calibrator)
        labelled = labels != IGNORE
        correct = prediction.classes == labels
        images.add(prediction.probabilities[labelled], correct[labelled], groups[index])
        if labels.ndim > 1:
            fractions = histogram(prediction.confidence, prediction.mask, calibrator.num_classes)
            rows.append(torch.from_numpy(fractions).float())
    certification = (
        certify_levels(
            images.by_group(), tuning, context.seed, at_image_size=predicts_at_image_size(test)
        )
        if independent_test
        else certify_nothing(TOO_FEW)
    )
    return Guarantees(certification, reference_of(rows))
