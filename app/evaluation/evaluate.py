"""Evaluate a model on labelled images, with and without a calibrator.

Metrics are computed at image size, on the mask and confidence that /segment would return. Images
are read one by one; memory does not grow with their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from app.calibration.dataset import IGNORE
from app.calibration.methods.temperature import Temperature
from app.calibration.metrics.assessment import Assessment
from app.calibration.metrics.evaluation import LOG_FLOOR
from app.calibration.metrics.intervals import Interval
from app.calibration.predictions import Prediction
from app.datasets.images import Pair, content_hash, read_image, read_labels_for
from app.errors import ArgumentError
from app.evaluation.fit_images import FitImages, SharedImages
from app.evaluation.resampling import ResamplingUnits
from app.inference.model_card import ModelFolder
from app.inference.postprocess import log_probability_strips
from app.inference.predictor import Predictor, Tta
from app.inference.preprocess import Geometry
from app.schemas.calibrator import Manifest
from app.serving.pipeline import predict_logits
from app.storage.manifest import StoredCalibrator

Reason = Literal["calibration", "confident errors"]


@dataclass(frozen=True)
class Options:
    """Options of an evaluation; `worst` is the number of images to list for each reason.

    `groups` is the group of each image, for intervals; without groups they are by block of images.
    """

    ignore_index: int
    max_pixels: int
    tta: Tta = "none"
    worst: int = 4
    groups: Sequence[int] | None = None


@dataclass(frozen=True)
class Comparison:
    """Assessment of a model without (`before`) and with its calibrator (`after`, or None).

    `difference` is the change of image-wise ECE by the calibrator, paired by image;
    `labels_changed` the fraction of labelled pixels whose label it changes. `shared` counts the
    images that the calibrator's fit has read as well, None where it does not record them. `units`
    are resampled for intervals.
    """

    folder: ModelFolder
    manifest: Manifest | None
    options: Options
    pairs: Sequence[Pair]
    before: Assessment
    after: Assessment | None
    difference: Interval | None
    labels_changed: float
    shared: SharedImages | None
    units: ResamplingUnits

    def ece_interval(self, assessment: Assessment) -> Interval:
        """Compute image-wise ECE with its 95% interval."""
        return self.units.interval(_errors(assessment))

    @property
    def served(self) -> Assessment:
        """The assessment with the calibrator, if there is one."""
        return self.after or self.before

    def worst(self) -> dict[int, list[Reason]]:
        """Return the reasons to inspect images, by index, the worst images of each reason first."""
        images = self.served.images
        values_by_reason: tuple[tuple[Reason, list[float]], ...] = (
            ("calibration", [image.ece for image in images]),
            ("confident errors", [image.confident_errors for image in images]),
        )
        reasons: dict[int, list[Reason]] = {}
        for reason, values in values_by_reason:
            order = np.argsort(-np.nan_to_num(values), kind="stable")[: self.options.worst]
            for index in order.tolist():
                if values[index] > 0:
                    reasons.setdefault(index, []).append(reason)
        return reasons


class ScoredPrediction(NamedTuple):
    """One image's prediction, with its sums of NLL and Brier score.

    `scores` takes labels int64 [H,W] and returns both sums over the labelled pixels, NaN where only
    the label's probability is known.
    """

    prediction: Prediction
    scores: Callable[[Tensor], tuple[float, float]]


class ImagePredictions(NamedTuple):
    """One image's predictions without the calibrator, and with it where there is one.

    `at_temperatures` are those of the uncalibrated logits divided by each of the temperatures that
    were asked for; empty for a model whose logits are not known.
    """

    plain: ScoredPrediction
    calibrated: ScoredPrediction | None
    at_temperatures: Sequence[Prediction] = ()


class Observer(Protocol):
    """A further analysis of the images that an evaluation predicts."""

    @property
    def temperatures(self) -> Sequence[float]:
        """The temperatures at which it needs predictions."""

    def add(self, pair: Pair, predictions: ImagePredictions, labels: Tensor) -> None:
        """Add one image, with labels int64 [H,W], IGNORE where unlabelled."""


class EvaluatedModel(Protocol):
    """A model to evaluate, with the manifest of its calibrator if there is one."""

    @property
    def folder(self) -> ModelFolder:
        """The model's card and hash."""

    @property
    def manifest(self) -> Manifest | None:
        """The calibrator's manifest."""

    @property
    def fit_images(self) -> FitImages | None:
        """The images of the calibrator's fit, None where they are not recorded."""

    def predict(self, pair: Pair, temperatures: Sequence[float] = ()) -> ImagePredictions:
        """Predict an image without the calibrator, with it, and at temperatures."""

    def with_tta(self, tta: Tta) -> "EvaluatedModel":
        """Return the model with another test-time augmentation."""


