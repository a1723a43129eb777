"""All candidates measured side by side: each image is read once, whatever their number."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.calibration.base import Calibrator, FitContext
from app.calibration.histograms import ReliabilityBins
from app.calibration.metrics import IMAGE_BINS, Evaluation
from app.calibration.ranking import Ranking
from app.calibration.validation import IGNORE, LabelledImage, ValidationSet, labelled_pixels
from app.calibration.verdicts import SelectorFigures, Verdicts, suspected_pixels
from app.errors import ArgumentError


@dataclass(frozen=True)
class Measured:
    """A calibrator's figures on the test images."""

    evaluation: Evaluation
    labels_changed: float  # share of labelled pixels, in 0..1
    selector: SelectorFigures | None = None


@dataclass(frozen=True)
class Choice:
    """What the choice among candidates, and of thresholds to test, goes by."""

    ece: float  # image-wise
    ranking: Ranking
    errors: tuple[float, ...] = ()  # ECE of each image


@torch.inference_mode()
def choose(
    data: ValidationSet, calibrators: Sequence[Calibrator], context: FitContext
) -> list[Choice]:
    """Measure what a choice needs; raises ArgumentError without a labelled pixel."""
    errors: list[list[float]] = [[] for _ in calibrators]
    rankings = [Ranking() for _ in calibrators]
    for index in range(len(data)):
        context.progress("choosing", index / len(data))
        image = data[index]
        logits, labels = labelled_pixels(image)
        if not len(labels):
            continue
        plain = logits.argmax(dim=1)
        for place, calibrator in enumerate(calibrators):
            logs = calibrated_pixels(calibrator, image, logits)
            decided = plain if calibrator.invariances.argmax else logs.argmax(dim=1)
            confidence, correct = logs.amax(dim=1).exp().clamp(max=1), decided == labels
            errors[place].append(ReliabilityBins(IMAGE_BINS).add(confidence, correct).ece())
            rankings[place].add(confidence, correct)
    if not errors[0]:
        raise ArgumentError("expected labelled pixels on the held-out images, got none")
    return [
        Choice(float(np.mean(own)), ranking, tuple(own))
        for own, ranking in zip(errors, rankings, strict=True)
    ]


def best_of(choices: Sequence[Choice]) -> int:
    """Choose by image-wise ECE; of those that it can't tell from the best, by AURC.

    Two can't be told apart where their difference is within its standard error by image. The
    first of several equals is chosen.
    """
    least = min(choices, key=lambda choice: choice.ece)
    tied = [index for index, choice in enumerate(choices) if _ties(choice, least)]
    return min(tied, key=lambda index: choices[index].ranking.aurc())


def _ties(choice: Choice, least: Choice) -> bool:
    difference = np.subtract(choice.errors, least.errors)
    error = difference.std() / max(len(difference) - 1, 1) ** 0.5
    return bool(difference.mean() <= error)


@torch.inference_mode()
def measure(
    data: ValidationSet, calibrators: Sequence[Calibrator], context: FitContext
) -> list[Measured]:
    """Evaluate calibrators with the labels that would be emitted: their own only if they decide.

    Raises ArgumentError without a labelled pixel. One that is listed twice is measured once.
    """
    distinct = list({id(calibrator): calibrator for calibrator in calibrators}.values())
    evaluations = {id(calibrator): Evaluation(data.num_classes) for calibrator in distinct}
    changed, total = dict.fromkeys(evaluations, 0), 0
    verdicts: dict[int, Verdicts] = {}
    for index in range(len(data)):
        context.progress("measuring", index / len(data))
        image = data[index]
        logits, labels = labelled_pixels(image)
        plain = logits.argmax(dim=1)
        total += len(labels)
        for calibrator in distinct:
            logs = calibrated_pixels(calibrator, image, logits)
            decided = plain if calibrator.invariances.argmax else logs.argmax(dim=1)
            evaluations[id(calibrator)].add(logs, labels, decided)
            changed[id(calibrator)] += int((decided != plain).sum())
            suspected = suspected_pixels(calibrator, image, logits)
            if suspected is not None:
                found = verdicts.setdefault(id(calibrator), Verdicts())
                found.add(suspected, plain != labels)
    if not total:
        raise ArgumentError("expected labelled pixels on the held-out images, got none")
    return [
        Measured(
            evaluations[id(one)],
            changed[id(one)] / total,
            verdicts[id(one)].figures() if id(one) in verdicts else None,
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
    whole: Tensor = calibrator.seeing(image.picture)(image.logits[None].float())[0]
    return whole[:, image.labels != IGNORE].T
