"""Compare an int8 model with its original: labels, confidence, quality, latency and size."""

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

RUNS_PER_TURN = 5  # timed runs of one backbone before the other one is timed


@dataclass(frozen=True)
class Quality:
    """One model's metrics on labelled images, in 0..1; ECE of the plain softmax at image size."""

    miou: float
    ece_image: float  # 10 bins, plain mean over images
    ece_pooled: float  # 15 bins over all pixels

    @classmethod
    def of(cls, evaluation: Evaluation) -> Self:
        """Return the metrics of an evaluation."""
        result = evaluation.result()
        return cls(result.miou, result.ece_image, result.ece_pooled)


@dataclass(frozen=True)
class QuantizationReport:
    """The int8 model (after) and its original (before), on images not used for the ranges."""

    images: int
    label_agreement: float  # fraction of pixels with the same label
    confidence_shift: float  # mean of int8's confidence minus the original's
    confidence_shift_absolute: float  # mean absolute difference
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
    """Compare two models on images, or on pairs, which give the quality too.

    Raises ArgumentError without images.
    """
    if not images:
        raise ArgumentError("expected images to measure on, got none beside the ranges' own")
    num_classes = original.folder.num_classes
    evaluations = Evaluation(num_classes), Evaluation(num_classes)
    equal = signed = absolute = pixels = 0.0
    for entry in images:
        path = entry.image if isinstance(entry, Pair) else entry
        image = read_image(path, max_pixels, original.folder.card.input.scaling)
        before, after = (predict_image(image, model, None) for model in (original, quantized))
        shift = after.confidence.astype(np.float64) - before.confidence
        equal += np.count_nonzero(before.mask == after.mask)
        signed += shift.sum()
        absolute += np.abs(shift).sum()
        pixels += shift.size
        if isinstance(entry, Pair):
            size = image.shape[0], image.shape[1]
            labels = read_labels_for(
                entry,
                size,
                num_classes,
                ignore_index,
                max_pixels,
                reduce_zero=original.folder.card.output.reduce_zero_label,
            )
            for evaluation, prediction in zip(evaluations, (before, after), strict=True):
                evaluation.add_prediction(prediction, torch.from_numpy(labels).long())
        advance()
    milliseconds_before, milliseconds_after = time_backbones(original, quantized, image, runs)
    labelled = isinstance(images[0], Pair)
    return QuantizationReport(
        images=len(images),
        label_agreement=equal / pixels,
        confidence_shift=float(signed / pixels),
        confidence_shift_absolute=float(absolute / pixels),
        milliseconds_before=milliseconds_before,
        milliseconds_after=milliseconds_after,
        threads=threads,
        bytes_before=original.folder.path.stat().st_size,
        bytes_after=quantized.folder.path.stat().st_size,
        before=Quality.of(evaluations[0]) if labelled else None,
        after=Quality.of(evaluations[1]) if labelled else None,
    )


def time_backbones(
    original: Predictor, quantized: Predictor, image: NDArray[np.uint8], runs: int
) -> tuple[float, float]:
    """Return the median milliseconds of both backbones on one image.

    They are timed in turns, so that other load slows both. Each turn begins with a run that is not
    timed: the other backbone's threads keep spinning for a while after their last run.
    """
    times: tuple[list[float], list[float]] = ([], [])
    images = original.first_window(image).numpy()
    for _ in range(-(-runs // RUNS_PER_TURN)):
        for predictor, durations in zip((original, quantized), times, strict=True):
            predictor.backbone(images)
            for _ in range(RUNS_PER_TURN):
                start = time.perf_counter()
                predictor.backbone(images)
                durations.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])
