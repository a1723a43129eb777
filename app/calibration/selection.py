"""All candidates measured side by side: each image is read once, whatever their number.

The fit: candidates on some images, the choice on others, and the last word on the rest.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import Calibrator, FitContext
from app.calibration.certification import Certification, compute_guarantees
from app.calibration.dataset import (
    IGNORE,
    InMemory,
    LabelledImage,
    Subset,
    ValidationSet,
    groups_of,
    labelled_pixels,
)
from app.calibration.drift import Reference
from app.calibration.metrics.error_detection import (
    ErrorDetection,
    ErrorDetectionMetrics,
    predicted_errors,
)
from app.calibration.metrics.evaluation import Evaluation
from app.calibration.metrics.intervals import Interval, bootstrap_mean
from app.calibration.registry import UNCALIBRATED, build
from app.calibration.sampling import gather
from app.calibration.splits import Split, split_images
from app.errors import ArgumentError


@dataclass(frozen=True)
class TestResult:
    """A calibrator's metrics on one set of images."""

    evaluation: Evaluation
    labels_changed: float  # fraction of labelled pixels, in 0..1
    selector: ErrorDetectionMetrics | None = None  # of calibrators that predict errors

    @property
    def image_errors(self) -> list[float]:
        """ECE of each image with a labelled pixel."""
        return [image.ece for image in self.evaluation.images if image.pixels]


def select_best(results: Sequence[TestResult]) -> int:
    """Return the index of the least image-wise ECE; of statistical ties, of the least AURC.

    Two results tie where their mean difference is within its standard error by image. The first
    of several equals is returned.
    """
    least = min(results, key=lambda result: float(np.mean(result.image_errors)))
    tied = [index for index, result in enumerate(results) if _ties(result, least)]
    return min(tied, key=lambda index: results[index].evaluation.confidence_histogram.aurc())


def _ties(result: TestResult, least: TestResult) -> bool:
    differences = np.subtract(result.image_errors, least.image_errors)
    standard_error = differences.std() / max(len(differences) - 1, 1) ** 0.5
    return bool(differences.mean() <= standard_error)


@torch.inference_mode()
def evaluate_calibrators(
    data: ValidationSet, calibrators: Sequence[Calibrator], context: FitContext
) -> list[TestResult]:
    """Evaluate calibrators side by side: each image is read once, whatever their number.

    Labels are those of the service: the uncalibrated argmax unless a calibrator changes decisions.
    A calibrator listed twice is evaluated once. Raises ArgumentError without a labelled pixel.
    """
    distinct = list({id(calibrator): calibrator for calibrator in calibrators}.values())
    evaluations = {id(calibrator): Evaluation(data.num_classes) for calibrator in distinct}
    changed, total = dict.fromkeys(evaluations, 0), 0
    detections: dict[int, ErrorDetection] = {}
    for index in range(len(data)):
        context.progress("evaluating", index / len(data))
        image = data[index]
        logits, labels = labelled_pixels(image)
        uncalibrated = logits.argmax(dim=1)
        total += len(labels)
        for calibrator in distinct:
            key = id(calibrator)
            log_probabilities = calibrated_pixels(calibrator, image, logits)
            keeps = calibrator.invariances.argmax
            classes = uncalibrated if keeps else log_probabilities.argmax(dim=1)
            evaluations[key].add(log_probabilities, labels, classes)
            changed[key] += int((classes != uncalibrated).sum())
            predicted = predicted_errors(calibrator, image, logits)
            if predicted is not None:
                detection = detections.setdefault(key, ErrorDetection())
                detection.add(predicted, uncalibrated != labels)
    if not total:
        raise ArgumentError("expected labelled pixels on the held-out images, got none")
    return [
        TestResult(
            evaluations[id(one)],
            changed[id(one)] / total,
            detections[id(one)].metrics() if id(one) in detections else None,
        )
        for one in calibrators
    ]


def calibrated_pixels(calibrator: Calibrator, image: LabelledImage, logits: Tensor) -> Tensor:
    """Give an image's labelled pixels' log-probabilities [m,K] from their logits [m,K].

    A spatial calibrator reads the whole image instead.
    """
    if not calibrator.invariances.spatial:
        logs: Tensor = calibrator(logits.T[None])[0].T
        return logs
    whole: Tensor = calibrator.with_image(image.image)(image.logits[None].float())[0]
    return whole[:, image.labels != IGNORE].T


