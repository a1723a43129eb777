"""Analyses of the calibration papers, on the images of an evaluation.

Wang et al. 2023 analyse the calibration error by correctness, boundary, class, crop size, scale and
capacity; Sakaridis et al. 2021 define UIoU and AUIoU. The first three are part of every assessment;
here are the others, and the experiment that scales the temperature. Memory does not grow with the
number of images but for a few numbers of each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from app.calibration.dataset import IGNORE
from app.calibration.metrics.evaluation import Evaluation
from app.calibration.metrics.intervals import Interval
from app.calibration.metrics.segmentation import UncertaintyIoU, theta_grid
from app.calibration.metrics.subsets import by_crop_size
from app.calibration.predictions import Prediction
from app.datasets.images import Pair, read_mask
from app.errors import ArgumentError
from app.evaluation.charts import Stage
from app.evaluation.evaluate import (
    Comparison,
    EvaluatedModel,
    ImagePredictions,
    Options,
    evaluate_model,
)

SEED = 0  # of the crops
TEMPERATURES = (0.67, 1.0, 1.5)
CROP_SIZES = (32, 64, 128, 256, 512)  # pixels
CROPS = 8  # of each size in each image


@dataclass(frozen=True)
class AnalysisOptions:
    """Options of the analyses.

    `thetas` are the confidence thresholds of UIoU in 0..1, None for ten between 1/K and 1.
    `invalid` has the mask of each image whose nonzero pixels are invalid in the ground truth; None
    where there are none, so that no pixel is.
    """

    thetas: Sequence[float] | None = None
    invalid: Mapping[Pair, Path] | None = None


class ScaledTemperature:
    """Metrics of the uncalibrated logits divided by one temperature."""

    def __init__(self, temperature: float, num_classes: int, thetas: Sequence[float]) -> None:
        self.temperature = temperature
        self.evaluation = Evaluation(num_classes)
        self.uiou = UncertaintyIoU(num_classes, thetas)


class ImageAnalyses:
    """Crop sizes, UIoU and temperatures, accumulated image by image."""

    def __init__(self, num_classes: int, options: AnalysisOptions, max_pixels: int) -> None:
        thetas = options.thetas or theta_grid(num_classes)
        self._invalid, self._max_pixels = options.invalid, max_pixels
        self._num_classes, self._thetas = num_classes, thetas
        self.crops: dict[Stage, list[dict[int, float]]] = {}  # mean ECE by size, of each image
        self.uiou: dict[Stage, UncertaintyIoU] = {}
        self.scaled = [ScaledTemperature(value, num_classes, thetas) for value in TEMPERATURES]

    @property
    def temperatures(self) -> Sequence[float]:
        """The temperatures at which predictions are needed."""
        return TEMPERATURES

    def add(self, pair: Pair, predictions: ImagePredictions, labels: Tensor) -> None:
        """Add one image, with labels int64 [H,W], IGNORE where unlabelled."""
        invalid = self._read_invalid(pair, labels)
        self._add_stage("before", predictions.plain.prediction, labels, invalid)
        if predictions.calibrated is not None:
            self._add_stage("after", predictions.calibrated.prediction, labels, invalid)
        for scaled, prediction in zip(self.scaled, predictions.at_temperatures, strict=False):
            scaled.evaluation.add_prediction(prediction, labels)
            add_labelled(scaled.uiou, prediction, labels, invalid)

    def _add_stage(
        self, stage: Stage, prediction: Prediction, labels: Tensor, invalid: Tensor
    ) -> None:
        images = self.crops.setdefault(stage, [])
        rng = np.random.default_rng([SEED, len(images)])  # equal crops in both stages
        errors = by_crop_size(prediction, labels, CROP_SIZES, CROPS, rng)
        images.append({size: float(np.mean(e)) if e else np.nan for size, e in errors.items()})
        uiou = self.uiou.setdefault(stage, UncertaintyIoU(self._num_classes, self._thetas))
        add_labelled(uiou, prediction, labels, invalid)

    def _read_invalid(self, pair: Pair, labels: Tensor) -> Tensor:
        if self._invalid is None:
            return torch.zeros_like(labels, dtype=torch.bool)
        size = labels.shape[0], labels.shape[1]
        return torch.from_numpy(read_mask(self._invalid[pair], size, self._max_pixels))


@dataclass(frozen=True)
class Analyses:
    """A model's comparison without and with its calibrator, and the analyses of the papers.

    `multiscale` is the comparison with multi-scale test-time augmentation, `others` are those of
    other models. `images.scaled` holds no images for a model whose logits are not known.
    """

    comparison: Comparison
    multiscale: Comparison
    others: Sequence[Comparison]
    images: ImageAnalyses
    with_invalid: bool  # whether masks of invalid pixels were given

    def crop_errors(self, stage: Stage) -> dict[int, Interval]:
        """Compute ECE by crop size, the mean over images of the mean over their crops."""
        images = self.images.crops[stage]
        units = self.comparison.units
        return {size: units.interval([image[size] for image in images]) for size in CROP_SIZES}

    def scaled_error(self, scaled: ScaledTemperature) -> Interval:
        """Compute the image-wise ECE at a temperature."""
        return self.comparison.units.interval([image.ece for image in scaled.evaluation.images])

    @property
    def has_temperatures(self) -> bool:
        """Return whether predictions at other temperatures were available."""
        return bool(self.images.scaled[0].evaluation.images)


def analyse(
    model: EvaluatedModel,
    others: Sequence[EvaluatedModel],
    pairs: Sequence[Pair],
    options: Options,
    analysis_options: AnalysisOptions,
    advance: Callable[[], object],
) -> Analyses:
    """Evaluate a model with all analyses, and the other models beside it.

    `advance` is called after each image of each of the `evaluations`. Raises as `evaluate_model`
    does, and ArgumentError for other models with other classes.
    """
    require_same_classes(model, others)
    images = ImageAnalyses(model.folder.num_classes, analysis_options, options.max_pixels)
    multiscale = replace(options, tta="multiscale")
    return Analyses(
        comparison=evaluate_model(model, pairs, options, advance, images),
        multiscale=evaluate_model(model.with_tta("multiscale"), pairs, multiscale, advance),
        others=[evaluate_model(other, pairs, options, advance) for other in others],
        images=images,
        with_invalid=analysis_options.invalid is not None,
    )


def evaluations(others: int) -> int:
    """Return the number of evaluations of `analyse`, each over all images."""
    return 2 + others


def require_same_classes(model: EvaluatedModel, others: Sequence[EvaluatedModel]) -> None:
    """Raise ArgumentError unless all models have the same classes, so that labels fit all."""
    expected = class_names(model)
    for other in others:
        if class_names(other) != expected:
            raise ArgumentError(
                f"expected models with the classes of {model.folder.card.name}, {expected}, got "
                f"{other.folder.card.name} with {class_names(other)}"
            )


def class_names(model: EvaluatedModel) -> list[str]:
    """List the names of a model's classes, by id."""
    return [info.name for info in model.folder.card.output.classes]


def add_labelled(
    uiou: UncertaintyIoU, prediction: Prediction, labels: Tensor, invalid: Tensor
) -> None:
    """Add an image's labelled pixels; `invalid` bool [H,W] marks those that are uncertain."""
    kept = labels != IGNORE
    uiou.add(prediction.probabilities[kept], prediction.classes[kept], labels[kept], invalid[kept])
