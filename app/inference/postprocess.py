"""Postprocess logits: upsample to image size, label, and read the label's confidence.

`postprocess_strip` computes both in one sweep over the classes, without allocating K planes of
image size. `log_probability_strips` upsamples the whole class distribution, in strips of rows, for
NLL and Brier score.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.predictions import Confidence, Mask, Prediction
from app.inference.kernels import Floats, Taps, postprocess_kernel
from app.inference.preprocess import Band, Geometry, Size
from app.inference.shift_kernel import shift_rows
from app.inference.threads import RowWorkers
from app.numerics import LOG2_E, compiled

MAX_PHASES = 32  # columns for each cell that the kernel groups by weight
STRIP_BYTES = 16 << 20  # of upsampled logits at a time
SERIAL = RowWorkers(1)


def postprocess(
    logits: Tensor,
    calibrated: Tensor,
    geometry: Geometry,
    *,
    scale: float = 1.0,
    workers: RowWorkers = SERIAL,
) -> Prediction:
    """Upsample bilinearly, label, and read the label's calibrated probability.

    `logits` and `calibrated` are finite float32 [K,h,w]. The argmax of `logits` is the label (the
    lowest class on ties), softmax(`scale` * `calibrated`) at it is the confidence. Pass the same
    tensor twice for a calibrator that changes labels, one that only scales logits, or none. The
    absolute error of confidence is at most 2e-6 plus 3e-7 of the largest difference of logits.
    """
    prediction = allocate_prediction(geometry, logits.shape[0])
    band = Band.whole(logits.shape[1])
    postprocess_strip(logits, calibrated, geometry, band, prediction, scale=scale, workers=workers)
    return prediction


def allocate_prediction(geometry: Geometry, num_classes: int) -> Prediction:
    """Allocate a prediction of image size without initialising it."""
    mask = np.empty(geometry.image, np.uint8 if num_classes < 256 else np.uint16)
    return Prediction(mask, np.empty(geometry.image, np.float32))


def postprocess_strip(
    logits: Tensor,
    calibrated: Tensor,
    geometry: Geometry,
    band: Band,
    prediction: Prediction,
    *,
    scale: float = 1.0,
    workers: RowWorkers = SERIAL,
) -> None:
    """Write the rows of a prediction [H,W] whose upper tap is one of the band's cells.

    `logits` and `calibrated` [K,n,w] begin at the band's `top`, and are otherwise as for
    `postprocess`. Bands that partition the grid partition the image.
    """
    height, width = geometry.image
    top, bottom, down = taps(height, geometry.resized[0], geometry.padded[0], band.height)
    columns = taps(width, geometry.resized[1], geometry.padded[1], logits.shape[2])
    first, end = np.searchsorted(top, [band.cells.start, band.cells.stop]).tolist()
    rows = top - band.top, bottom - band.top, down
    separate = calibrated is not logits
    label_logits = logits.contiguous().numpy()
    confidence_logits = calibrated.contiguous().numpy() if separate else label_logits
    gain = np.float32(LOG2_E * scale)
    phases = whole_phases(width, geometry, logits.shape[2])

    def work(start: int, stop: int) -> None:
        postprocess_kernel(
            label_logits, confidence_logits, separate, gain, rows, columns, phases,
            prediction.mask, prediction.confidence, start, stop,
        )  # fmt: skip

    workers.map_rows(work, range(first, end), logits.shape[0] * width)


def shift_confidence(
    confidence: Confidence,
    shift: Floats,
    floor: float,
    grid: Size,
    stride: int,
    geometry: Geometry,
    workers: RowWorkers = SERIAL,
) -> None:
    """Add `shift`, interpolated, to the log-odds of an image's confidence [H,W], in place.

    No confidence falls below `floor`, the 1/K below which no top probability can be.

    `shift` is float32 [n,m], at every `stride`-th row and column of a grid (h, w).
    """
    sizes = zip(geometry.image, geometry.resized, geometry.padded, grid, strict=True)
    rows, columns = (taps(*size, stride) for size in sizes)
    height, width = geometry.image
    least = np.float32(floor)
    workers.map_rows(
        lambda start, stop: shift_rows(confidence, shift, least, rows, columns, start, stop),
        range(height),
        8 * width,
    )


def log_probability_strips(grid: Tensor, geometry: Geometry) -> Iterator[tuple[slice, Tensor]]:
    """Upsample logits float32 [K,h,w] as `postprocess` does, and take their log-softmax.

    Yields slices of the image's rows, from the top, with log-probabilities float32 [K,rows,W].
    """
    height, width = geometry.image
    sizes = zip(geometry.image, geometry.resized, geometry.padded, grid.shape[1:], strict=True)
    rows_taps, columns = ([torch.from_numpy(part) for part in taps(*size)] for size in sizes)
    rows = max(1, STRIP_BYTES // (4 * grid.shape[0] * width))
    for start in range(0, height, rows):
        strip = slice(start, min(start + rows, height))
        top, bottom, down = (part[strip] for part in rows_taps)
        left, right, across = columns
        blended = torch.lerp(grid[:, top], grid[:, bottom], down[:, None])  # [K,rows,w]
        yield strip, torch.lerp(blended[:, :, left], blended[:, :, right], across).log_softmax(0)


def taps(count: int, resized: int, padded: int, cells: int, stride: int = 1) -> Taps:
    """Compute the bilinear taps of one axis: two cells and the second one's weight, by pixel.

    `count`, `resized` and `padded` are the axis's pixels at each stage, `cells` those of the grid,
    of which every `stride`-th one is kept, from the first. Pixel centres are aligned as by torch
    with `align_corners=False`.
    """
    last = (cells - 1) // stride
    fraction = resized / count * cells / padded
    position = (((np.arange(count) + 0.5) * fraction - 0.5) / stride).clip(0, last)
    first = position.astype(np.int64)
    return first, np.minimum(first + 1, last), (position - first).astype(np.float32)


def whole_phases(width: int, geometry: Geometry, cells: int) -> int:
    """Return the number of columns for each cell if it is whole and at most MAX_PHASES, else 0."""
    phases, rest = divmod(width * geometry.padded[1], geometry.resized[1] * cells)
    return phases if rest == 0 and 1 <= phases <= MAX_PHASES else 0


@dataclass(frozen=True)
class ClassStatistics:
    """Numbers of pixels int64 [V] and sums of confidence float64 [V], by value of the mask.

    V is 256 or 65536; the last value marks abstained pixels.
    """

    pixels: NDArray[np.int64]
    confidence: NDArray[np.float64]

    @property
    def mean_confidence(self) -> float:
        """Mean over all pixels, in 0..1."""
        return float(self.confidence.sum() / self.pixels.sum())

    @property
    def abstained_fraction(self) -> float:
        """Fraction of pixels without a label, in 0..1."""
        return float(self.pixels[-1] / self.pixels.sum())


def class_statistics(prediction: Prediction) -> ClassStatistics:
    """Count a prediction's pixels and sum their confidence, by value of the mask."""
    mask, confidence = prediction.mask, prediction.confidence
    values = np.iinfo(mask.dtype).max + 1
    pixels, sums = np.zeros(values, np.int64), np.zeros(values, np.float64)
    _add_up(mask.ravel(), confidence.ravel(), pixels, sums)
    return ClassStatistics(pixels, sums)


@compiled
def _add_up(
    labels: Mask,
    confidence: Confidence,
    pixels: NDArray[np.int64],
    sums: NDArray[np.float64],
) -> None:
    """Add numbers of pixels and sums of confidence by label."""
    # Neighbours mostly have equal labels, so each run of them is summed in a register.
    start, total = 0, 0.0
    for place in range(len(labels)):
        if labels[place] != labels[start]:
            pixels[labels[start]] += place - start
            sums[labels[start]] += total
            start, total = place, 0.0
        total += confidence[place]
    if len(labels):
        pixels[labels[start]] += len(labels) - start
        sums[labels[start]] += total
