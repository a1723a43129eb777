"""Where on images each class lies, band by band from top to bottom.

A network that has lost its way puts sky below the road. What makes that telling is that a layout
stays what it is in fog, by night and under noise, where a network's probabilities do not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.calibration.dataset import IGNORE, ValidationSet

BANDS = 32
SMOOTHING = 1.4  # bands, a standard deviation
NOTHING = 1e-3  # pixels, evenly of all classes, for bands without a label anywhere near
EVEN = 1 / 31  # of an even distribution that is mixed in: no class is ruled out anywhere


def fit_position_prior(data: ValidationSet, indices: Sequence[int]) -> Tensor:
    """Log-probability of each class in each band, float32 [K,32], from the labels of maps [h,w]."""
    counts = torch.zeros(data.num_classes, BANDS)
    for index in indices:
        labels = data[index].labels
        bands = bands_of(len(labels))[:, None].expand(labels.shape)
        known = labels != IGNORE
        cells = labels[known] * BANDS + bands[known]
        counts += torch.bincount(cells, minlength=counts.numel()).view(counts.shape)
    places = torch.arange(BANDS)
    spread = torch.exp(-0.5 * ((places[:, None] - places) / SMOOTHING).square())
    smooth = counts @ spread
    fractions = (smooth + NOTHING / data.num_classes) / (smooth.sum(dim=0) + NOTHING)
    return torch.log((1 - EVEN) * fractions + EVEN / data.num_classes)


def bands_of(height: int) -> Tensor:
    """Tell in which band each row of a grid lies, int64 [h]."""
    return torch.arange(height) * BANDS // height


def position_log_likelihood(layout: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """How likely the leading classes [N,1,h,w] are where they are, after a layout [K,32].

    Gives [N,2,h,w]: the first one's log-probability, and by how much it is above the second's. A
    table [N,1,m] knows no rows, and gets zeros.
    """
    if first.ndim != 4:
        return layout.new_zeros(1).expand(len(first), 2, *first.shape[2:])
    rows = bands_of(first.shape[2])[:, None].expand(first.shape[2:])
    likely = layout[first, rows]
    return torch.cat([likely, likely - layout[second, rows]], dim=1)
