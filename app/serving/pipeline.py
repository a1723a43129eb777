"""What an answer's labels and confidence are read from, when serving and when measuring."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import Calibrator, LogOddsShift, MapRows, finite_logits, map_rows_serially
from app.calibration.predictions import Emitted
from app.inference.kernels import Confidence, Mask
from app.inference.postprocess import SERIAL, blank, postprocess_strip, shift_confidence
from app.inference.predictor import PreparedImage
from app.inference.preprocess import Band, Geometry
from app.inference.threads import RowWorkers


@dataclass(frozen=True)
class CalibratedStrip:
    """What labels come from, and what times `scale` gives their confidence; logits [K,h,w].

    `log_odds_shift` are what is to be done to the log-odds of that confidence, once all is known.
    """

    label_logits: Tensor
    confidence_logits: Tensor
    scale: float = 1.0
    log_odds_shift: LogOddsShift | None = None


def with_strip_image(
    calibrator: Calibrator, image: PreparedImage, logits: Tensor, band: Band
) -> Calibrator:
    """Show a calibrator the part of the image that logits [K,n,w] are about, if it looks."""
    if not calibrator.needs_image:
        return calibrator
    rows = range(band.top, band.top + logits.shape[1])
    return calibrator.with_image(image.thumbnail((band.height, logits.shape[2]), rows))


@torch.inference_mode()
def calibrate_strip(
    logits: Tensor,
    calibrator: Calibrator | None,
    map_rows: MapRows = map_rows_serially,
    band: Band | None = None,
) -> CalibratedStrip:
    """Calibrate rows of logits [K,n,w]; one tensor serves for both where the answer is the same.

    `map_rows` lends threads to calibrators that can use them. Without a `band` the rows are all.
    """
    if calibrator is None:
        return CalibratedStrip(logits, logits)
    scale = calibrator.scale()
    if scale is not None:
        band = band or Band.whole(logits.shape[1])
        log_odds_shift = calibrator.log_odds_shift(logits, map_rows, band.top, band.height)
        return CalibratedStrip(logits, logits, scale, log_odds_shift)
    calibrated = calibrator(logits[None])[0]
    return CalibratedStrip(logits if calibrator.invariances.argmax else calibrated, calibrated)


class Postprocessor:
    """An image's mask and confidence, emitted strip by strip from the logits of its bands."""

    def __init__(self, geometry: Geometry, classes: int, threads: RowWorkers) -> None:
        self._geometry, self._threads = geometry, threads
        self._shifts: list[LogOddsShift] = []
        self._grid = 0, 0
        self.mask, self.confidence = blank(geometry, classes)

    def postprocess(self, strip_result: CalibratedStrip, band: Band) -> None:
        """Write a band's rows, and keep what is to be changed of their confidence."""
        postprocess_strip(
            strip_result.label_logits, strip_result.confidence_logits, self._geometry, band,
            self.mask, self.confidence,
            scale=strip_result.scale, threads=self._threads,
        )  # fmt: skip
        if strip_result.log_odds_shift is not None:
            self._shifts.append(strip_result.log_odds_shift.within(band.top, band.cells))
            self._grid = band.height, strip_result.label_logits.shape[2]

    def combine_shifts(self) -> None:
        """Change the confidence as the calibrator says now that it has seen all of the image."""
        if self._shifts:
            log_odds_shift = LogOddsShift.joined(self._shifts)
            shift_confidence(
                self.confidence, log_odds_shift.combined(), self._grid, log_odds_shift.step,
                self._geometry,
                self._threads,
            )  # fmt: skip


def emit_rated(strip_result: CalibratedStrip, geometry: Geometry) -> tuple[Mask, Confidence]:
    """Emit a whole image's mask and confidence at once."""
    postprocessor = Postprocessor(geometry, strip_result.label_logits.shape[0], SERIAL)
    postprocessor.postprocess(strip_result, Band.whole(strip_result.label_logits.shape[1]))
    postprocessor.combine_shifts()
    return postprocessor.mask, postprocessor.confidence


@torch.inference_mode()
def answer_labelled(
    logits: Tensor, labels: NDArray[np.integer], geometry: Geometry, calibrator: Calibrator
) -> Emitted:
    """Calibrate float logits [K,h,w] and emit them at the size of their labels [H,W]."""
    strip_result = calibrate_strip(finite_logits(logits[None])[0], calibrator)
    mask, confidence = emit_rated(strip_result, geometry)
    return Emitted(
        torch.from_numpy(mask.astype(np.int64)),
        torch.from_numpy(confidence),
        torch.from_numpy(labels.astype(np.int64)),
    )
