"""What an image looks like whatever it shows: its contrast, and how sharp and how noisy it is.

Light and colours change with the hour and from street to street; fog, noise or a lens out of focus
change these. How bright an image is on the whole and what colours it has doesn't count; a darker
exposure lowers the contrast, as a little fog does. Cells of the logits' grid are compared, so the
camera's resolution counts. All is taken along rows, for images that are looked at in strips.
"""

import torch
from torch import Tensor

NUM_STATISTICS = 4
SUMS = 5  # means over a row that the figures are made of
NEAR, FAR = 1, 4  # columns apart
# A camera that never moved is no measure of what images look like.
LEAST_STD, LEAST_THRESHOLD = 0.05, 1.0
LEAST_SQUARE, LEAST_CHANGE = 1e-6, 1 / 255
LUMA = (0.299, 0.587, 0.114)


def row_statistics(image: Tensor) -> Tensor:
    """Image uint8 RGB [3,h,w] to what `compute_statistics` takes, float32 [h,5], row by row."""
    grey = torch.einsum("chw,c->hw", image.float() / 255, torch.tensor(LUMA))
    bend = 2 * grey[:, 1:-1] - grey[:, 2:] - grey[:, :-2]
    columns = (
        grey,
        grey.square(),
        (grey[:, NEAR:] - grey[:, :-NEAR]).square(),
        (grey[:, FAR:] - grey[:, :-FAR]).square(),
        (bend.abs() + LEAST_CHANGE).log(),
    )
    return torch.stack([column.sum(1) / max(column.shape[1], 1) for column in columns], dim=1)


def compute_statistics(means: Tensor) -> Tensor:
    """Means over an image's rows, float [h,5], to four logarithms [4].

    They are of the contrast, and beside it, of differences between near and far cells and of how
    much the image bends from cell to cell, on a geometric mean: noise fills in what is flat.
    """
    mean, square, near, far, bend = means.mean(dim=0)
    contrast = (square - mean.square()).clamp_min(0).add(LEAST_SQUARE).log() / 2
    differences = torch.stack([near, far]).add(LEAST_SQUARE).log() / 2
    return torch.cat([contrast[None], differences - contrast, bend[None] - contrast])
