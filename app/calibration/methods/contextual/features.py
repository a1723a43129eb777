"""The features of a pixel from which the detector predicts whether its label is correct.

All are translation invariant. The neighbourhood features are 0 for tables of pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from app.calibration.base import FEATURE_FLOOR, MAX_LOG_ODDS

TOP = 3  # largest log-probabilities
RADII = (2, 7)  # cells to each side: windows of 5 and of 15 cells
NUM_FEATURES = TOP + 2 + 2 * len(RADII)
RECEPTIVE_RADIUS = max(RADII) + 1  # a cell's label is compared with that of the next one
MIN_COLUMNS, MAX_STRIDE = 80, 3


class Features(NamedTuple):
    """Features float32 [N,F,...] of each pixel, and its two most probable classes int64 [N,...].

    `log_odds` [N,...] is that of the top probability, within +-12; `entropy` [N,...] in nats.
    """

    values: Tensor
    log_odds: Tensor
    entropy: Tensor
    first: Tensor
    second: Tensor


def compute_features(log_probabilities: Tensor, local: Tensor) -> Features:
    """Compute the features of log-probabilities float32 [N,K,h,w] of maps or [N,K,m] of tables.

    `local` multiplies the neighbourhood features: 1, or 0 where the fit had no neighbourhoods.
    """
    logs = log_probabilities.clamp_min(FEATURE_FLOOR)
    top = logs.topk(min(TOP, logs.shape[1]), dim=1).values
    top = torch.cat([top, *[top[:, -1:]] * (TOP - top.shape[1])], dim=1)  # of two classes
    first = log_probabilities.argmax(dim=1, keepdim=True)  # topk's indices are arbitrary at ties
    others = log_probabilities.where(is_other(first, logs), -torch.inf)
    second = others.argmax(dim=1, keepdim=True)
    odds = top_log_odds(log_probabilities).clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)
    entropy = -(logs.exp() * logs).sum(dim=1, keepdim=True)
    around = neighbourhood(entropy, first) * local
    values = torch.cat([top, odds, entropy, around], dim=1)
    return Features(values, odds[:, 0], entropy[:, 0], first[:, 0], second[:, 0])


def is_other(chosen: Tensor, planes: Tensor) -> Tensor:
    """Mark all classes of [N,K,...] but each pixel's chosen one [N,1,...]: bool [N,K,...]."""
    classes = torch.arange(planes.shape[1], device=planes.device)
    return classes.view(-1, *[1] * (planes.ndim - 2)) != chosen


def top_log_odds(log_probabilities: Tensor) -> Tensor:
    """Compute the log-odds [N,1,...] of the top class, exact where its probability is near 1."""
    top = log_probabilities.argmax(dim=1, keepdim=True)
    others = log_probabilities.where(is_other(top, log_probabilities), -torch.inf)
    return log_probabilities.gather(1, top) - others.logsumexp(dim=1, keepdim=True)


def neighbourhood(entropy: Tensor, labels: Tensor) -> Tensor:
    """Average entropy and label changes over both windows: [N,1,h,w] twice to [N,4,h,w].

    A cell's label changes are how many of its four neighbours have another label.
    """
    if entropy.ndim != 4:
        return entropy.new_zeros(1).expand(len(entropy), 2 * len(RADII), *entropy.shape[2:])
    across = (labels[..., :, 1:] != labels[..., :, :-1]).float()
    down = (labels[..., 1:, :] != labels[..., :-1, :]).float()
    changes = pad(across, (0, 1)) + pad(across, (1, 0))
    changes = changes + pad(down, (0, 0, 0, 1)) + pad(down, (0, 0, 1, 0))
    both = torch.cat([entropy, changes], dim=1)
    return torch.cat([box_mean(both, radius) for radius in RADII], dim=1)


def box_mean(planes: Tensor, radius: int) -> Tensor:
    """Average [N,C,h,w] over windows of 2 radius + 1 cells, the edge repeated."""
    for axis in ((radius, radius, 0, 0), (0, 0, radius, radius)):
        kernel = (1, 2 * radius + 1) if axis[0] else (2 * radius + 1, 1)
        planes = avg_pool2d(pad(planes, axis, mode="replicate"), kernel, stride=1)
    return planes


def stride_of(planes: Tensor) -> int:
    """Return the stride at which maps [N,C,h,w] are subsampled, 1 for tables [N,C,m]."""
    return min(max(planes.shape[3] // MIN_COLUMNS, 1), MAX_STRIDE) if planes.ndim == 4 else 1


def subsampled(planes: Tensor, stride: int) -> Tensor:
    """Keep every `stride`-th row and column of maps [...,h,w]."""
    return planes if stride == 1 else planes[..., ::stride, ::stride]


def interpolated(planes: Tensor, size: tuple[int, ...], stride: int) -> Tensor:
    """Interpolate maps [N,C,n,m] of a subsampled grid bilinearly to its full size (h, w)."""
    if stride == 1:
        return planes
    reached = [stride * (side - 1) + 1 for side in planes.shape[2:]]
    fine = interpolate(planes, reached, mode="bilinear", align_corners=True)
    return pad(fine, (0, size[1] - reached[1], 0, size[0] - reached[0]), mode="replicate")