TIED_ECE = 0.001  # a rise in image-wise ECE up to this may pass for none
# Shares of the whole time, in the order of the stages.
READING, FITTING, CHOOSING, TESTING = 0.05, 0.65, 0.1, 0.15


@dataclass(frozen=True)
class Candidate:
    """A fitted calibrator with what was measured on the test images."""

    method: str
    calibrator: Calibrator
    evaluation: Evaluation
    labels_changed: float  # share of labelled pixels, in 0..1
    fit_seconds: float = 0.0
    ece_select: float = math.nan  # image-wise, on the images that chose; NaN without a choice
    selector: ErrorDetectionMetrics | None = None  # of those that have one


@dataclass(frozen=True)
class Outcome:
    """All candidates, the chosen one, how it stands, and what may be promised of it."""

    uncalibrated: Candidate
    current: Candidate  # what was active before the fit, the uncalibrated model where nothing was
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    ece_difference: Interval  # chosen minus current, image-wise, paired by image; below 0 is better
    aurc_difference: Interval  # likewise, of each image's area under the risk-coverage curve
    split: Split
    certification: Certification
    reference: Reference | None
    seed: int
    skipped: Mapping[str, str] = field(default_factory=dict)  # reasons by method, of several

    @property
    def better(self) -> bool:
        """Whether the intervals say that the chosen one is better than the current one.

        Either the whole interval of ECE lies below 0; or ECE, not surely higher, can't tell the two
        apart and the whole interval of AURC lies below 0: wrong pixels are then easier to find.
        """
        ece, aurc = self.ece_difference, self.aurc_difference
        return ece.high < 0 or (ece.mean < TIED_ECE and ece.low <= 0 and aurc.high < 0)

    @property
    def images(self) -> int:
        """Count all images, each once."""
        return len({*self.split.fit, *self.split.select, *self.split.test})


@dataclass(frozen=True)
class Fitted:
    """A calibrator after its fit."""

    method: str
    calibrator: Calibrator
    seconds: float


def fit(
    data: ValidationSet,
    methods: Sequence[str],
    context: FitContext,
    current: Calibrator | None = None,
) -> Outcome:
    """Fit the methods, choose (see `select_best`), and test the chosen one on untouched images.

    Images, or groups where the set names them, are parted at random under the seed (see
    `parting`). Ties go to the method named first.
    Of several methods, one that the set can't determine is left out, with its reason. Progress is
    over all methods. Raises ArgumentError for an unknown method or a set that can't be fitted on.
    """
    groups = groups_of(data)
    split = split_images(groups, context.seed, choosing=len(methods) > 1)
    fit_on, test = Subset(data, split.fit), Subset(data, split.test)
    pixels = gather(fit_on, stage(context, "reading", 0.0, READING))
    fitted, skipped = fit_all(methods, fit_on, pixels, context)
    calibrators = [one.calibrator for one in fitted]
    # Without a choice to make the images of the fit still tell where confidence lies.
    known = fit_on if any(one.invariances.spatial for one in calibrators) else pixels
    tuning = Subset(data, split.select) if split.select else known
    done = READING + FITTING
    tuned = evaluate_calibrators(tuning, calibrators, stage(context, "choosing", done, CHOOSING))
    best = select_best(tuned)
    # Where the identity is a candidate, the same object is the uncalibrated model: measured once.
    identities = (one.calibrator for one in fitted if one.method == UNCALIBRATED)
    uncalibrated = next(identities, build(UNCALIBRATED, data.num_classes))
    before = uncalibrated if current is None else current
    told = stage(context, "measuring", done + CHOOSING, TESTING)
    measured = evaluate_calibrators(test, [uncalibrated, before, *calibrators], told)
    candidates = tuple(
        candidate(one.method, one.calibrator, found, one.seconds, selection, split)
        for one, found, selection in zip(fitted, measured[2:], tuned, strict=True)
    )
    chosen = candidates[best]
    guarantees = compute_guarantees(
        test,
        chosen.calibrator,
        tuned[best].evaluation.confidence_histogram,
        stage(context, "certifying", done + CHOOSING + TESTING, 1 - done - CHOOSING - TESTING),
        independent_test=split.independent_test,
    )
    return Outcome(
        uncalibrated=candidate("none", uncalibrated, measured[0]),
        current=candidate("none" if current is None else "current", before, measured[1]),
        candidates=candidates,
        chosen=chosen,
        ece_difference=metric_difference("ece", chosen, measured[1], test.groups, context.seed),
        aurc_difference=metric_difference("aurc", chosen, measured[1], test.groups, context.seed),
        split=split,
        certification=guarantees.certification,
        reference=guarantees.reference,
        seed=context.seed,
        skipped=skipped,
    )


