"""The fit: part the images, fit every candidate on one part, measure all of them on the other."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from app.calibration.base import Calibrator, FitContext
from app.calibration.bootstrap import Interval, bootstrap_difference
from app.calibration.identity import Identity
from app.calibration.metrics import Evaluation
from app.calibration.registry import build
from app.calibration.validation import Subset, ValidationSet, labelled_pixels, pixels, split
from app.errors import ArgumentError

# Label-keeping methods that fit in reasonable time, and the label-changing ones on top of them.
AUTO = ("identity", "temperature", "ets", "isotonic", "cmsap", "selective")
AUTO_LABEL_CHANGING = ("vector_ti", "dirichlet")
FITTING_SHARE = 0.8  # of a method's time; the rest goes to measuring it
FIT_SHARE = 0.5


@dataclass(frozen=True)
class Candidate:
    """A fitted calibrator with what was measured on the held-out images."""

    method: str
    calibrator: Calibrator
    evaluation: Evaluation
    labels_changed: float  # share of labelled pixels, in 0..1
    fit_seconds: float


@dataclass(frozen=True)
class Outcome:
    """All candidates, the chosen one, and how it stands against what was active before."""

    uncalibrated: Candidate
    current: Candidate  # what was active before the fit, the uncalibrated model where nothing was
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    ece_difference: Interval  # chosen minus current, image-wise, paired by image; below 0 is better
    fit_images: int
    held_out_images: int
    seed: int
    refused: Mapping[str, str] = field(default_factory=dict)  # reasons by method, of several

    @property
    def better(self) -> bool:
        """Whether the whole interval says that the chosen one is better than the current one."""
        return self.ece_difference.high < 0


def fit(
    data: ValidationSet,
    methods: Sequence[str],
    context: FitContext,
    current: Calibrator | None = None,
) -> Outcome:
    """Fit the methods on one half of the images and choose by image-wise ECE on the other.

    The half is drawn at random under the seed. Ties go to the method named first. Of several
    methods, one that the set can't determine is left out, with its reason. Progress is over all
    methods. Raises ArgumentError for an unknown method or a set that can't be fitted on.
    """
    fit_on, hold_out = split(len(data), FIT_SHARE, context.seed)
    held_out = Subset(data, hold_out)
    # A fault of the whole set is not a method's: identity reads no data and would hide it.
    if not sum(len(labels) for _, labels in pixels(Subset(data, fit_on))):
        raise ArgumentError("expected at least one labelled pixel to fit on, got none")
    uncalibrated = measure("none", Identity(data.num_classes), held_out)
    if not uncalibrated.evaluation.result().pixels:
        raise ArgumentError("expected labelled pixels on the held-out images, got none")
    fitted: list[Candidate] = []
    refused: dict[str, str] = {}
    for done, method in enumerate(methods):
        calibrator = build(method, data.num_classes)
        started = time.perf_counter()
        try:
            calibrator.fit(Subset(data, fit_on), _part(context, method, done, len(methods)))
        except ArgumentError as error:
            if len(methods) == 1:
                raise
            refused[method] = str(error)
            continue
        seconds = time.perf_counter() - started
        context.progress(f"measuring {method}", (done + FITTING_SHARE) / len(methods))
        fitted.append(measure(method, calibrator.eval(), held_out, seconds))
    if not fitted:
        raise ArgumentError(f"expected data that one of the methods can be fitted on: {refused}")
    before = uncalibrated if current is None else measure("current", current, held_out)
    chosen = min(fitted, key=lambda candidate: candidate.evaluation.result().ece_image)
    difference = bootstrap_difference(
        [image.ece for image in chosen.evaluation.images],
        [image.ece for image in before.evaluation.images],
        context.seed,
    )
    return Outcome(
        uncalibrated=uncalibrated,
        current=before,
        candidates=tuple(fitted),
        chosen=chosen,
        ece_difference=difference,
        fit_images=len(fit_on),
        held_out_images=len(hold_out),
        seed=context.seed,
        refused=refused,
    )


def _part(context: FitContext, method: str, done: int, methods: int) -> FitContext:
    """Take one method's progress as a part of the whole.

    A method has stages it does not announce, so each new one takes half of what is left.
    """
    stages: list[str] = []

    def progress(stage: str, share: float) -> None:
        if stage not in stages[-1:]:
            stages.append(stage)
        left = 0.5 ** (len(stages) - 1)
        fitted = 1 - left + left / 2 * share
        context.progress(f"fitting {method}", (done + FITTING_SHARE * fitted) / methods)

    return replace(context, progress=progress)


@torch.inference_mode()
def measure(
    method: str, calibrator: Calibrator, data: ValidationSet, fit_seconds: float = 0.0
) -> Candidate:
    """Evaluate a calibrator with the labels that would be emitted: its own only if it decides."""
    evaluation = Evaluation(data.num_classes)
    changed = total = 0
    for index in range(len(data)):
        image = data[index]
        logits, labels = labelled_pixels(image)
        plain = logits.argmax(dim=1)
        if calibrator.invariances.spatial:
            whole = calibrator(image.logits[None].float())[0]
            calibrated = whole[:, image.labels >= 0].T
        else:
            calibrated = calibrator(logits)
        decided = plain if calibrator.invariances.argmax else calibrated.argmax(dim=1)
        evaluation.add(calibrated, labels, decided)
        changed += int((decided != plain).sum())
        total += len(labels)
    return Candidate(method, calibrator, evaluation, changed / max(total, 1), fit_seconds)
