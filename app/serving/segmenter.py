"""Segment uploads: choose model, calibrator and threshold, predict, and monitor drift.

bytes -> image -> prediction (`pipeline`) -> abstention below the threshold -> class statistics
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from app.calibration.predictions import Prediction
from app.deadline import UNLIMITED, Deadline
from app.errors import (
    ActiveCalibratorError,
    ConflictError,
    NotFoundError,
    UnavailableError,
)
from app.imaging.decode import ImageArray, check_size
from app.imaging.decoder_pool import DecoderPool
from app.inference.model_card import ModelFolder, default_name
from app.inference.postprocess import ClassStatistics, class_statistics
from app.inference.predictor import Predictor, Tta
from app.inference.threads import RowWorkers
from app.schemas.calibrator import CertifiedThreshold
from app.serving.drift_monitor import DriftMonitor
from app.serving.memory import MemoryBudget
from app.serving.pipeline import StageTimer, predict_image
from app.serving.warmup import warm_up
from app.storage.artifacts import ArtifactStore
from app.storage.manifest import StoredCalibrator

NO_CALIBRATOR = "none"
ACTIVE = "active"
MIN_IN_DISTRIBUTION = 0.5  # score below which no certified level applies to an image


@dataclass(frozen=True)
class SegmentOptions:
    """Options of one segmentation; without a model name, the default model segments.

    `calibrator` is a version id, "active" or "none". `min_confidence` is the threshold of
    abstention; `max_error` selects a certified one. Both are in 0..1.
    """

    model: str | None = None
    calibrator: str = ACTIVE
    min_confidence: float | None = None
    max_error: float | None = None
    tta: Tta = "none"


@dataclass(frozen=True)
class Guarantee:
    """The certified level of a request with `max_error`, and whether it applies to the image.

    `applies` is false where the in-distribution score is below 0.5, and None where the calibrator
    computes no such score. `detail` is the reason, in one sentence.
    """

    max_error: float
    applies: bool | None
    detail: str


@dataclass(frozen=True)
class Segmentation:
    """The result of one request.

    `prediction` has abstained pixels at the mask's highest value; `threshold` is the abstention
    threshold, None without one; `guarantee` belongs to a certified threshold. `stale` is true where
    the divergence of served predictions from the calibrator's reference exceeds its limit (see
    `drift_monitor`).
    """

    predictor: Predictor
    calibrator: StoredCalibrator | None
    prediction: Prediction
    threshold: float | None
    class_statistics: ClassStatistics
    stale: bool = False
    guarantee: Guarantee | None = None

    @property
    def mean_confidence(self) -> float:
        """Return the mean confidence of all pixels, in 0..1."""
        return self.class_statistics.mean_confidence


class Segmenter:
    """Segment with any of the served models and its calibrators. Safe for threads."""

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        default_model: str | None,
        artifacts: ArtifactStore,
        max_pixels: int,
        workers: RowWorkers | None = None,
        drift: DriftMonitor | None = None,
        decoders: DecoderPool | None = None,
        memory: MemoryBudget | None = None,
    ) -> None:
        self._drift = drift
        self.predictors = predictors
        folders = {name: predictor.folder for name, predictor in predictors.items()}
        self.default_model = default_name(folders, default_model)
        self.artifacts = artifacts
        self._max_pixels = max_pixels
        self._workers = workers or RowWorkers(1)
        self._decoders = decoders or DecoderPool()
        self.memory = memory

    def segment(
        self,
        upload: bytes | ImageArray,
        options: SegmentOptions,
        timer: StageTimer,
        deadline: Deadline = UNLIMITED,
    ) -> Segmentation:
        """Segment one image, encoded or uint8 RGB [H,W,3].

        Raises InputError for an image that can't be decoded, NotFoundError for an unknown model or
        calibrator, ConflictError without a certified threshold (see `certified_level`), and
        UnavailableError once the deadline has expired.
        """
        predictor = self.predictor(options.model)
        stored = self.calibrator(predictor, options.calibrator)
        level = certified_level(options, stored)
        threshold = options.min_confidence if level is None else level.threshold
        calibrator = stored.calibrator if stored else None
        image = self._decode(upload, predictor, timer, deadline)
        if self.memory is not None:
            self.memory.check(predictor, (image.shape[0], image.shape[1]), options.tta)
        prediction = predict_image(
            image, predictor, calibrator, options.tta,
            workers=self._workers, timer=timer, deadline=deadline,
        )  # fmt: skip
        with timer.stage("encode"):
            stale = self._observe_drift(predictor, stored, options, prediction)
            if threshold is not None:
                abstain(prediction, threshold)
            statistics = class_statistics(prediction)
        guarantee = None if level is None else guarantee_of(level, prediction.in_distribution)
        return Segmentation(predictor, stored, prediction, threshold, statistics, stale, guarantee)

    def _decode(
        self,
        upload: bytes | ImageArray,
        predictor: Predictor,
        timer: StageTimer,
        deadline: Deadline,
    ) -> ImageArray:
        if not isinstance(upload, bytes):
            check_size((upload.shape[1], upload.shape[0]), self._max_pixels)
            return upload
        scaling = predictor.folder.card.input.scaling
        with timer.stage("decode"):
            return self._decoders.decode(upload, self._max_pixels, deadline, scaling)

    def _observe_drift(
        self,
        predictor: Predictor,
        stored: StoredCalibrator | None,
        options: SegmentOptions,
        prediction: Prediction,
    ) -> bool:
        """Record a prediction for drift, and return whether the calibrator is stale.

        Only predictions of the active calibrator without test-time augmentation are recorded, since
        the reference was computed so.
        """
        if self._drift is None or stored is None:
            return False
        model = predictor.folder.card.name
        if options.calibrator == ACTIVE and options.tta == "none":
            self._drift.observe(model, stored, prediction)
        return self._drift.is_stale(model, stored.manifest.id)

    def warm_up(self) -> None:
        """Compile all kernels, so that no request waits for it (see `warmup`)."""
        for predictor in self.predictors.values():
            try:
                stored = self.calibrator(predictor, ACTIVE)
            except (ActiveCalibratorError, UnavailableError):  # must not stop the other models
                stored = None
            warm_up(predictor.folder.num_classes, stored.calibrator if stored else None)

    def predictor(self, name: str | None) -> Predictor:
        """Return a model's predictor, by default the default model's; raises NotFoundError."""
        chosen = name or self.default_model
        if chosen is None or chosen not in self.predictors:
            raise NotFoundError(
                f"expected one of the models {sorted(self.predictors)}, got {chosen!r}"
            )
        return self.predictors[chosen]

    def calibrator(self, predictor: Predictor, name: str) -> StoredCalibrator | None:
        """Load a calibrator by version id, "active" or "none" (see `find_calibrator`)."""
        return find_calibrator(self.artifacts, predictor.folder, name)


def abstain(prediction: Prediction, threshold: float) -> None:
    """Set pixels whose confidence is below a threshold to the mask's highest value, in place."""
    mask = prediction.mask
    np.copyto(mask, np.iinfo(mask.dtype).max, where=prediction.confidence < threshold)


