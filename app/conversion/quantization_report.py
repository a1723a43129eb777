"""What an int8 model costs and brings, measured against the model it was made from."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from app.calibration.metrics.evaluation import IMAGE_BINS, POOLED_BINS
from app.calibration.metrics.reliability import ReliabilityBins
from app.calibration.metrics.segmentation import confusion_matrix, mean_iou
from app.datasets.images import Pair, checked, read_image, read_labels
from app.errors import ArgumentError
from app.inference.postprocess import blank, postprocess_strip
from app.inference.predictor import Predictor

Map = NDArray[np.uint8] | NDArray[np.uint16]

TURN = 5  # counted runs of one backbone before it is the other's turn


@dataclass(frozen=True)
class Quality:
    """One model on labelled images; ECE of the plain softmax at full size, in 0..1."""

    miou: float
    ece_image: float  # 10 bins, plain mean over images
    ece_pooled: float  # 15 bins, all pixels alike


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


class Judge:
    """Gathers one model's quality, image by image."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._confusion = np.zeros((num_classes, num_classes), np.int64)
        self._pooled, self._errors = ReliabilityBins(POOLED_BINS), list[float]()

    def add(self, mask: Map, confidence: NDArray[np.float32], labels: NDArray[np.int32]) -> None:
        """Count the labelled pixels of one image, all [H,W]."""
        keep = labels >= 0
        truth = torch.from_numpy(labels[keep]).long()
        predicted = torch.from_numpy(mask[keep].astype(np.int64))
        sure, correct = torch.from_numpy(confidence[keep]), predicted == truth
        self._confusion += confusion_matrix(truth, predicted, self._num_classes)
        self._pooled.add(sure, correct)
        if len(truth):
            self._errors.append(ReliabilityBins(IMAGE_BINS).add(sure, correct).ece())

    def quality(self) -> Quality:
        """Give the figures."""
        image = float(np.mean(self._errors)) if self._errors else np.nan
        return Quality(mean_iou(self._confusion), image, self._pooled.ece())


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
    judges = Judge(num_classes), Judge(num_classes)
    same = signed = absolute = pixels = 0.0
    for entry in images:
        path = entry.image if isinstance(entry, Pair) else entry
        image = read_image(path, max_pixels)
        (mask, confidence), (mask8, confidence8) = (
            segmented(predictor, image) for predictor in (original, quantized)
        )
        shift = confidence8.astype(np.float64) - confidence
        same += np.count_nonzero(mask == mask8)
        signed, absolute, pixels = (
            signed + shift.sum(),
            absolute + np.abs(shift).sum(),
            pixels + mask.size,
        )
        if isinstance(entry, Pair):
            labels = read_labels(entry.labels, max_pixels)
            labels = checked(labels, num_classes, ignore_index, entry.labels.name)
            if labels.shape != mask.shape:
                raise ArgumentError(
                    f"{entry.labels.name}: expected labels of {mask.shape} (height, width), "
                    f"got {labels.shape}"
                )
            judges[0].add(mask, confidence, labels)
            judges[1].add(mask8, confidence8, labels)
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
        before=judges[0].quality() if labelled else None,
        after=judges[1].quality() if labelled else None,
    )


def segmented(predictor: Predictor, image: NDArray[np.uint8]) -> tuple[Map, NDArray[np.float32]]:
    """Label an image [H,W,3] without calibration: mask [H,W] and confidence float32 [H,W]."""
    prepared = predictor.prepare_windows(image)
    mask, confidence = blank(prepared.geometry, predictor.folder.num_classes)
    for (logits,), band in predictor.strips(prepared):
        postprocess_strip(logits, logits, prepared.geometry, band, mask, confidence)
    return mask, confidence


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
