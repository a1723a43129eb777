"""Labelled images as the service would answer them.

A fit works on the logits' grid, but what a client acts on is emitted at the image's size, where
interpolation has blurred the borders. What is promised to clients is therefore measured on what
is emitted, wherever a validation set has labels at that size.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from app.calibration.base import Calibrator, finite_logits
from app.calibration.dataset import Subset, ValidationSet


class Emitted(NamedTuple):
    """Predicted classes int64, their confidence float32 in 0..1, and labels int64, of one shape."""

    predicted: Tensor
    confidence: Tensor
    labels: Tensor


@runtime_checkable
class Emitting(Protocol):
    """A validation set that can answer its images at their labels' own size."""

    def emitted(self, index: int, calibrator: Calibrator) -> Emitted:
        """Answer one image as the service would."""


def emitted(data: ValidationSet, index: int, calibrator: Calibrator) -> Emitted:
    """Answer one image at its labels' size where the set can, else on the logits' grid."""
    if isinstance(data, Subset):
        return emitted(data.whole, data.indices[index], calibrator)
    if isinstance(data, Emitting):
        return data.emitted(index, calibrator)
    return emitted_on_grid(data, index, calibrator)


@torch.inference_mode()
def emitted_on_grid(data: ValidationSet, index: int, calibrator: Calibrator) -> Emitted:
    """Answer one image cell by cell."""
    logits, labels, image = data[index]
    known = finite_logits(logits[None])
    logs = calibrator.with_image(image)(known)
    predicted = (known if calibrator.invariances.argmax else logs).argmax(dim=1)
    confidence = logs.gather(1, predicted[:, None])[0, 0].exp().clamp(max=1)
    return Emitted(predicted[0], confidence, labels)


def emits(data: ValidationSet) -> bool:
    """Tell whether a set answers at its labels' size."""
    return emits(data.whole) if isinstance(data, Subset) else isinstance(data, Emitting)
