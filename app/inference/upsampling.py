"""Whole class distributions at the picture's size, in strips of rows, for whoever measures them.

Serving reads one class's probability a pixel (`app.inference.emission`); NLL and Brier need all.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from app.inference.emission import taps
from app.inference.preprocess import Geometry

STRIP_BYTES = 16 << 20  # of upsampled logits at a time


def log_probability_strips(grid: Tensor, geometry: Geometry) -> Iterator[tuple[slice, Tensor]]:
    """Upsample logits float32 [K,h,w] bilinearly, as emission does, and normalise them.

    Gives slices of the picture's rows, from the top, with log-probabilities float32 [K,rows,W].
    """
    height, width = geometry.image
    sizes = zip(geometry.image, geometry.resized, geometry.padded, grid.shape[1:], strict=True)
    rows_taps, columns = ([torch.from_numpy(part) for part in taps(*size)] for size in sizes)
    rows = max(1, STRIP_BYTES // (4 * grid.shape[0] * width))
    for start in range(0, height, rows):
        strip = slice(start, min(start + rows, height))
        top, bottom, down = (part[strip] for part in rows_taps)
        left, right, across = columns
        tall = torch.lerp(grid[:, top], grid[:, bottom], down[:, None])  # [K,rows,w]
        yield strip, torch.lerp(tall[:, :, left], tall[:, :, right], across).log_softmax(0)
