"""What an answer's labels and confidence are read from, when serving and when measuring."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import Calibrator, Share, alone
from app.calibration.base import prepared as finite
from app.calibration.emitted import Emitted
from app.inference.emission import emit
from app.inference.kernels import Confidence, Mask
from app.inference.predictor import Prepared
from app.inference.preprocess import Band, Geometry


@dataclass(frozen=True)
class Rated:
    """What labels come from, and what times `scale` gives their confidence; logits [K,h,w].

    `shift` [h,w] is added to the log-odds of that confidence.
    """

    labelling: Tensor
    rating: Tensor
    scale: float = 1.0
    shift: Tensor | None = None


def shown(
    calibrator: Calibrator | None, prepared: Prepared, logits: Tensor, band: Band
) -> Calibrator | None:
    """Show a calibrator the part of the picture that logits [K,n,w] are about, if it looks."""
    if calibrator is None or not calibrator.sees_picture:
        return calibrator
    rows = range(band.top, band.top + logits.shape[1])
    return calibrator.seeing(prepared.glance((band.height, logits.shape[2]), rows))


@torch.inference_mode()
def rate(logits: Tensor, calibrator: Calibrator | None, share: Share = alone) -> Rated:
    """Calibrate logits [K,h,w]; one tensor serves for both where the answer is the same.

    `share` lends threads to calibrators that can use them.
    """
    if calibrator is None:
        return Rated(logits, logits)
    scale = calibrator.scale()
    if scale is not None:
        return Rated(logits, logits, scale, calibrator.shift(logits, share))
    calibrated = calibrator(logits[None])[0]
    return Rated(logits if calibrator.invariances.argmax else calibrated, calibrated)


def emit_rated(rated: Rated, geometry: Geometry) -> tuple[Mask, Confidence]:
    """Emit the whole picture's mask and confidence, see `emission.emit`."""
    return emit(rated.labelling, rated.rating, geometry, scale=rated.scale, shift=rated.shift)


@torch.inference_mode()
def answer_labelled(
    logits: Tensor, labels: NDArray[np.integer], geometry: Geometry, calibrator: Calibrator
) -> Emitted:
    """Calibrate float logits [K,h,w] and emit them at the size of their labels [H,W]."""
    rated = rate(finite(logits[None])[0], calibrator)
    mask, confidence = emit_rated(rated, geometry)
    return Emitted(
        torch.from_numpy(mask.astype(np.int64)),
        torch.from_numpy(confidence),
        torch.from_numpy(labels.astype(np.int64)),
    )
