"""A rehearsal: all that is compiled is called once, so that no request waits for a compiler.

The service does it at its start. `python -m app.serving.warmup` keeps the machine code where an
image
is built, for services that start from it.
"""

import numpy as np
import torch

from app.calibration.base import Calibrator
from app.calibration.drift import histogram
from app.calibration.methods.contextual.calibrator import Contextual
from app.imaging.encode import confidence_png
from app.inference.postprocess import class_statistics
from app.inference.preprocess import Geometry, thumbnail
from app.serving.pipeline import predict_logits

SIDE = 8
MASKS = (2, 256)  # classes, for a mask of each depth


def warm_up(num_classes: int, calibrator: Calibrator | None = None) -> None:
    """Answer a small grey image by a calibrator, and by our own, which may become active."""
    own = Contextual(num_classes)
    own.detector.detector_weight.fill_(1)
    size = SIDE, SIDE
    same = Geometry(size, size, size)
    grey = torch.from_numpy(thumbnail(np.full((*size, 3), 128, np.uint8), same, size, range(SIDE)))
    for each in [own] if calibrator is None else [own, calibrator]:
        (prediction,) = predict_logits(torch.zeros(num_classes, SIDE, SIDE), same, [each], grey)
    class_statistics(prediction)
    confidence = prediction.confidence
    histogram(confidence, prediction.mask, num_classes)
    for depth in (8, 16):
        confidence_png(confidence, depth)


if __name__ == "__main__":
    for count in MASKS:
        warm_up(count)