def find_calibrator(
    store: ArtifactStore, folder: ModelFolder, name: str
) -> StoredCalibrator | None:
    """Load a model's calibrator by version id, or the active one; None for "none".

    None as well for "active" where no version is. Raises NotFoundError for an unknown version,
    ConflictError for one of another model, ArtifactError for a damaged one, and
    ActiveCalibratorError where that is the active one.
    """
    if name == NO_CALIBRATOR:
        return None
    if name == ACTIVE:
        return store.active(folder.card.name, folder.sha256, folder.weights_sha256)
    return store.load(folder.card.name, name, folder.sha256, folder.weights_sha256)


def certified_level(
    options: SegmentOptions, stored: StoredCalibrator | None
) -> CertifiedThreshold | None:
    """Return the largest certified level up to `max_error`; None without a `max_error`.

    Raises ConflictError where there is none, and with test-time augmentation, for which no
    threshold is certified.
    """
    if options.max_error is None:
        return None
    if options.tta != "none":
        raise ConflictError(
            f"expected tta=none with max_error, which is certified without it, got {options.tta}"
        )
    levels = () if stored is None else stored.manifest.thresholds
    met = [level for level in levels if level.max_error <= options.max_error]
    if met:
        return max(met, key=lambda level: level.max_error)
    name = NO_CALIBRATOR if stored is None else stored.manifest.id
    known = ", ".join(f"{level.max_error:g}" for level in levels) or "none"
    raise ConflictError(
        f"expected a calibrator with a threshold certified for max_error={options.max_error:g}, "
        f"got {name} (certified levels: {known})"
    )


def guarantee_of(level: CertifiedThreshold, score: float | None) -> Guarantee:
    """Determine whether a level applies to an image of an in-distribution score in 0..1."""
    certified = (
        f"an error of {level.max_error:g} is certified on average over images like the fit's"
    )
    if score is None:
        detail = f"{certified}; the calibrator does not measure whether this image is like them"
        return Guarantee(level.max_error, None, detail)
    applies = score >= MIN_IN_DISTRIBUTION
    side = "at least" if applies else "below"
    detail = f"{certified}; the in-distribution score of this image is {score:.2f}, {side} 0.5"
    return Guarantee(level.max_error, applies, detail)


def class_table(segmentation: Segmentation) -> list[dict[str, object]]:
    """List pixel count, fraction and mean confidence of each predicted class, by class id.

    Abstained pixels are not counted, but fractions are of all pixels.
    """
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
    """Return the fraction of abstained pixels, in 0..1."""
    return segmentation.class_statistics.abstained_fraction