def metric_difference(
    metric: str,
    candidate: Candidate | TestResult,
    current: Candidate | TestResult,
    groups: Sequence[int],
    seed: int,
) -> Interval:
    """Interval of a figure's difference between two evaluations, paired by image.

    Groups are resampled, each by its images' mean; images where each is a group by itself.
    """
    a, b = (
        np.array([getattr(image, metric) for image in measured.evaluation.images], np.float64)
        for measured in (candidate, current)
    )
    return bootstrap_mean(by_group(a - b, groups), seed)


def by_group(values: NDArray[np.float64], groups: Sequence[int]) -> list[float]:
    """Mean of each group's images but for NaN; NaN where all are."""
    names, known = np.asarray(groups), ~np.isnan(values)
    members = [(names == group) & known for group in np.unique(names)]
    return [float(values[chosen].mean()) if chosen.any() else math.nan for chosen in members]


def fit_all(
    methods: Sequence[str], fit_on: ValidationSet, pixels: InMemory, context: FitContext
) -> tuple[list[Fitted], dict[str, str]]:
    """Fit all methods, spatial ones on whole images, the others on their pixels in memory.

    Gives those that could be fitted, and reasons by method for the others. Raises ArgumentError
    where that is none, or the only one asked for.
    """
    fitted: list[Fitted] = []
    skipped: dict[str, str] = {}
    for done, method in enumerate(methods):
        calibrator = build(method, pixels.num_classes)
        source = fit_on if calibrator.invariances.spatial else pixels
        started = time.perf_counter()
        try:
            if len(methods) > 1:
                require_enough(calibrator, pixels)
            calibrator.fit(source, method_progress(context, method, done, len(methods)))
        except ArgumentError as error:
            if len(methods) == 1:
                raise
            skipped[method] = str(error)
            continue
        fitted.append(Fitted(method, calibrator.eval(), time.perf_counter() - started))
    if not fitted:
        raise ArgumentError(f"expected data that one of the methods can be fitted on: {skipped}")
    return fitted, skipped


def require_enough(calibrator: Calibrator, pixels: InMemory) -> None:
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


def candidate(
    method: str,
    calibrator: Calibrator,
    measured: TestResult,
    seconds: float = 0.0,
    selection: TestResult | None = None,
    split: Split | None = None,
) -> Candidate:
    """Put together what is known of a candidate."""
    chosen_on = selection is not None and split is not None and split.select
    ece = float(np.mean(selection.image_errors)) if selection and chosen_on else math.nan
    return Candidate(
        method, calibrator, measured.evaluation, measured.labels_changed, seconds, ece,
        measured.selector,
    )  # fmt: skip


def stage(context: FitContext, name: str, start: float, fraction: float) -> FitContext:
    """Take a stage's progress as a share of the whole, under a name of ours."""
    return replace(
        context, progress=lambda _stage, done: context.progress(name, start + fraction * done)
    )


def method_progress(context: FitContext, method: str, done: int, methods: int) -> FitContext:
    """Take one method's progress as a part of the whole.

    A method has stages it does not announce, so each new one takes half of what is left.
    """
    stages: list[str] = []

    def progress(stage: str, fraction: float) -> None:
        if stage not in stages[-1:]:
            stages.append(stage)
        left = 0.5 ** (len(stages) - 1)
        fitted = 1 - left + left / 2 * fraction
        context.progress(f"fitting {method}", READING + FITTING * (done + fitted) / methods)

    return replace(context, progress=progress)
