"""Fit candidates, select one, test it and certify its thresholds.

The images are split into three sets (see `splits`). Candidates are fitted on the first; the best
one on the second is selected; metrics, thresholds and the drift reference come from the third.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import numpy as np

from app.calibration.base import Calibrator, FitContext
from app.calibration.certification import (
    NOT_INDEPENDENT,
    NOT_REQUESTED,
    Certification,
    compute_guarantees,
)
from app.calibration.comparison import (
    TestResult,
    evaluate_calibrators,
    group_differences,
    select_best,
)
from app.calibration.dataset import InMemory, Subset, ValidationSet, groups_of
from app.calibration.drift import Reference
from app.calibration.metrics.error_detection import ErrorDetectionMetrics
from app.calibration.metrics.evaluation import Evaluation
from app.calibration.metrics.intervals import Interval, bootstrap_mean, sign_flip_p_value
from app.calibration.registry import UNCALIBRATED, build
from app.calibration.sampling import gather
from app.calibration.splits import Split, split_images
from app.errors import ArgumentError

ALPHA = 0.025  # of the gate: the fraction of fits without an effect that it lets through
MAX_ECE_INCREASE = 0.001  # absolute; a larger mean increase of the ECE fails the gate
METRICS: tuple[Literal["ece", "aurc", "correctness_nll"], ...] = (
    "ece",
    "aurc",
    "correctness_nll",
)
# Progress, in 0..1, at which the stages begin; the first one, reading, begins at 0.
FITTING_START, CHOOSING_START, MEASURING_START, CERTIFYING_START = 0.05, 0.7, 0.8, 0.95


@dataclass(frozen=True)
class Candidate:
    """A fitted calibrator with its metrics on the test images."""

    method: str
    calibrator: Calibrator
    evaluation: Evaluation
    labels_changed: float  # fraction of labelled pixels, in 0..1
    error_detection: ErrorDetectionMetrics | None = None  # of calibrators that predict errors
    fit_seconds: float = 0.0
    score_select: float = math.nan  # NLL of correctness on the selection images, if any


@dataclass(frozen=True)
class Outcome:
    """All candidates, the selected one, its comparison with the current one, its guarantees."""

    uncalibrated: Candidate
    current: Candidate  # active before the fit; the uncalibrated model where no version was
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    ece_difference: Interval  # chosen minus current, image-wise, paired by image; below 0 is better
    aurc_difference: Interval  # likewise, of each image's area under the risk-coverage curve
    score_difference: Interval  # likewise, of the NLL of correctness
    p_value: float  # sign-flip test over groups that the score has not decreased
    test_groups: int
    split: Split
    certification: Certification
    reference: Reference | None
    seed: int
    skipped: Mapping[str, str] = field(default_factory=dict)  # reason by method

    @property
    def better(self) -> bool:
        """Return whether the chosen calibrator is significantly better than the current one.

        True where the NLL of correctness decreases with a sign-flip p-value of at most 0.025, on
        images that took no part in the selection, and the mean ECE rises by less than 0.001.
        With n groups the p-value is at least 2^-n: fewer than six groups show nothing.
        """
        significant = self.split.independent_test and self.p_value <= ALPHA
        return significant and self.ece_difference.mean < MAX_ECE_INCREASE

    @property
    def images(self) -> int:
        """Count all images, each once."""
        return len({*self.split.fit, *self.split.select, *self.split.test})


@dataclass(frozen=True)
class FittedMethod:
    """A fitted calibrator and the duration of its fit."""

    method: str
    calibrator: Calibrator
    seconds: float


def fit(
    data: ValidationSet,
    methods: Sequence[str],
    context: FitContext,
    current: Calibrator | None = None,
    options: Mapping[str, object] = MappingProxyType({}),
    *,
    certify: bool = True,
) -> Outcome:
    """Fit the methods, select one (see `select_best`), and test it on images of neither step.

    Images, or groups where the set has them, are split at random by the seed (see `splits`). The
    first of several tied methods is selected. Of several methods, one that the set does not
    determine is skipped, with its reason. `current` is the calibrator to compare with, by default
    the uncalibrated model. `options` are those of the methods, by name (`Calibrator.options`).
    Without `certify` no threshold is certified. Progress runs over all methods. Raises
    ArgumentError for an unknown method, for an option that a method does not have, and for a set
    without a method that can be fitted.
    """
    split = split_images(groups_of(data), context.seed, choosing=len(methods) > 1)
    fit_images, test_images = Subset(data, split.fit), Subset(data, split.test)
    fit_pixels = gather(fit_images, stage_progress(context, "reading", 0.0, FITTING_START))

    fitted, skipped = fit_methods(methods, fit_images, fit_pixels, context, options)
    calibrators = [one.calibrator for one in fitted]

    # With one method there are no selection images; then the fit's give the confidence histogram
    # from which the thresholds to certify are taken.
    spatial = any(calibrator.invariances.spatial for calibrator in calibrators)
    fit_set = fit_images if spatial else fit_pixels
    selection_set = Subset(data, split.select) if split.select else fit_set
    choosing = stage_progress(context, "choosing", CHOOSING_START, MEASURING_START)
    selection = evaluate_calibrators(selection_set, calibrators, choosing)
    best = select_best(selection)

    uncalibrated = _uncalibrated(fitted, data.num_classes)
    compared = uncalibrated if current is None else current
    measuring = stage_progress(context, "measuring", MEASURING_START, CERTIFYING_START)
    uncalibrated_result, current_result, *results = evaluate_calibrators(
        test_images, [uncalibrated, compared, *calibrators], measuring
    )
    candidates = tuple(
        _candidate(
            one.method, one.calibrator, result, one.seconds,
            float(np.mean(selected.image_scores)) if split.select else math.nan,
        )
        for one, result, selected in zip(fitted, results, selection, strict=True)
    )  # fmt: skip

    guarantees = compute_guarantees(
        test_images,
        calibrators[best],
        selection[best].evaluation.confidence_histogram,
        stage_progress(context, "certifying", CERTIFYING_START, 1.0),
        uncertified=_reason_for_no_certificate(split, certify=certify),
    )
    seed = context.seed
    ece, aurc, score = (
        group_differences(metric, results[best], current_result, test_images.groups)
        for metric in METRICS
    )
    return Outcome(
        uncalibrated=_candidate("none", uncalibrated, uncalibrated_result),
        current=_candidate("none" if current is None else "current", compared, current_result),
        candidates=candidates,
        chosen=candidates[best],
        ece_difference=bootstrap_mean(ece, seed),
        aurc_difference=bootstrap_mean(aurc, seed),
        score_difference=bootstrap_mean(score, seed),
        p_value=sign_flip_p_value(score, seed),
        test_groups=int(np.isfinite(score).sum()),
        split=split,
        certification=guarantees.certification,
        reference=guarantees.reference,
        seed=seed,
        skipped=skipped,
    )


def fit_methods(
    methods: Sequence[str],
    images: ValidationSet,
    pixels: InMemory,
    context: FitContext,
    options: Mapping[str, object],
) -> tuple[list[FittedMethod], dict[str, str]]:
    """Fit spatial methods on whole images, and the others on the pixels in memory.

    Returns the fitted methods, and the reasons for the skipped ones by method. Raises ArgumentError
    where no method can be fitted; the only method's own error where there is one method.
    """
    fitted: list[FittedMethod] = []
    skipped: dict[str, str] = {}
    for index, method in enumerate(methods):
        calibrator = build(method, pixels.num_classes, options)
        source = images if calibrator.invariances.spatial else pixels
        start = time.perf_counter()
        try:
            if len(methods) > 1:
                require_enough_pixels(calibrator, pixels)
            calibrator.fit(source, method_progress(context, method, index, len(methods)))
        except ArgumentError as error:
            if len(methods) == 1:
                raise
            skipped[method] = str(error)
            continue
        fitted.append(FittedMethod(method, calibrator.eval(), time.perf_counter() - start))
    if not fitted:
        raise ArgumentError(f"expected data that one of the methods can be fitted on: {skipped}")
    return fitted, skipped


def require_enough_pixels(calibrator: Calibrator, pixels: InMemory) -> None:
    """Raise ArgumentError for fewer labelled pixels than `Calibrator.required_pixels`.

    Such a fit would take minutes at 150 classes for parameters that the pixels do not determine.
    """
    classes = pixels.num_classes
    needed = calibrator.required_pixels(classes)
    found = sum(len(image.labels) for image in pixels.images)
    if found < needed:
        raise ArgumentError(
            f"expected for each class at least as many pixels as its expert has parameters, "
            f"{needed // classes}, got {found // classes} on average; ask for "
            f"{calibrator.method} by name to fit it nevertheless"
        )


def stage_progress(context: FitContext, name: str, start: float, end: float) -> FitContext:
    """Return a context that reports a stage's progress 0..1 as `start`..`end`, under `name`."""

    def progress(_stage: str, fraction: float) -> None:
        context.progress(name, start + (end - start) * fraction)

    return replace(context, progress=progress)


