"""A rehearsal: all that is compiled is called once, so that no request waits for a compiler.

The service does it at its start. `python -m app.rehearsal` keeps the machine code where an image
is built, for services that start from it.
"""

import torch

from app.answers import emit_rated, rate
from app.calibration.base import Calibrator
from app.calibration.contextual import Contextual
from app.calibration.drift import histogram
from app.imaging.encode import confidence_png
from app.inference.preprocess import Geometry
from app.inference.tally import tally

SIDE = 8
MASKS = (2, 256)  # classes, for a mask of each depth


def rehearse(num_classes: int, calibrator: Calibrator | None = None) -> None:
    """Answer a small grey picture by a calibrator, and by our own, which may become active."""
    own = Contextual(num_classes)
    own.opinion.trust.fill_(1)
    grey = torch.full((3, SIDE, SIDE), 128, dtype=torch.uint8)
    for each in [own] if calibrator is None else [own, calibrator]:
        rated = rate(torch.zeros(num_classes, SIDE, SIDE), each.seeing(grey))
        size = SIDE, SIDE
        mask, confidence = emit_rated(rated, Geometry(size, size, size))
    tally(mask, confidence)
    histogram(confidence, mask, num_classes)
    for depth in (8, 16):
        confidence_png(confidence, depth)


if __name__ == "__main__":
    for count in MASKS:
        rehearse(count)
