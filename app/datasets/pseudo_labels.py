"""Pseudo-labels: predicted label maps for training, void where the prediction is uncertain.

Pixels at or above a confidence threshold are accepted. The class-wise variant lowers the threshold
of a class to the median confidence of its pixels, so that classes of low confidence are labelled
as well (Li et al. 2019, "Bidirectional Learning"). Pixels near a boundary of the predicted labels
can be left out.
"""

import csv
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import max_pool2d

from app.calibration.predictions import Mask, Prediction
from app.datasets.images import read_image
from app.errors import ArgumentError, ConflictError, InputError
from app.imaging import encode
from app.inference.model_card import OutputPolicy
from app.inference.predictor import Predictor
from app.inference.threads import RowWorkers
from app.serving.pipeline import predict_image
from app.serving.segmenter import MIN_IN_DISTRIBUTION, SegmentOptions, certified_level
from app.storage.manifest import StoredCalibrator

TABLE = "acceptance.csv"
CONFIDENCE_BINS = 4096  # of the histograms from which medians are computed
UINT8_MAX = 255

PredictFile = Callable[[Path], Prediction]


@dataclass(frozen=True)
class AcceptanceRule:
    """The pixels that become pseudo-labels.

    Confidence is at least `threshold`, which a certified level may have set. With `class_wise` the
    threshold of a class is at most the median confidence of its pixels. Pixels within
    `boundary_width` pixels of another predicted class are not accepted; 0 includes all.
    """

    threshold: float
    max_error: float | None = None
    class_wise: bool = False
    boundary_width: int = 0

    def applies(self, prediction: Prediction) -> bool:
        """Return false where the threshold is certified, but the image unlike those of the fit."""
        score = prediction.in_distribution
        return self.max_error is None or score is None or score >= MIN_IN_DISTRIBUTION


@dataclass(frozen=True)
class ClassAcceptance:
    """Acceptance of one class: its threshold, and numbers of predicted and accepted pixels."""

    class_id: int
    name: str
    threshold: float
    predicted: int
    accepted: int

    @property
    def fraction(self) -> float:
        """Fraction of the predicted pixels that were accepted, in 0..1; 0 without any."""
        return self.accepted / max(self.predicted, 1)


@dataclass(frozen=True)
class PseudoLabels:
    """The result of a run: acceptance by class, and the errors of images that failed.

    `excluded` are the images without pseudo-labels, as the certified level does not apply to them.
    """

    classes: tuple[ClassAcceptance, ...]
    excluded: tuple[Path, ...]
    failed: dict[Path, str]


class LocalPredictor:
    """Predict image files by a model and a calibrator; None stands for the plain softmax."""

    def __init__(
        self,
        predictor: Predictor,
        stored: StoredCalibrator | None,
        max_pixels: int,
        workers: RowWorkers,
    ) -> None:
        self._predictor, self._max_pixels, self._workers = predictor, max_pixels, workers
        self._calibrator = None if stored is None else stored.calibrator

    def __call__(self, path: Path) -> Prediction:
        """Predict one file; raises InputError that names it."""
        image = read_image(path, self._max_pixels, self._predictor.folder.card.input.scaling)
        return predict_image(image, self._predictor, self._calibrator, workers=self._workers)


def find_rule(
    stored: StoredCalibrator | None,
    *,
    min_confidence: float | None,
    max_error: float | None,
    class_wise: bool,
    boundary_width: int,
) -> AcceptanceRule:
    """Return the rule for exactly one of a threshold and a certified error, both in 0..1.

    Raises ArgumentError for both or none, and for a certified error by class, since thresholds are
    certified for all classes together. Raises ConflictError where no threshold is certified.
    """
    if (min_confidence is None) == (max_error is None):
        raise ArgumentError("expected one of --max-error and --min-confidence")
    if min_confidence is not None:
        return AcceptanceRule(min_confidence, None, class_wise, boundary_width)
    if class_wise:
        raise ArgumentError(
            "expected --min-confidence with --class-wise, as thresholds are certified for all "
            "classes together, got --max-error"
        )
    try:
        level = certified_level(SegmentOptions(max_error=max_error), stored)
    except ConflictError as error:
        raise ConflictError(f"{error}; --min-confidence sets one without a certificate") from error
    assert level is not None  # noqa: S101 - max_error is given
    return AcceptanceRule(level.threshold, level.max_error, boundary_width=boundary_width)


