"""Segment uploads: choose model, calibrator and threshold, predict, and watch for drift.

bytes -> image -> prediction (`pipeline`) -> abstention below the threshold -> class statistics
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.calibration.predictions import Prediction
from app.errors import ConflictError, NotFoundError
from app.imaging.decode import decode_image
from app.inference.model_card import ModelFolder, default_name
from app.inference.postprocess import ClassStatistics, class_statistics
from app.inference.predictor import Predictor, Tta
from app.inference.threads import RowWorkers
from app.serving.drift_monitor import DriftMonitor
from app.serving.pipeline import StageTimer, predict_image
from app.serving.warmup import warm_up
from app.storage.artifacts import ArtifactStore
from app.storage.manifest import StoredCalibrator

NO_CALIBRATOR = "none"
ACTIVE = "active"


@dataclass(frozen=True)
class SegmentOptions:
    """What a caller asks of one segmentation."""

    model: str | None = None
    calibrator: str = ACTIVE
    min_confidence: float | None = None
    max_error: float | None = None
    tta: Tta = "none"


@dataclass(frozen=True)
class Segmentation:
    """The result of one request.

    `prediction` has abstained pixels at the mask's highest value; `threshold` is the smallest
    confidence that was kept, if any. `stale` is true where live predictions have drifted away from
    those that the calibrator was evaluated on.
    """

    predictor: Predictor
    calibrator: StoredCalibrator | None
    prediction: Prediction
    threshold: float | None
    class_statistics: ClassStatistics
    stale: bool = False

    @property
    def mean_confidence(self) -> float:
        """Mean over all pixels, in 0..1."""
        return self.class_statistics.mean_confidence


class Segmenter:
    """All models that serve, and the calibrators they serve with. Safe for threads."""

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        default_model: str | None,
        artifacts: ArtifactStore,
        max_pixels: int,
        workers: RowWorkers | None = None,
        drift: DriftMonitor | None = None,
    ) -> None:
        self._drift = drift
        self.predictors = predictors
        folders = {name: predictor.folder for name, predictor in predictors.items()}
        self.default_model = default_name(folders, default_model)
        self.artifacts = artifacts
        self._max_pixels = max_pixels
        self._workers = workers or RowWorkers(1)

    def segment(self, upload: bytes, options: SegmentOptions, timer: StageTimer) -> Segmentation:
        """Segment one encoded image."""
        predictor = self.predictor(options.model)
        stored = self.calibrator(predictor, options.calibrator)
        threshold = confidence_threshold(options, stored)
        calibrator = stored.calibrator if stored else None
        prediction = predict_image(
            self._decode(upload, timer), predictor, calibrator, options.tta,
            workers=self._workers, timer=timer,
        )  # fmt: skip
        with timer.stage("encode"):
            stale = self._observe_drift(predictor, stored, options, prediction)
            if threshold is not None:
                abstain(prediction, threshold)
            statistics = class_statistics(prediction)
        return Segmentation(predictor, stored, prediction, threshold, statistics, stale)

    def _decode(self, upload: bytes, timer: StageTimer) -> NDArray[np.uint8]:
        with timer.stage("decode"):
            return decode_image(upload, self._max_pixels)

    def _observe_drift(
        self,
        predictor: Predictor,
        stored: StoredCalibrator | None,
        options: SegmentOptions,
        prediction: Prediction,
    ) -> bool:
        """Record a prediction for drift, and return whether the calibrator is stale.

        Only predictions of the active calibrator count, without test-time augmentation, as the
        fit's reference was made.
        """
        if self._drift is None or stored is None:
            return False
        model = predictor.folder.card.name
        if options.calibrator == ACTIVE and options.tta == "none":
            self._drift.observe(model, stored, prediction)
        return self._drift.is_stale(model, stored.manifest.id)

    def warm_up(self) -> None:
        """Calibrate and encode something once, so that no request waits for the kernels."""
        for predictor in self.predictors.values():
            stored = self.calibrator(predictor, ACTIVE)
            warm_up(predictor.folder.num_classes, stored.calibrator if stored else None)

    def predictor(self, name: str | None) -> Predictor:
        """Find a model; without a name, the default one."""
        chosen = name or self.default_model
        if chosen is None or chosen not in self.predictors:
            raise NotFoundError(
                f"expected one of the models {sorted(self.predictors)}, got {chosen!r}"
            )
        return self.predictors[chosen]

    def calibrator(self, predictor: Predictor, wanted: str) -> StoredCalibrator | None:
        """Find the calibrator to use: a version, the active one if there is any, or none."""
        return find_calibrator(self.artifacts, predictor.folder, wanted)


def abstain(prediction: Prediction, threshold: float) -> None:
    """Set pixels whose confidence is below a threshold to the mask's highest value, in place."""
    mask = prediction.mask
    np.copyto(mask, np.iinfo(mask.dtype).max, where=prediction.confidence < threshold)


def find_calibrator(
    store: ArtifactStore, folder: ModelFolder, wanted: str
) -> StoredCalibrator | None:
    """Find a version, the active one if there is any, or none; NotFoundError, ConflictError."""
    if wanted == NO_CALIBRATOR:
        return None
    if wanted == ACTIVE:
        return store.active(folder.card.name, folder.sha256)
    return store.load(folder.card.name, wanted, folder.sha256)


def confidence_threshold(options: SegmentOptions, stored: StoredCalibrator | None) -> float | None:
    """Turn a wish into the least confidence that is kept.

    `max_error` takes the largest certified level up to it. Raises ConflictError where there is
    none, and with test-time augmentation, for which nothing is certified.
    """
    if options.max_error is None:
        return options.min_confidence
    if options.tta != "none":
        raise ConflictError(
            f"expected tta=none with max_error, which is certified without it, got {options.tta}"
        )
    levels = () if stored is None else stored.manifest.thresholds
    met = [level for level in levels if level.max_error <= options.max_error]
    if met:
        return max(met, key=lambda level: level.max_error).threshold
    name = NO_CALIBRATOR if stored is None else stored.manifest.id
    known = ", ".join(f"{level.max_error:g}" for level in levels) or "none"
    raise ConflictError(
        f"expected a calibrator with a threshold certified for max_error={options.max_error:g}, "
        f"got {name} (certified levels: {known})"
    )


def class_table(segmentation: Segmentation) -> list[dict[str, object]]:
    """Count and rate the classes that are present, abstained pixels aside."""
    classes = segmentation.predictor.folder.card.output.classes
    pixels, sums = segmentation.class_statistics.pixels, segmentation.class_statistics.confidence
    return [
        {
            "id": index,
            "name": info.name,
            "color": info.color,
            "pixels": int(pixels[index]),
            "fraction": pixels[index] / segmentation.prediction.mask.size,
            "mean_confidence": sums[index] / pixels[index],
        }
        for index, info in enumerate(classes)
        if pixels[index]
    ]


def abstained_fraction(segmentation: Segmentation) -> float:
    """Give the share of pixels that were not labelled, in 0..1."""
    return segmentation.class_statistics.abstained_fraction
