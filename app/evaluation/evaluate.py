"""`segcal evaluate`: a model as it is served, measured over a folder of labelled images.

Every figure is at the images' own size, on the very mask and confidence that /segment would send.
Images are read one by one; memory does not grow with their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.dataset import IGNORE
from app.calibration.metrics.assessment import Assessment
from app.calibration.metrics.evaluation import LOG_FLOOR
from app.calibration.metrics.intervals import Interval, bootstrap_difference
from app.calibration.metrics.subsets import Prediction
from app.datasets.images import Pair, read_image, read_labels_for
from app.errors import ArgumentError
from app.inference.kernels import Confidence, Mask
from app.inference.model_card import ModelFolder
from app.inference.postprocess import log_probability_strips
from app.inference.predictor import Predictor, Tta
from app.inference.preprocess import Band, Geometry
from app.serving.pipeline import CalibratedStrip, calibrate_strip, emit_rated, with_strip_image
from app.storage.manifest import Manifest, StoredCalibrator

SEED = 0  # of the bootstrap
Reason = Literal["calibration", "confident errors"]


@dataclass(frozen=True)
class Options:
    """How a set is to be evaluated; `worst` images are named for each reason."""

    ignore_index: int
    max_pixels: int
    tta: Tta = "none"
    worst: int = 4


@dataclass(frozen=True)
class Comparison:
    """What was measured, without a calibrator and with one; `after` is None where there is none.

    `manifest` is the calibrator's own record.

    `difference` is the change in image-wise ECE that the calibrator makes, paired by image;
    `labels_changed` a share of labelled pixels.
    """

    folder: ModelFolder
    manifest: Manifest | None
    options: Options
    pairs: Sequence[Pair]
    before: Assessment
    after: Assessment | None
    difference: Interval | None
    labels_changed: float

    @property
    def served(self) -> Assessment:
        """What a caller of the service gets."""
        return self.after or self.before

    def worst(self) -> dict[int, list[Reason]]:
        """Indices of the images to look at, each with why, the worst of each kind first."""
        images = self.served.images
        wanted: tuple[tuple[Reason, list[float]], ...] = (
            ("calibration", [image.ece for image in images]),
            ("confident errors", [image.confident_errors for image in images]),
        )
        found: dict[int, list[Reason]] = {}
        for reason, figures in wanted:
            order = np.argsort(-np.nan_to_num(figures), kind="stable")[: self.options.worst]
            for index in order.tolist():
                if figures[index] > 0:
                    found.setdefault(index, []).append(reason)
        return found


class Answered(NamedTuple):
    """One image's mask and confidence [H,W] as a caller gets them.

    `sums` gives NLL and Brier over the labelled pixels of int64 [H,W], NaN where only mask and
    confidence are known.
    """

    mask: Mask
    confidence: Confidence
    sums: Callable[[Tensor], tuple[float, float]]


class Subject(Protocol):
    """What is evaluated: a model, with the record of its calibrator if there is one."""

    @property
    def folder(self) -> ModelFolder:
        """The model's card and hash."""

    @property
    def manifest(self) -> Manifest | None:
        """The calibrator's record."""

    def answers(self, pair: Pair) -> tuple[Answered, Answered | None]:
        """Answer an image without the calibrator, and with it."""


@dataclass(frozen=True)
class LocalModel:
    """A model in this process."""

    predictor: Predictor
    calibrator: StoredCalibrator | None
    max_pixels: int
    tta: Tta = "none"

    @property
    def folder(self) -> ModelFolder:
        """The model's card and hash."""
        return self.predictor.folder

    @property
    def manifest(self) -> Manifest | None:
        """The calibrator's record."""
        return None if self.calibrator is None else self.calibrator.manifest

    @torch.inference_mode()
    def answers(self, pair: Pair) -> tuple[Answered, Answered | None]:
        """Answer an image without the calibrator, and with it."""
        looked = look(self.predictor, self.calibrator, pair, self.max_pixels, self.tta)
        own = CalibratedStrip(looked.logits, looked.logits)
        plain = _answered(looked._replace(calibrated=looked.logits, strip_result=own))
        if self.calibrator is None:
            return plain, None
        return plain, _answered(looked)