def write_pseudo_labels(
    images: Sequence[Path],
    out: Path,
    predict: PredictFile,
    rule: AcceptanceRule,
    output: OutputPolicy,
    advance: Callable[[], object],
) -> PseudoLabels:
    """Write `<stem>.png` for each image, and `acceptance.csv`; an error does not stop the others.

    The values are those of the model's label maps, with `ignore_index` where no class is accepted.
    `advance` is called after each prediction; the class-wise rule predicts each image twice. Raises
    ArgumentError where `ignore_index` is a class.
    """
    require_void_value(output)
    out.mkdir(parents=True, exist_ok=True)
    count = len(output.classes)
    thresholds = np.full(count, rule.threshold, np.float32)
    if rule.class_wise:
        thresholds = np.minimum(thresholds, median_confidence(images, predict, count, advance))
    predicted, accepted = np.zeros(count, np.int64), np.zeros(count, np.int64)
    excluded: list[Path] = []
    failed: dict[Path, str] = {}
    for path in images:
        try:
            prediction = predict(path)
        except InputError as error:
            failed[path] = str(error)
        else:
            if rule.applies(prediction):
                chosen = accept(prediction, thresholds, rule.boundary_width)
                predicted += np.bincount(prediction.mask.ravel(), minlength=count)
                accepted += np.bincount(prediction.mask[chosen], minlength=count)
                png = label_png(prediction.mask, chosen, output)
                (out / f"{path.stem}.png").write_bytes(png)
            else:
                excluded.append(path)
        advance()
    classes = tuple(
        ClassAcceptance(
            index, info.name, float(thresholds[index]), int(predicted[index]), int(accepted[index])
        )
        for index, info in enumerate(output.classes)
    )
    write_table(out / TABLE, classes)
    return PseudoLabels(classes, tuple(excluded), failed)


def require_void_value(output: OutputPolicy) -> None:
    """Raise ArgumentError where the ignore value of label maps is a class."""
    first = int(output.reduce_zero_label)
    if first <= output.ignore_index < first + len(output.classes):
        name = output.classes[output.ignore_index - first].name
        raise ArgumentError(
            f"expected an ignore_index that is no class, got {output.ignore_index}, the label of "
            f"{name!r}"
        )


def median_confidence(
    images: Sequence[Path], predict: PredictFile, num_classes: int, advance: Callable[[], object]
) -> NDArray[np.float32]:
    """Compute the median confidence float32 [K] of the pixels predicted as each class; 1 for none.

    It is the lower edge of a bin of width 1/4096. Images that fail are left out.
    """
    histogram = np.zeros((num_classes, CONFIDENCE_BINS), np.int64)
    for path in images:
        with suppress(InputError):
            prediction = predict(path)
            bins = np.minimum(prediction.confidence * CONFIDENCE_BINS, CONFIDENCE_BINS - 1)
            places = prediction.mask.astype(np.int64) * CONFIDENCE_BINS + bins.astype(np.int64)
            counts = np.bincount(places.ravel(), minlength=histogram.size)
            histogram += counts.reshape(histogram.shape)
        advance()
    cumulative = histogram.cumsum(axis=1)
    total = cumulative[:, -1]
    edges = (2 * cumulative < total[:, None]).sum(axis=1) / CONFIDENCE_BINS
    return np.where(total > 0, edges, 1).astype(np.float32)


def accept(
    prediction: Prediction, thresholds: NDArray[np.float32], boundary_width: int
) -> NDArray[np.bool_]:
    """Return the accepted pixels bool [H,W], given the thresholds float32 [K] of the classes."""
    chosen: NDArray[np.bool_] = prediction.confidence >= thresholds[prediction.mask]
    return chosen & ~near_boundary(prediction.mask, boundary_width) if boundary_width else chosen


def near_boundary(mask: Mask, width: int) -> NDArray[np.bool_]:
    """Return the pixels bool [H,W] with another label within `width` rows and columns."""
    labels = torch.from_numpy(mask.astype(np.float32))[None]
    highest, lowest = (
        sign * max_pool2d(sign * labels, 2 * width + 1, 1, width)[0] for sign in (1, -1)
    )
    near: NDArray[np.bool_] = (highest != lowest).numpy()
    return near


def label_png(mask: Mask, chosen: NDArray[np.bool_], output: OutputPolicy) -> bytes:
    """Encode a label map as the model's own: void where not chosen, indexed colours up to 255."""
    first = int(output.reduce_zero_label)
    labels = np.where(chosen, mask.astype(np.uint16) + first, np.uint16(output.ignore_index))
    if max(output.ignore_index, len(output.classes) - 1 + first) > UINT8_MAX:
        return encode.mask_png(labels, ())
    palette = [(0, 0, 0)] * first + [entry.rgb for entry in output.classes]
    return encode.mask_png(labels.astype(np.uint8), palette)


def write_table(path: Path, classes: Sequence[ClassAcceptance]) -> None:
    """Write acceptance by class as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["class_id", "name", "threshold", "predicted", "accepted", "fraction"])
        table.writerows([*astuple(each), round(each.fraction, 6)] for each in classes)
