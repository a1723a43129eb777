"""What an answer's labels and confidence are read from, when serving and when measuring."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import Calibrator, Changes, Share, alone, prepared
from app.calibration.predictions import Emitted
from app.inference.kernels import Confidence, Mask
from app.inference.postprocess import ALONE, blank, emit_band, shift_confidence
from app.inference.predictor import Prepared
from app.inference.preprocess import Band, Geometry
from app.inference.threads import RowThreads


@dataclass(frozen=True)
class Rated:
    """What labels come from, and what times `scale` gives their confidence; logits [K,h,w].

    `changes` are what is to be done to the log-odds of that confidence, once all is known.
    """

    labelling: Tensor
    rating: Tensor
    scale: float = 1.0
    changes: Changes | None = None


def shown(calibrator: Calibrator, picture: Prepared, logits: Tensor, band: Band) -> Calibrator:
    """Show a calibrator the part of the picture that logits [K,n,w] are about, if it looks."""
    if not calibrator.sees_picture:
        return calibrator
    rows = range(band.top, band.top + logits.shape[1])
    return calibrator.seeing(picture.glance((band.height, logits.shape[2]), rows))


@torch.inference_mode()
def rate(
    logits: Tensor,
    calibrator: Calibrator | None,
    share: Share = alone,
    band: Band | None = None,
) -> Rated:
    """Calibrate rows of logits [K,n,w]; one tensor serves for both where the answer is the same.

    `share` lends threads to calibrators that can use them. Without a `band` the rows are all.
    """
    if calibrator is None:
        return Rated(logits, logits)
    scale = calibrator.scale()
    if scale is not None:
        band = band or Band.whole(logits.shape[1])
        changes = calibrator.changes(logits, share, band.top, band.height)
        return Rated(logits, logits, scale, changes)
    calibrated = calibrator(logits[None])[0]
    return Rated(logits if calibrator.invariances.argmax else calibrated, calibrated)


class Emission:
    """A picture's mask and confidence, emitted strip by strip from the logits of its bands."""

    def __init__(self, geometry: Geometry, classes: int, threads: RowThreads) -> None:
        self._geometry, self._threads = geometry, threads
        self._changes: list[Changes] = []
        self._grid = 0, 0
        self.mask, self.confidence = blank(geometry, classes)

    def emit(self, rated: Rated, band: Band) -> None:
        """Write a band's rows, and keep what is to be changed of their confidence."""
        emit_band(
            rated.labelling, rated.rating, self._geometry, band, self.mask, self.confidence,
            scale=rated.scale, threads=self._threads,
        )  # fmt: skip
        if rated.changes is not None:
            self._changes.append(rated.changes.within(band.top, band.cells))
            self._grid = band.height, rated.labelling.shape[2]

    def settle(self) -> None:
        """Change the confidence as the calibrator says now that it has seen all of the picture."""
        if self._changes:
            changes = Changes.joined(self._changes)
            shift_confidence(
                self.confidence, changes.settled(), self._grid, changes.step, self._geometry,
                self._threads,
            )  # fmt: skip


def emit_rated(rated: Rated, geometry: Geometry) -> tuple[Mask, Confidence]:
    """Emit a whole picture's mask and confidence at once."""
    emission = Emission(geometry, rated.labelling.shape[0], ALONE)
    emission.emit(rated, Band.whole(rated.labelling.shape[1]))
    emission.settle()
    return emission.mask, emission.confidence


@torch.inference_mode()
def answer_labelled(
    logits: Tensor, labels: NDArray[np.integer], geometry: Geometry, calibrator: Calibrator
) -> Emitted:
    """Calibrate float logits [K,h,w] and emit them at the size of their labels [H,W]."""
    rated = rate(prepared(logits[None])[0], calibrator)
    mask, confidence = emit_rated(rated, geometry)
    return Emitted(
        torch.from_numpy(mask.astype(np.int64)),
        torch.from_numpy(confidence),
        torch.from_numpy(labels.astype(np.int64)),
    )
