"""The fit: part the images, fit every candidate on one part, measure all of them on the other."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.calibration.base import Calibrator, FitContext
from app.calibration.bootstrap import Interval, bootstrap_difference
from app.calibration.identity import Identity
from app.calibration.metrics import Evaluation
from app.calibration.registry import build
from app.calibration.validation import Subset, ValidationSet, labelled_pixels, split

AUTO = ("identity", "temperature")
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

    The half is drawn at random under the seed. Ties go to the method named first. Raises
    ArgumentError for an unknown method or a set that can't be fitted on.
    """
    fit_on, hold_out = split(len(data), FIT_SHARE, context.seed)
    held_out = Subset(data, hold_out)
    fitted = []
    for method in methods:
        calibrator = build(method, data.num_classes)
        started = time.perf_counter()
        calibrator.fit(Subset(data, fit_on), context)
        seconds = time.perf_counter() - started
        fitted.append(measure(method, calibrator.eval(), held_out, seconds))
    uncalibrated = measure("none", Identity(data.num_classes), held_out)
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
    )


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
