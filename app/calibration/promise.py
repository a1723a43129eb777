"""What may be promised of a fitted calibrator, read off the test images as they are emitted."""

from dataclasses import dataclass

import torch

from app.calibration.base import Calibrator, FitContext
from app.calibration.certification import (
    Certification,
    certify_levels,
    nothing_certified,
    thresholds_to_test,
)
from app.calibration.drift import Reference, histogram, reference_of
from app.calibration.emitted import emits, emitted
from app.calibration.ranking import Ranking
from app.calibration.risk import Acceptance
from app.calibration.validation import IGNORE, ValidationSet, drives_of

TOO_FEW = "the images that certify also chose among the methods: there are too few"


@dataclass(frozen=True)
class Promised:
    """Certified thresholds, and how answers look where they hold."""

    certification: Certification
    reference: Reference | None  # None for tables, whose rows need not make up whole pictures


def promise(
    test: ValidationSet,
    calibrator: Calibrator,
    tuning: Ranking,
    context: FitContext,
    *,
    fresh: bool,
) -> Promised:
    """Certify thresholds and take the reference in one pass over the test images.

    Where the set names drives, these take the place of images in what is certified.

    `tuning` places the thresholds to test, and has not seen the test images unless `fresh` is
    false; then nothing is certified.
    """
    images = Acceptance(thresholds_to_test(tuning))
    rows, drives = [], drives_of(test)
    for index in range(len(test)):
        context.progress("certifying", index / len(test))
        answer = emitted(test, index, calibrator)
        labelled = answer.labels != IGNORE
        correct = answer.predicted == answer.labels
        images.add(answer.confidence[labelled], correct[labelled], drives[index])
        if answer.labels.ndim > 1:
            answered = answer.confidence.numpy(), answer.predicted.numpy()
            rows.append(torch.from_numpy(histogram(*answered, calibrator.num_classes)).float())
    certification = (
        certify_levels(images.by_drive(), tuning, context.seed, at_picture_size=emits(test))
        if fresh
        else nothing_certified(TOO_FEW)
    )
    return Promised(certification, reference_of(rows))
