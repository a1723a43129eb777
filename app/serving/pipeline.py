"""Predict an image, or its stored logits, strip by strip.

    image -> windows -> strips of logits -> calibrator -> upsample, label, confidence

Requests, evaluation, quantisation reports and fits predict by this one loop, so that metrics hold
for the served predictions.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import (
    Calibrator,
    LogOddsShift,
    finite_logits,
)
from app.calibration.predictions import Prediction
from app.deadline import UNLIMITED, Deadline
from app.inference.postprocess import (
    SERIAL,
    allocate_prediction,
    postprocess_strip,
    shift_confidence,
)
from app.inference.predictor import Predictor, Tta
from app.inference.preprocess import Band, Geometry, Size
from app.inference.sliding_window import Strip
from app.inference.threads import RowWorkers

T = TypeVar("T")

# Returns the mean colours of the image in some rows of a grid (h, w), uint8 [3,n,w].
Thumbnail = Callable[[Size, range], Tensor]


@dataclass
class StageTimer:
    """Measure milliseconds by stage, in the order in which the stages started."""

    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the duration of a block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - start) * 1000
            self.stages[name] = self.stages.get(name, 0.0) + spent

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Iterate over items and add the time that each took to produce to a stage."""
        source = iter(items)
        while True:
            with self.stage(name):
                item = next(source, None)
            if item is None:
                return
            yield item


@dataclass(frozen=True)
class CalibratedStrip:
    """Calibrated rows of the grid; logits float32 [K,n,w].

    `label_logits` decide the class; softmax(`scale` * `confidence_logits`) is its confidence, whose
    log-odds are then changed by `shift`, which is combined from the strips of the whole image.
    """

    label_logits: Tensor
    confidence_logits: Tensor
    scale: float = 1.0
    shift: LogOddsShift | None = None


@torch.inference_mode()
def calibrate_strip(
    logits: Tensor,
    calibrator: Calibrator | None,
    band: Band,
    thumbnail: Thumbnail | None = None,
) -> CalibratedStrip:
    """Calibrate rows of logits [K,n,w] that begin at the band's `top`.

    Without a calibrator, labels and confidence come from the logits. `thumbnail` is for calibrators
    that need the image.
    """
    if calibrator is None:
        return CalibratedStrip(logits, logits)
    if calibrator.needs_image and thumbnail is not None:
        rows = range(band.top, band.top + logits.shape[1])
        calibrator = calibrator.with_image(thumbnail((band.height, logits.shape[2]), rows))
    scale = calibrator.scale()
    if scale is not None:
        shift = calibrator.log_odds_shift(logits)
        return CalibratedStrip(logits, logits, scale, shift)
    calibrated = calibrator(logits[None])[0]
    return CalibratedStrip(logits if calibrator.invariances.argmax else calibrated, calibrated)


class PredictionBuilder:
    """Build an image's prediction from calibrated strips of its grid."""

    def __init__(self, geometry: Geometry, num_classes: int, workers: RowWorkers) -> None:
        self._geometry, self._num_classes, self._workers = geometry, num_classes, workers
        self._shifts: list[LogOddsShift] = []
        self._grid = 0, 0
        self._prediction = allocate_prediction(geometry, num_classes)

    def add(self, strip: CalibratedStrip, band: Band) -> None:
        """Write the image rows of a band, and collect its shift of the log-odds."""
        postprocess_strip(
            strip.label_logits, strip.confidence_logits, self._geometry, band, self._prediction,
            scale=strip.scale, workers=self._workers,
        )  # fmt: skip
        if strip.shift is not None:
            self._shifts.append(strip.shift.within(band.top, band.cells))
            self._grid = band.height, strip.label_logits.shape[2]

    def finish(self) -> Prediction:
        """Apply the log-odds shift, which depends on the whole image, and return the prediction."""
        if self._shifts:
            joined = LogOddsShift.joined(self._shifts)
            shift, score = joined.combined()
            if score > 0:
                shift_confidence(
                    self._prediction.confidence, shift, 1 / self._num_classes, self._grid,
                    joined.stride, self._geometry, self._workers,
                )  # fmt: skip
            return replace(self._prediction, in_distribution=score)
        return self._prediction


def predict_image(
    image: NDArray[np.uint8],
    predictor: Predictor,
    calibrator: Calibrator | None,
    tta: Tta = "none",
    *,
    workers: RowWorkers = SERIAL,
    timer: StageTimer | None = None,
    deadline: Deadline = UNLIMITED,
) -> Prediction:
    """Predict one image uint8 RGB [H,W,3] at its own size.

    The timer records the stages preprocess, inference, calibration and encode. Raises
    UnavailableError once the deadline has expired.
    """
    timer = timer or StageTimer()
    with timer.stage("preprocess"):
        prepared = predictor.prepare_windows(image)
    del image  # the prepared image may be smaller
    radius = calibrator.invariances.receptive_radius if calibrator else 0
    strips = predictor.strips(prepared, tta, radius, deadline)
    (prediction,) = predict_strips(
        strips, prepared.geometry, [calibrator], prepared.thumbnail, workers, timer, deadline
    )
    return prediction


def predict_logits(
    logits: Tensor,
    geometry: Geometry,
    calibrators: Sequence[Calibrator | None],
    thumbnail: Tensor | None = None,
) -> list[Prediction]:
    """Predict from the logits [K,h,w] of a whole image, once for each calibrator.

    `thumbnail` is the image resized to the logits' grid, uint8 RGB [3,h,w]. None among the
    calibrators stands for uncalibrated confidence.
    """
    whole = Strip(finite_logits(logits[None]), Band.whole(logits.shape[1]))
    return predict_strips(
        [whole],
        geometry,
        calibrators,
        None if thumbnail is None else lambda _grid, _rows: thumbnail,
    )


def predict_strips(
    strips: Iterable[Strip],
    geometry: Geometry,
    calibrators: Sequence[Calibrator | None],
    thumbnail: Thumbnail | None,
    workers: RowWorkers = SERIAL,
    timer: StageTimer | None = None,
    deadline: Deadline = UNLIMITED,
) -> list[Prediction]:
    """Calibrate and postprocess an image's strips of logits, once for each calibrator.

    The timer records the stages inference, calibration and encode.
    """
    timer = timer or StageTimer()
    builders: list[PredictionBuilder] = []
    for logits, band in timer.each("inference", strips):
        classes = logits.shape[1]
        builders = builders or [PredictionBuilder(geometry, classes, workers) for _ in calibrators]
        for calibrator, builder in zip(calibrators, builders, strict=True):
            deadline.check()
            with timer.stage("calibration"):
                strip = calibrate_strip(logits[0], calibrator, band, thumbnail)
            with timer.stage("encode"):
                builder.add(strip, band)
    with timer.stage("calibration"):
        return [builder.finish() for builder in builders]
