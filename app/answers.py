"""Labelled images answered as `service` answers them, at the pictures' own size."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import Calibrator, prepared
from app.calibration.emitted import Emitted
from app.inference.emission import emit
from app.inference.preprocess import Geometry


@torch.inference_mode()
def answer_labelled(
    logits: Tensor, labels: NDArray[np.integer], geometry: Geometry, calibrator: Calibrator
) -> Emitted:
    """Calibrate float logits [K,h,w] and emit them at the size of their labels [H,W]."""
    known = prepared(logits[None])
    calibrated = calibrator(known)[0]
    decides = not calibrator.invariances.argmax
    mask, confidence = emit(calibrated if decides else known[0], calibrated, geometry)
    return Emitted(
        torch.from_numpy(mask.astype(np.int64)),
        torch.from_numpy(confidence),
        torch.from_numpy(labels.astype(np.int64)),
    )
