"""Compile all kernels before the first request, by segmenting one small image.

The service does so when it starts. The Dockerfile calls `main` while the image is built, so that
the image contains the machine code.
"""

import numpy as np
import torch

from app.calibration.base import Calibrator
from app.calibration.drift import histogram
from app.calibration.registry import discover
from app.imaging.brush_rle import decode_brush, encode_brush
from app.imaging.encode import confidence_png
from app.imaging.polygons import trace_polygons
from app.inference.postprocess import class_statistics
from app.inference.preprocess import Geometry, thumbnail
from app.serving.pipeline import predict_logits

SIDE = 8
CLASS_COUNTS = (2, 256)  # one for uint8 masks, one for uint16


def warm_up(num_classes: int, calibrator: Calibrator | None = None) -> None:
    """Segment a grey image with a calibrator, and with each method that has kernels.

    Another version may become active at any time, so all methods are compiled. Without a
    calibrator the image is segmented uncalibrated.
    """
    size = SIDE, SIDE
    same = Geometry(size, size, size)
    grey = torch.from_numpy(thumbnail(np.full((*size, 3), 128, np.uint8), same, size, range(SIDE)))
    compiled = [method.for_warm_up(num_classes) for method in discover().values()]
    calibrators = [*(other for other in compiled if other is not None), calibrator]
    prediction = predict_logits(torch.zeros(num_classes, *size), same, calibrators, grey)[-1]
    class_statistics(prediction)
    confidence = prediction.confidence
    histogram(confidence, prediction.mask, num_classes)
    trace_polygons(prediction.mask)
    decode_brush(encode_brush(prediction.mask == 0), *size)
    for depth in (8, 16):
        confidence_png(confidence, depth)


def main() -> None:
    """Compile the kernels for masks of both depths."""
    for count in CLASS_COUNTS:
        warm_up(count)
