"""The main flow: one upload becomes a mask with calibrated confidence.

bytes -> image -> network input -> logits -> calibrated log-probabilities -> mask, confidence
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from app.errors import ConflictError, NotFoundError
from app.imaging.decode import decode_image
from app.inference.kernels import Confidence, Mask
from app.inference.model_card import ModelFolder, default_name
from app.inference.postprocess import ClassStatistics, class_statistics
from app.inference.predictor import Predictor, Tta
from app.inference.threads import RowWorkers
from app.serving.drift_monitor import DriftMonitor
from app.serving.pipeline import Postprocessor, calibrate_strip, with_strip_image
from app.serving.warmup import warm_up
from app.storage.artifacts import ArtifactStore
from app.storage.manifest import StoredCalibrator

T = TypeVar("T")

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


@dataclass
class StageTimer:
    """Milliseconds by stage, in the order the stages ran."""

    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - start) * 1000
            self.stages[name] = self.stages.get(name, 0.0) + spent

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Hand items on, adding the time that each took to come to a stage."""
        source = iter(items)
        while True:
            with self.stage(name):
                item = next(source, None)
            if item is None:
                return
            yield item


@dataclass(frozen=True)
class Segmentation:
    """One answer, with what its confidence rests on.

    `mask` is uint8 or uint16 [H,W] with abstained pixels at the top value, `confidence` float32
    [H,W] in 0..1, `threshold` the least confidence that was kept, if any, `class_statistics` their
    sums. `stale` says that live answers have drifted away from what the calibrator was measured on.
    """

    predictor: Predictor
    calibrator: StoredCalibrator | None
    mask: NDArray[np.uint8] | NDArray[np.uint16]
    confidence: NDArray[np.float32]
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
        threads: RowWorkers | None = None,
        drift: DriftMonitor | None = None,
    ) -> None:
        self._drift = drift
        self.predictors = predictors
        folders = {name: predictor.folder for name, predictor in predictors.items()}
        self.default_model = default_name(folders, default_model)
        self.artifacts = artifacts
        self._max_pixels = max_pixels
        self._threads = threads or RowWorkers(1)

    def segment(self, upload: bytes, options: SegmentOptions, timer: StageTimer) -> Segmentation:
        """Segment one encoded image."""
        predictor = self.predictor(options.model)
        stored = self.calibrator(predictor, options.calibrator)
        threshold = confidence_threshold(options, stored)
        with timer.stage("decode"):
            image = decode_image(upload, self._max_pixels)
        with timer.stage("preprocess"):
            prepared = predictor.prepare_windows(image)
        del image  # needed no more, unless it is what was laid
        calibrator = stored.calibrator if stored else None
        classes = predictor.folder.num_classes
        postprocessor = Postprocessor(prepared.geometry, classes, self._threads)
        receptive_radius, map_rows = (
            calibrator.invariances.receptive_radius if calibrator else 0,
            self._threads.map_rows,
        )
        for logits, band in timer.each(
            "inference", predictor.strips(prepared, options.tta, receptive_radius)
        ):
            with timer.stage("calibration"):
                with_image = calibrator and with_strip_image(calibrator, prepared, logits[0], band)
                strip_result = calibrate_strip(logits[0], with_image, map_rows, band)
            with timer.stage("encode"):
                postprocessor.postprocess(strip_result, band)
        with timer.stage("calibration"):
            postprocessor.combine_shifts()
        with timer.stage("encode"):
            mask, confidence = postprocessor.mask, postprocessor.confidence
            stale = self._is_stale(predictor, stored, options, mask, confidence)
            if threshold is not None:
                np.copyto(mask, np.iinfo(mask.dtype).max, where=confidence < threshold)
            sums = class_statistics(mask, confidence)
        return Segmentation(predictor, stored, mask, confidence, threshold, sums, stale)

    def _is_stale(
        self,
        predictor: Predictor,
        stored: StoredCalibrator | None,
        options: SegmentOptions,
        mask: Mask,
        confidence: Confidence,
    ) -> bool:
        """Tell whether the calibrator is stale, after a look at this answer if it counts.

        Only answers of the active calibrator do, as the fit made them: without augmentation.
        """
        if self._drift is None or stored is None:
            return False
        model = predictor.folder.card.name
        if options.calibrator == ACTIVE and options.tta == "none":
            self._drift.observe(model, stored, mask, confidence)
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
            "fraction": pixels[index] / segmentation.mask.size,
            "mean_confidence": sums[index] / pixels[index],
        }
        for index, info in enumerate(classes)
        if pixels[index]
    ]


def abstained_fraction(segmentation: Segmentation) -> float:
    """Give the share of pixels that were not labelled, in 0..1."""
    return segmentation.class_statistics.abstained_fraction
