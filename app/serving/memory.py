"""Memory of a segmentation: measured for each model when it is loaded, checked for each image."""

import gc
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.errors import TooLargeError
from app.inference.predictor import SCALES, Predictor, Tta
from app.inference.preprocess import Size, plan
from app.serving.pipeline import predict_image

log = logging.getLogger(__name__)

PROBE_SIDE = 1024  # pixels; large beside what a session allocates once
PEAK = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")
PROBE_PIXELS = PROBE_SIDE * PROBE_SIDE
INPUT_BYTES = 12  # of a pixel, three float32
MARGIN = 1.5  # the memory of larger images, by pixel, was up to 1.3 times that of the probe
MULTISCALE = max(SCALES) ** 2  # pixels of the largest view, relative to the image's


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 where the system has no `/proc`."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def bytes_per_pixel(predictor: Predictor) -> float:
    """Measure the memory of one segmentation by each pixel of the network's input.

    Of a model in mode slide it is 0, as its windows bound it, and so it is where the memory is a
    GPU's, or could not be measured.
    """
    card = predictor.folder.card.input
    if card.mode == "slide" or card.size != "native" or predictor.backbone.device == "cuda":
        return 0.0
    image = np.full((PROBE_SIDE, PROBE_SIDE, 3), 128, np.uint8)
    gc.collect()
    before = resident_bytes()
    try:
        RESET_PEAK.write_text("5")
        predict_image(image, predictor, None)
        peak = next(line for line in PEAK.read_text().splitlines() if line.startswith("VmHWM"))
    except Exception as error:  # a network that does not take this size raises its runtime's own
        log.warning("the memory of %s could not be measured: %s", predictor.folder.card.name, error)
        return 0.0
    measured = (int(peak.split()[1]) * 1024 - before) / PROBE_PIXELS
    return MARGIN * max(measured, INPUT_BYTES)  # a heap with free memory does not grow


@dataclass(frozen=True)
class MemoryBudget:
    """The memory that one segmentation may take, and what each model takes by pixel, in bytes."""

    request_bytes: float
    per_pixel: Mapping[str, float]

    @classmethod
    def measured(
        cls, predictors: Mapping[str, Predictor], max_bytes: int, requests: int, attempts: int = 1
    ) -> "MemoryBudget":
        """Measure all models; `requests` at once share `max_bytes`, without what is in use.

        The smallest of the measured values of several attempts counts.
        """
        per_pixel = {
            name: min(bytes_per_pixel(each) for _ in range(attempts))
            for name, each in predictors.items()
        }
        return cls(max(max_bytes - resident_bytes(), 0) / requests, per_pixel)

    def check(self, predictor: Predictor, size: Size, tta: Tta) -> None:
        """Raise TooLargeError for an image (height, width) that would take more.

        Images of up to 1 megapixel are always accepted.
        """
        card = predictor.folder.card
        height, width = plan(size, card.input).padded
        pixels = height * width * (MULTISCALE if tta == "multiscale" else 1)
        needed = pixels * self.per_pixel.get(card.name, 0.0)
        if pixels > PROBE_PIXELS and needed > self.request_bytes:
            raise TooLargeError(
                f"expected an image that {card.name} segments within "
                f"{self.request_bytes / 1e6:.0f} MB of memory, got {width}x{height}, which "
                f'takes some {needed / 1e6:.0f} MB; mode = "slide" in its card bounds them'
            )
