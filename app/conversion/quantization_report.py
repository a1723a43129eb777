"""What an int8 model costs and brings, measured against the model it was made from."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from app.calibration.metrics.evaluation import Evaluation
from app.datasets.images import Pair, read_image, read_labels_for
from app.errors import ArgumentError
from app.inference.predictor import Predictor
from app.serving.pipeline import predict_image

TURN = 5  # counted runs of one backbone before it is the other's turn


@dataclass(frozen=True)
class Quality:
    """One model on labelled images; ECE of the plain softmax at full size, in 0..1."""

    miou: float
    ece_image: float  # 10 bins, plain mean over images
    ece_pooled: float  # 15 bins, all pixels alike

    @classmethod
    def of(cls, evaluation: Evaluation) -> Self:
        """Read the quality from an evaluation."""
        found = evaluation.result()
        return cls(found.miou, found.ece_image, found.ece_pooled)


@dataclass(frozen=True)
class QuantizationReport:
    """The int8 model against its original, on images that its ranges were not taken from."""

    images: int
    label_agreement: float  # share of pixels with the same label
    confidence_shift: float  # mean of int8's confidence minus the original's
    confidence_shift_absolute: float
    milliseconds_before: float  # median of the backbone alone
    milliseconds_after: float
    threads: int
    bytes_before: int
    bytes_after: int
    before: Quality | None
    after: Quality | None


def measure(
    original: Predictor,
    quantized: Predictor,
    images: Sequence[Path | Pair],
    ignore_index: int,
    max_pixels: int,
    runs: int,
    threads: int,
    advance: Callable[[], object],
) -> QuantizationReport:
    """Run both models over the images; quality needs pairs. Raises ArgumentError for none."""
    if not images:
        raise ArgumentError("expected images to measure on, got none beside the ranges' own")
    num_classes = original.folder.num_classes
    evaluations = Evaluation(num_classes), Evaluation(num_classes)
    same = signed = absolute = pixels = 0.0
    for entry in images:
        path = entry.image if isinstance(entry, Pair) else entry
        image = read_image(path, max_pixels)
        original_prediction, int8_prediction = (
            predict_image(image, predictor, None) for predictor in (original, quantized)
        )
        mask, confidence = original_prediction.mask, original_prediction.confidence
        shift = int8_prediction.confidence.astype(np.float64) - confidence
        same += np.count_nonzero(mask == int8_prediction.mask)
        signed += shift.sum()
        absolute += np.abs(shift).sum()
        pixels += mask.size
        if isinstance(entry, Pair):
            size = mask.shape[0], mask.shape[1]
            labels = read_labels_for(entry, size, num_classes, ignore_index, max_pixels)
            for evaluation, prediction in zip(
                evaluations, (original_prediction, int8_prediction), strict=True
            ):
                evaluation.add_prediction(prediction, torch.from_numpy(labels).long())
        advance()
    before, after = milliseconds(original, quantized, image, runs)
    labelled = isinstance(images[0], Pair)
    return QuantizationReport(
        images=len(images),
        label_agreement=same / pixels,
        confidence_shift=float(signed / pixels),
        confidence_shift_absolute=float(absolute / pixels),
        milliseconds_before=before,
        milliseconds_after=after,
        threads=threads,
        bytes_before=original.folder.path.stat().st_size,
        bytes_after=quantized.folder.path.stat().st_size,
        before=Quality.of(evaluations[0]) if labelled else None,
        after=Quality.of(evaluations[1]) if labelled else None,
    )


def milliseconds(
    original: Predictor, quantized: Predictor, image: NDArray[np.uint8], runs: int
) -> tuple[float, float]:
    """Time both backbones on one image in turns, so that what else runs slows both; medians.

    A turn is several runs, the first of them not counted: the other backbone's threads go on
    spinning for a while after their last run.
    """
    times: tuple[list[float], list[float]] = ([], [])
    images = original.prepare_windows(image).windows.cut(0, 0).numpy()
    for _ in range(-(-runs // TURN)):
        for predictor, spent in zip((original, quantized), times, strict=True):
            predictor.backbone(images)
            for _ in range(TURN):
                start = time.perf_counter()
                predictor.backbone(images)
                spent.append(1000 * (time.perf_counter() - start))
    before, after = (statistics.median(spent) for spent in times)
    return before, after