class Looked(NamedTuple):
    """One image uint8 RGB [H,W,3] with its logits and what the calibrator made of them: [K,h,w].

    `strip_result` is what the service emits its mask and confidence from.
    """

    image: NDArray[np.uint8]
    geometry: Geometry
    logits: Tensor
    calibrated: Tensor
    strip_result: CalibratedStrip


def _answered(looked: Looked) -> Answered:
    mask, confidence = emit_rated(looked.strip_result, looked.geometry)
    return Answered(mask, confidence, partial(proper_sums, looked.calibrated, looked.geometry))


def evaluate(
    subject: Subject, pairs: Sequence[Pair], options: Options, advance: Callable[[], object]
) -> Comparison:
    """Measure a model over labelled images, with and without the calibrator.

    Raises InputError for an image or label map that can't be used, and where nothing is labelled.
    """
    folder = subject.folder
    before = Assessment(folder.num_classes)
    after = None if subject.manifest is None else Assessment(folder.num_classes)
    changed = 0
    for pair in pairs:
        plain, ours = subject.answers(pair)
        size = plain.mask.shape[0], plain.mask.shape[1]
        labels = torch.from_numpy(
            read_labels_for(
                pair, size, folder.num_classes, options.ignore_index, options.max_pixels
            )
        ).long()
        _measure(before, plain, labels)
        if after is not None and ours is not None:
            _measure(after, ours, labels)
            moved = torch.from_numpy(ours.mask != plain.mask)
            changed += int((moved & (labels != IGNORE)).sum())
        advance()
    pixels = before.overall.pixels
    if not pixels:
        raise ArgumentError(
            f"expected labelled pixels, got none in {len(pairs)} label maps: all are void "
            f"({options.ignore_index})"
        )
    return Comparison(
        folder=folder,
        manifest=subject.manifest,
        options=options,
        pairs=pairs,
        before=before,
        after=after,
        difference=None if after is None else _difference(after, before),
        labels_changed=changed / pixels,
    )


@torch.inference_mode()
def look(
    predictor: Predictor,
    calibrator: StoredCalibrator | None,
    pair: Pair,
    max_pixels: int,
    tta: Tta = "none",
) -> Looked:
    """Run the model and the calibrator over one image, as the service does."""
    image = read_image(pair.image, max_pixels)
    prepared = predictor.prepare_windows(image)
    logits, geometry = predictor.grid(prepared, tta), prepared.geometry
    if calibrator is None:
        plain = logits[0]  # one and the same tensor spares emission a second upsampling
        return Looked(image, geometry, plain, plain, CalibratedStrip(plain, plain))
    with_image = with_strip_image(
        calibrator.calibrator, prepared, logits[0], Band.whole(logits.shape[2])
    )
    calibrated, strip_result = with_image(logits)[0], calibrate_strip(logits[0], with_image)
    return Looked(image, geometry, logits[0], calibrated, strip_result)


def _measure(assessment: Assessment, answered: Answered, labels: Tensor) -> None:
    """Take one image's labels and confidence as emitted into account."""
    predicted = torch.from_numpy(answered.mask.astype(np.int64))
    prediction = Prediction(torch.from_numpy(answered.confidence), predicted)
    assessment.add(prediction, labels, *answered.sums(labels))


@torch.inference_mode()
def proper_sums(grid: Tensor, geometry: Geometry, labels: Tensor) -> tuple[float, float]:
    """Sum NLL and Brier over the labelled pixels of an image: logits [K,h,w], labels [H,W]."""
    nll = brier = 0.0
    for rows, log_probabilities in log_probability_strips(grid, geometry):
        kept = labels[rows] != IGNORE
        columns = log_probabilities[:, kept]  # [K,m]
        chosen = columns.gather(0, labels[rows][kept][None])[0]
        nll -= chosen.clamp(min=LOG_FLOOR).double().sum().item()
        squares = columns.exp().square_().sum(0) - 2 * chosen.exp() + 1
        brier += squares.double().sum().item()
    return nll, brier


def _difference(after: Assessment, before: Assessment) -> Interval:
    return bootstrap_difference(
        [image.ece for image in after.images], [image.ece for image in before.images], SEED
    )
