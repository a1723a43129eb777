"""Certify abstention thresholds and record the drift reference on the test images.

`max_error` is served from a fixed grid of error levels. Levels are tested on the test images from
the loosest to the strictest, until one fails. A request for x gets the largest certified level up
to x, or none: no choice depends on the test images after the level's own test, so its guarantee
holds with probability 1 - delta for each x (see `risk_control` for the tests).

The thresholds to test, and the first of them for each level, are determined on the tuning images.
A level's tests begin where coverage * (level - error rate) is largest, as their power is there.
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
from app.calibration.risk_control import (
    LARGEST_STAKE,
    Acceptance,
    certify,
    threshold_grid,
)
from app.schemas.calibrator import CertifiedThreshold

LEVELS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
DELTA = 0.1
NOT_INDEPENDENT = "the images that certify also chose among the methods: there are too few"
NOT_REQUESTED = "the fit was asked to certify nothing"


@dataclass(frozen=True)
class Certification:
    """Certified thresholds by rising `max_error`, and why each other level has none."""

    thresholds: tuple[CertifiedThreshold, ...]
    uncertified: dict[float, str]
    images: int
    at_image_size: bool  # else on the logits' grid


@dataclass(frozen=True)
class Guarantees:
    """Certified thresholds, and the drift reference: histograms of the images they hold for."""

    certification: Certification
    reference: Reference | None  # None for tables, whose rows need not make up whole images


def certify_levels(
    images: Acceptance, tuning: ConfidenceHistogram, seed: int, *, at_image_size: bool
) -> Certification:
    """Certify a threshold for each level, from the loosest down to the first that fails.

    The tuning images must not be among the certification images.
    """
    found: list[CertifiedThreshold] = []
    uncertified: dict[float, str] = {}
    for level in sorted(LEVELS, reverse=True):
        if uncertified:
            uncertified[level] = f"the looser level {max(uncertified)} could not be certified"
            continue
        tested = images.below(first_to_test(tuning, images.thresholds, level))
        certified = certify(tested, level, DELTA, seed)
        if certified is None:
            uncertified[level] = why_not(tested, level)
        else:
            found.append(certified)
    return Certification(
        tuple(found[::-1]),
        dict(sorted(uncertified.items())),
        len(images.accepted),
        at_image_size,
    )


def certify_nothing(reason: str) -> Certification:
    """Return a certification without thresholds, with one reason for all levels."""
    return Certification((), dict.fromkeys(LEVELS, reason), 0, at_image_size=False)


def first_to_test(tuning: ConfidenceHistogram, thresholds: Sequence[float], level: float) -> int:
    """Return the index of the threshold with the largest coverage * (level - error rate)."""
    best = max(tuning.risk_coverage(), key=lambda step: step.coverage * (level - step.risk))
    falling = -np.asarray(thresholds)
    index = int(np.searchsorted(falling, -tuning.threshold(best.coverage)))
    return min(index, len(thresholds) - 1)


def least_images(level: float) -> int:
    """Count the images that certify a level if none of their accepted pixels is wrong."""
    return math.ceil(math.log(1 / DELTA) / math.log1p(LARGEST_STAKE * level / (1 - level)))


def why_not(images: Acceptance, level: float) -> str:
    """Explain why a level failed: too few images, or too many errors."""
    count, needed = len(images.accepted), least_images(level)
    if count < needed:
        return f"expected at least {needed} images, even without a wrong pixel, got {count}"
    accepted = sum(fractions[0] for fractions in images.accepted)
    wrong = sum(fractions[0] for fractions in images.wrong)
    measured = wrong / accepted if accepted else math.nan
    return (
        f"expected significantly fewer errors than {level:.0%} where confidence is at least "
        f"{images.thresholds[0]:.4f}, got {measured:.2%} on {count} images"
    )


def compute_guarantees(
    test: ValidationSet,
    calibrator: Calibrator,
    tuning: ConfidenceHistogram,
    context: FitContext,
    *,
    uncertified: str | None = None,
) -> Guarantees:
    """Certify thresholds and record the drift reference in one pass over the test images.

    Where the set has groups, groups are certified in place of images. `tuning` determines the
    thresholds to test; it must share no image with the test images. `uncertified` is a reason to
    certify nothing.
    """
    images = Acceptance(threshold_grid(tuning))
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
        if uncertified is None
        else certify_nothing(uncertified)
    )
    return Guarantees(certification, reference_of(rows))