def method_progress(context: FitContext, method: str, index: int, count: int) -> FitContext:
    """Return a context for the fit of method `index` of `count`.

    Each method takes an equal fraction of the fitting stage. How many stages of its own it reports
    is unknown, so each one takes half of the fraction that remains.
    """
    stages: list[str] = []

    def progress(stage: str, fraction: float) -> None:
        if stage not in stages[-1:]:
            stages.append(stage)
        left = 0.5 ** (len(stages) - 1)
        done = (index + 1 - left + left / 2 * fraction) / count
        context.progress(
            f"fitting {method}", FITTING_START + (CHOOSING_START - FITTING_START) * done
        )

    return replace(context, progress=progress)


def _reason_for_no_certificate(split: Split, *, certify: bool) -> str | None:
    """Return why nothing is certified; None where thresholds are."""
    if not certify:
        return NOT_REQUESTED
    return None if split.independent_test else NOT_INDEPENDENT


def _uncalibrated(fitted: Sequence[FittedMethod], num_classes: int) -> Calibrator:
    """Return the identity among the fitted methods, so that it is evaluated once, or a new one."""
    identities = (one.calibrator for one in fitted if one.method == UNCALIBRATED)
    return next(identities, None) or build(UNCALIBRATED, num_classes)


def _candidate(
    method: str,
    calibrator: Calibrator,
    result: TestResult,
    fit_seconds: float = 0.0,
    score_select: float = math.nan,
) -> Candidate:
    """Combine a calibrator with its metrics on the test images."""
    return Candidate(
        method, calibrator, result.evaluation, result.labels_changed, result.error_detection,
        fit_seconds, score_select,
    )  # fmt: skip
