"""The prediction of an image: its label map with a confidence for every pixel.

Fits work on the logits' grid, but clients act on predictions at image size, where interpolation
has blurred the boundaries. Guarantees to clients are therefore measured at image size wherever a
validation set has labels of that size.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import Calibrator, finite_logits
from app.calibration.dataset import Subset, ValidationSet

Mask: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
Confidence: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """The predicted class and its confidence for every pixel of one image.

    `mask` holds class ids, uint8 (uint16 from 256 classes on) [H,W], abstained pixels at the
    highest value of the type; `confidence` float32 [H,W] in 0..1. Pixels of a table have one axis.
    """

    mask: Mask
    confidence: Confidence
    in_distribution: float | None = None  # score in 0..1, of calibrators that compute one

    @classmethod
    def from_tensors(cls, classes: Tensor, confidence: Tensor) -> Self:
        """Build a prediction from class ids int64 and confidence float, of one shape."""
        ids = classes.numpy()
        fits = ids.size == 0 or ids.max() < 256
        mask: Mask = ids.astype(np.uint8) if fits else ids.astype(np.uint16)
        return cls(mask, confidence.float().numpy())

    @property
    def classes(self) -> Tensor:
        """Class ids as int64, of the mask's shape."""
        return torch.from_numpy(self.mask.astype(np.int64))

    @cached_property
    def probabilities(self) -> Tensor:
        """Confidence as float32, of the mask's shape."""
        return torch.from_numpy(self.confidence)


@runtime_checkable
class PredictsAtImageSize(Protocol):
    """A validation set that predicts its images at the size of their label maps."""

    @property
    def at_image_size(self) -> bool:
        """False where the label maps are as small as the logits' grid."""

    def predict(self, index: int, calibrator: Calibrator) -> tuple[Prediction, Tensor]:
        """Predict one image as the service does; labels int64 have the prediction's shape."""


def predict(data: ValidationSet, index: int, calibrator: Calibrator) -> tuple[Prediction, Tensor]:
    """Predict one image at the size of its labels if the set can, else on the logits' grid.

    Returns the prediction and labels int64 of its shape, IGNORE where unlabelled.
    """
    if isinstance(data, Subset):
        return predict(data.whole, data.indices[index], calibrator)
    if isinstance(data, PredictsAtImageSize):
        return data.predict(index, calibrator)
    return predict_on_grid(data, index, calibrator)


@torch.inference_mode()
def predict_on_grid(
    data: ValidationSet, index: int, calibrator: Calibrator
) -> tuple[Prediction, Tensor]:
    """Predict one image cell by cell of the logits' grid."""
    logits, labels, cells = data[index]
    finite = finite_logits(logits[None])
    log_probabilities = calibrator.with_image(cells)(finite)
    decisive = finite if calibrator.invariances.argmax else log_probabilities
    classes = decisive.argmax(dim=1)
    confidence = log_probabilities.gather(1, classes[:, None])[0, 0].exp().clamp(max=1)
    return Prediction.from_tensors(classes[0], confidence), labels


def predicts_at_image_size(data: ValidationSet) -> bool:
    """Return whether a set predicts at the size of its label maps."""
    if isinstance(data, Subset):
        return predicts_at_image_size(data.whole)
    return isinstance(data, PredictsAtImageSize) and data.at_image_size
