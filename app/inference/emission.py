"""From logits on the backbone's grid to a mask and its confidence at the picture's size.

Both are produced in strips of rows, so that K full-size planes never exist.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.inference.preprocess import Band, Geometry

STRIP_BYTES = 4 << 20  # of upsampled logits at a time; stays within a core's cache share

Mask = NDArray[np.uint8] | NDArray[np.uint16]
Confidence = NDArray[np.float32]


def emit(logits: Tensor, calibrated: Tensor, geometry: Geometry) -> tuple[Mask, Confidence]:
    """Upsample bilinearly, label, and read the label's calibrated probability.

    `logits` and `calibrated` are float32 [K,h,w]; labels come from the former (lowest class on
    ties), probabilities from the softmax of the latter. Pass the same tensor twice where a
    calibrator decides for itself, or where there is none. Returns uint8 (uint16 from 256 classes
    on) [H,W] and float32 [H,W] in 0..1.
    """
    mask, confidence = blank(geometry, logits.shape[0])
    whole = Band(0, logits.shape[1], range(logits.shape[1]))
    emit_band(logits, calibrated, geometry, whole, mask, confidence)
    return mask, confidence


def blank(geometry: Geometry, classes: int) -> tuple[Mask, Confidence]:
    """Make room for a picture's mask and confidence, as `emit` returns them."""
    mask = np.empty(geometry.image, np.uint8 if classes < 256 else np.uint16)
    return mask, np.empty(geometry.image, np.float32)


@torch.inference_mode()
def emit_band(
    logits: Tensor,
    calibrated: Tensor,
    geometry: Geometry,
    band: Band,
    mask: Mask,
    confidence: Confidence,
) -> None:
    """Write the rows of `mask` and `confidence` [H,W] whose upper tap is one of the band's cells.

    As `emit` otherwise; the grids [K,n,w] begin at the band's `top`. Bands that divide the grid
    divide the picture.
    """
    height, width = geometry.image
    classes = logits.shape[0]
    top, bottom, down = _taps(height, geometry.resized[0], geometry.padded[0], band.height)
    left, right, across = _taps(width, geometry.resized[1], geometry.padded[1], logits.shape[2])
    ends = torch.tensor([band.cells.start, band.cells.stop])
    first, end = torch.searchsorted(top, ends).tolist()
    top, bottom = top - band.top, bottom - band.top
    rows = max(1, STRIP_BYTES // (4 * classes * width))

    def upsample(grid: Tensor, strip: slice) -> Tensor:
        tall = torch.lerp(grid[:, top[strip]], grid[:, bottom[strip]], down[strip, None])
        return torch.lerp(tall[:, :, left], tall[:, :, right], across)

    for start in range(first, end, rows):
        strip = slice(start, min(start + rows, end))
        fine = upsample(logits, strip)
        labels = fine.argmax(dim=0)
        if calibrated is not logits:
            fine = upsample(calibrated, strip)
        chosen = fine.gather(0, labels[None])[0]
        confidence[strip] = (chosen - fine.logsumexp(dim=0)).exp().clamp_(0, 1).numpy()
        mask[strip] = labels.numpy()


def _taps(count: int, resized: int, padded: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear taps of one axis: for each output pixel two cells and the second one's weight.

    Pixel centres map to the resized picture, that to the padded one, that to the grid.
    """
    step = resized / count * cells / padded
    position = ((torch.arange(count, dtype=torch.float64) + 0.5) * step - 0.5).clamp(0, cells - 1)
    first = position.floor().long()
    weight = (position - first).float()
    return first, (first + 1).clamp(max=cells - 1), weight
