"""Evaluate calibrators on the same images, select the best one, and compare two of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import Calibrator, FitContext
from app.calibration.dataset import IGNORE, LabelledImage, ValidationSet, labelled_pixels
from app.calibration.metrics.error_detection import (
    ErrorDetection,
    ErrorDetectionMetrics,
    predicted_errors,
)
from app.calibration.metrics.evaluation import Evaluation
from app.errors import ArgumentError


@dataclass(frozen=True)
class TestResult:
    """A calibrator's metrics on one set of images."""

    evaluation: Evaluation
    labels_changed: float  # fraction of labelled pixels, in 0..1
    error_detection: ErrorDetectionMetrics | None = None  # of calibrators that predict errors

    @property
    def image_scores(self) -> list[float]:
        """Return the NLL of correctness of each image with a labelled pixel, in nats."""
        return [image.correctness_nll for image in self.evaluation.images if image.pixels]


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
            log_probabilities = _calibrate_pixels(calibrator, image, logits)
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
            evaluations[id(calibrator)],
            changed[id(calibrator)] / total,
            detections[id(calibrator)].metrics() if id(calibrator) in detections else None,
        )
        for calibrator in calibrators
    ]


def select_best(results: Sequence[TestResult]) -> int:
    """Return the index of the first result that ties with the least NLL of correctness.

    The negative log-likelihood of "the label is correct", given by the confidence, is a proper
    score: both better calibration and better separation of wrong pixels lower it. Two
    results tie where their mean difference is within its standard error by image. Results are given
    from the simplest method on.
    """
    least = min(results, key=lambda result: float(np.mean(result.image_scores)))
    return next(index for index, result in enumerate(results) if _ties(result, least))


def group_differences(
    metric: Literal["ece", "aurc", "correctness_nll"],
    candidate: TestResult,
    current: TestResult,
    groups: Sequence[int],
) -> list[float]:
    """Compute each group's mean difference of an image metric, candidate minus current.

    `groups` [N] is the group of each image. NaN for groups without a labelled pixel.
    """
    candidate_values, current_values = (
        np.array([getattr(image, metric) for image in result.evaluation.images], np.float64)
        for result in (candidate, current)
    )
    return _group_means(candidate_values - current_values, groups)


def _calibrate_pixels(calibrator: Calibrator, image: LabelledImage, logits: Tensor) -> Tensor:
    """Compute the log-probabilities [m,K] of an image's labelled pixels from their logits [m,K].

    A spatial calibrator is applied to the logits of the whole image instead.
    """
    if not calibrator.invariances.spatial:
        log_probabilities: Tensor = calibrator(logits.T[None])[0].T
        return log_probabilities
    whole: Tensor = calibrator.with_image(image.image)(image.logits[None].float())[0]
    return whole[:, image.labels != IGNORE].T


def _ties(result: TestResult, least: TestResult) -> bool:
    """Return whether a result's mean score exceeds the least by at most the standard error."""
    differences = np.subtract(result.image_scores, least.image_scores)
    standard_error = differences.std() / max(len(differences) - 1, 1) ** 0.5
    return bool(differences.mean() <= standard_error)


def _group_means(values: NDArray[np.float64], groups: Sequence[int]) -> list[float]:
    """Compute the mean of each group's values [N], NaN skipped; NaN for a group of NaN only."""
    group, known = np.asarray(groups), ~np.isnan(values)
    members = [(group == name) & known for name in np.unique(group)]
    return [float(values[mask].mean()) if mask.any() else math.nan for mask in members]