@dataclass(frozen=True)
class LocalModel:
    """A model in this process."""

    predictor: Predictor
    calibrator: StoredCalibrator | None
    max_pixels: int
    tta: Tta = "none"
    fit_images: FitImages | None = None

    @property
    def folder(self) -> ModelFolder:
        """The model's card and hash."""
        return self.predictor.folder

    @property
    def manifest(self) -> Manifest | None:
        """The calibrator's manifest."""
        return None if self.calibrator is None else self.calibrator.manifest

    def with_tta(self, tta: Tta) -> "LocalModel":
        """Return the model with another test-time augmentation."""
        return replace(self, tta=tta)

    @torch.inference_mode()
    def predict(self, pair: Pair, temperatures: Sequence[float] = ()) -> ImagePredictions:
        """Predict an image in all the ways asked for, from one run of the network."""
        scaling = self.predictor.folder.card.input.scaling
        image = read_image(pair.image, self.max_pixels, scaling)
        prepared = self.predictor.prepare_windows(image)
        logits, geometry = self.predictor.grid(prepared, self.tta)[0], prepared.geometry
        size = logits.shape[1], logits.shape[2]
        cells = prepared.thumbnail(size, range(size[0]))
        calibrator = None if self.calibrator is None else self.calibrator.calibrator
        calibrators = [None] if calibrator is None else [None, calibrator]
        scaled = [_temperature(value, len(logits)) for value in temperatures]
        predictions = predict_logits(logits, geometry, [*calibrators, *scaled], cells)
        at_temperatures = predictions[len(calibrators) :]
        plain = ScoredPrediction(predictions[0], partial(score_sums, logits, geometry))
        if calibrator is None:
            return ImagePredictions(plain, None, at_temperatures)
        calibrated = calibrator.with_image(cells)(logits[None])[0]
        scored = ScoredPrediction(predictions[1], partial(score_sums, calibrated, geometry))
        return ImagePredictions(plain, scored, at_temperatures)


@dataclass
class Measured:
    """Assessments of some images, and the number of labelled pixels with a changed label.

    Those of consecutive parts of a set can be merged.
    """

    before: Assessment
    after: Assessment | None
    changed: int = 0

    @classmethod
    def of(cls, model: EvaluatedModel) -> Self:
        """Return the measurement of no image; `after` is None without a calibrator."""
        classes = model.folder.num_classes
        return cls(Assessment(classes), None if model.manifest is None else Assessment(classes))

    def merge(self, other: "Measured") -> Self:
        """Add the images that follow in the set, measured with the same model."""
        self.before.merge(other.before)
        if self.after is not None and other.after is not None:
            self.after.merge(other.after)
        self.changed += other.changed
        return self


def evaluate_model(
    model: EvaluatedModel,
    pairs: Sequence[Pair],
    options: Options,
    advance: Callable[[], object],
    observer: Observer | None = None,
) -> Comparison:
    """Assess a model on labelled images, with and without its calibrator.

    `advance` is called after each image, and the observer gets each image's predictions. Raises
    as `measure` and `compare`.
    """
    return compare(model, pairs, options, measure(model, pairs, options, advance, observer))


def measure(
    model: EvaluatedModel,
    pairs: Sequence[Pair],
    options: Options,
    advance: Callable[[], object],
    observer: Observer | None = None,
) -> Measured:
    """Measure a model on labelled images, which may be a part of a set.

    Raises InputError for an image or label map that cannot be read.
    """
    folder, measured = model.folder, Measured.of(model)
    for pair in pairs:
        predictions = model.predict(pair, observer.temperatures if observer else ())
        plain, calibrated = predictions.plain, predictions.calibrated
        height, width = plain.prediction.mask.shape
        labels = torch.from_numpy(
            read_labels_for(
                pair,
                (height, width),
                folder.num_classes,
                options.ignore_index,
                options.max_pixels,
                reduce_zero=folder.card.output.reduce_zero_label,
            )
        ).long()
        measured.before.add(plain.prediction, labels, *plain.scores(labels))
        if measured.after is not None and calibrated is not None:
            measured.after.add(calibrated.prediction, labels, *calibrated.scores(labels))
            changes = calibrated.prediction.classes != plain.prediction.classes
            measured.changed += int((changes & (labels != IGNORE)).sum())
        if observer is not None:
            observer.add(pair, predictions, labels)
        advance()
    return measured


def compare(
    model: EvaluatedModel, pairs: Sequence[Pair], options: Options, measured: Measured
) -> Comparison:
    """Compare a model with and without its calibrator, as measured on all pairs in order.

    Raises ArgumentError if all pixels are void.
    """
    before, after = measured.before, measured.after
    units = ResamplingUnits.of(options.groups, len(pairs))
    pixels = before.overall.pixels
    if not pixels:
        raise ArgumentError(
            f"expected labelled pixels, got none in {len(pairs)} label maps: all are void "
            f"({options.ignore_index})"
        )
    return Comparison(
        folder=model.folder,
        manifest=model.manifest,
        options=options,
        pairs=pairs,
        before=before,
        after=after,
        difference=None if after is None else units.difference(_errors(after), _errors(before)),
        labels_changed=measured.changed / pixels,
        shared=_shared_images(model.fit_images, pairs),
        units=units,
    )


@torch.inference_mode()
def score_sums(grid: Tensor, geometry: Geometry, labels: Tensor) -> tuple[float, float]:
    """Sum NLL (nats) and Brier score over labelled pixels, of logits [K,h,w] and labels [H,W]."""
    nll = brier = 0.0
    for rows, log_probabilities in log_probability_strips(grid, geometry):
        kept = labels[rows] != IGNORE
        columns = log_probabilities[:, kept]  # [K,m]
        chosen = columns.gather(0, labels[rows][kept][None])[0]
        nll -= chosen.clamp(min=LOG_FLOOR).double().sum().item()
        squares = columns.exp().square_().sum(0) - 2 * chosen.exp() + 1
        brier += squares.double().sum().item()
    return nll, brier


def _temperature(value: float, num_classes: int) -> Temperature:
    """Return the calibrator that divides logits by a temperature."""
    calibrator = Temperature(num_classes)
    calibrator.beta.fill_(1 / value)
    return calibrator


def _errors(assessment: Assessment) -> list[float]:
    """Return each image's ECE."""
    return [image.ece for image in assessment.images]


def _shared_images(fit_images: FitImages | None, pairs: Sequence[Pair]) -> SharedImages | None:
    if fit_images is None:
        return None
    return fit_images.shared(content_hash(pair.image) for pair in pairs)
