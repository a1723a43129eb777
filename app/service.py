"""The main flow: one upload becomes a mask with calibrated confidence.

bytes -> picture -> network input -> logits -> calibrated log-probabilities -> mask, confidence
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from app.artifacts import ArtifactStore, StoredCalibrator
from app.calibration.identity import Identity
from app.errors import ConflictError, NotFoundError
from app.imaging.decode import decode_image
from app.imaging.pieces import pieces
from app.inference.emission import blank, emit_band
from app.inference.predictor import Predictor, Tta

T = TypeVar("T")

NO_CALIBRATOR = "none"
ACTIVE = "active"


@dataclass(frozen=True)
class Wish:
    """What a caller asks of one segmentation."""

    model: str | None = None
    calibrator: str = ACTIVE
    min_confidence: float | None = None
    max_error: float | None = None
    tta: Tta = "none"


@dataclass
class Stopwatch:
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
    [H,W] in 0..1, `threshold` the least confidence that was kept, if any.
    """

    predictor: Predictor
    calibrator: StoredCalibrator | None
    mask: NDArray[np.uint8] | NDArray[np.uint16]
    confidence: NDArray[np.float32]
    threshold: float | None

    @property
    def mean_confidence(self) -> float:
        """Mean over all pixels, in 0..1."""
        return float(self.confidence.mean(dtype=np.float64))


class Segmenter:
    """All models that serve, and the calibrators they serve with. Safe for threads."""

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        default_model: str | None,
        artifacts: ArtifactStore,
        max_pixels: int,
    ) -> None:
        self.predictors = predictors
        self._default_model = default_model
        self.artifacts = artifacts
        self._max_pixels = max_pixels

    def segment(self, upload: bytes, wish: Wish, watch: Stopwatch) -> Segmentation:
        """Segment one encoded picture."""
        predictor = self.predictor(wish.model)
        stored = self.calibrator(predictor, wish.calibrator)
        threshold = confidence_threshold(wish, stored)
        with watch.stage("decode"):
            picture = decode_image(upload, self._max_pixels)
        with watch.stage("preprocess"):
            prepared = predictor.lay(picture)
            mask, confidence = blank(prepared.geometry, predictor.folder.num_classes)
        del picture  # 3 bytes a pixel, needed no more where the model takes it whole
        invariances = stored.calibrator.invariances if stored else Identity.invariances
        strips = predictor.strips(prepared, wish.tta, invariances.reach)
        for logits, band in watch.each("inference", strips):
            with watch.stage("calibration"), torch.inference_mode():
                grid = logits[0]
                calibrated = stored.calibrator(logits)[0] if stored else grid
            with watch.stage("encode"):
                labels = grid if invariances.argmax else calibrated
                emit_band(labels, calibrated, prepared.geometry, band, mask, confidence)
        with watch.stage("encode"):
            if threshold is not None:
                mask[confidence < threshold] = np.iinfo(mask.dtype).max
        return Segmentation(predictor, stored, mask, confidence, threshold)

    def predictor(self, name: str | None) -> Predictor:
        """Find a model; without a name, the default one or the only one."""
        chosen = name or self._default_model
        if chosen is None and len(self.predictors) == 1:
            return next(iter(self.predictors.values()))
        if chosen is None or chosen not in self.predictors:
            raise NotFoundError(
                f"expected one of the models {sorted(self.predictors)}, got {chosen!r}"
            )
        return self.predictors[chosen]

    def calibrator(self, predictor: Predictor, wanted: str) -> StoredCalibrator | None:
        """Find the calibrator to use: a version, the active one if there is any, or none."""
        folder = predictor.folder
        if wanted == NO_CALIBRATOR:
            return None
        if wanted == ACTIVE:
            return self.artifacts.active(folder.card.name, folder.sha256)
        return self.artifacts.load(folder.card.name, wanted, folder.sha256)


def confidence_threshold(wish: Wish, stored: StoredCalibrator | None) -> float | None:
    """Turn a wish into the least confidence that is kept.

    Raises ConflictError for `max_error` where no threshold was certified for it.
    """
    if wish.max_error is not None:
        name = NO_CALIBRATOR if stored is None else stored.manifest.id
        raise ConflictError(
            f"expected a calibrator with a threshold certified for max_error="
            f"{wish.max_error}, got {name}, which has none"
        )
    return wish.min_confidence


def class_table(segmentation: Segmentation) -> list[dict[str, object]]:
    """Count and rate the classes that are present, abstained pixels aside."""
    classes = segmentation.predictor.folder.card.output.classes
    mask, confidence = segmentation.mask, segmentation.confidence
    length = np.iinfo(mask.dtype).max + 1
    counts, sums = np.zeros(length, np.int64), np.zeros(length)
    for rows in pieces(*mask.shape):  # numpy casts to 8 bytes for each label and each weight
        labels = mask[rows].ravel()
        counts += np.bincount(labels, minlength=length)
        sums += np.bincount(labels, confidence[rows].ravel(), minlength=length)
    return [
        {
            "id": index,
            "name": info.name,
            "color": info.color,
            "pixels": int(counts[index]),
            "fraction": counts[index] / mask.size,
            "mean_confidence": sums[index] / counts[index],
        }
        for index, info in enumerate(classes)
        if counts[index]
    ]


def abstained_fraction(segmentation: Segmentation) -> float:
    """Give the share of pixels that were not labelled, in 0..1."""
    if segmentation.threshold is None:
        return 0.0
    return float(np.mean(segmentation.mask == np.iinfo(segmentation.mask.dtype).max))
