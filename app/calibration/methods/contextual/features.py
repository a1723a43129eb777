"""What a pixel's surroundings and its own distribution say about whether its label is right.

Every feature is translation invariant. The last four look at a neighbourhood of 5 and of 15 of the
cells that are looked at, and two more, for who wants them, at where on the image a class lies; a
table of pixels has neither, and zeros stand for them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from app.calibration.base import FEATURE_FLOOR
from app.calibration.methods.contextual.position_prior import position_log_likelihood

TOP = 5  # sorted log-probabilities that are looked at
PLACED = 2  # features that speak of the place
RADII = (2, 7)  # cells to each side
FARTHEST = max(RADII) + 1  # a cell's label is compared with the next one's
COLUMNS, COARSEST = 80, 3  # looked at of a grid, about; cells from one to the next, at most
ODDS_LIMIT = 12.0  # log-odds beyond which float32 confidences can't be told from 1


class Context(NamedTuple):
    """Features float32 [N,F,...] of each pixel, with its two most probable classes [N,...].

    `place` [N,2,...] are more of them, for who looks at where a class lies. `odds` [N,...] is the
    log-odds of the network's own confidence, within +-12.
    """

    features: Tensor
    place: Tensor
    odds: Tensor
    first: Tensor
    second: Tensor

    def seen(self, *, placed: bool) -> Tensor:
        """Give the features, with those of the place or without."""
        return torch.cat([self.features, self.place], dim=1) if placed else self.features


def feature_count(num_classes: int) -> int:
    """Count the features F, without those of the place."""
    return num_classes + min(TOP, num_classes) + 1 + 2 * len(RADII)


def context_of(logs: Tensor, local: Tensor, position_prior: Tensor) -> Context:
    """Read log-probabilities float32 [N,K,h,w] of maps or [N,K,m] of tables.

    `local` multiplies the neighbourhood's features: 1, or 0 for one that must not be seen.
    `position_prior` [K,32] says where on images the classes lie, or 0 of all of them.
    """
    floored = logs.clamp_min(FEATURE_FLOOR)
    top = floored.topk(min(TOP, logs.shape[1]), dim=1).values
    first = logs.argmax(dim=1, keepdim=True)  # topk's own indices are arbitrary at ties
    second = logs.where(others_than(first, logs), -torch.inf).argmax(dim=1, keepdim=True)
    odds = log_odds(top[:, :1])
    entropy = -(floored.exp() * floored).sum(dim=1, keepdim=True)
    own = torch.cat([odds, top[:, 1:] - top[:, :1], entropy], dim=1)
    around = neighbourhood(entropy, first) * local
    features = torch.cat([floored, own, around], dim=1)
    place = position_log_likelihood(position_prior, first, second)
    return Context(features, place, odds[:, 0], first[:, 0], second[:, 0])


def stride_of(planes: Tensor) -> int:
    """Tell how far apart the cells lie that are looked at, on the grid of maps [N,C,h,w].

    The rows of tables [N,K,m] are all looked at.
    """
    return min(max(planes.shape[3] // COLUMNS, 1), COARSEST) if planes.ndim == 4 else 1


def subsampled(planes: Tensor, stride: int) -> Tensor:
    """Keep what is looked at of maps [...,h,w]; of tables, where the step is 1, everything."""
    return planes if stride == 1 else planes[..., ::stride, ::stride]


def interpolated(planes: Tensor, size: Sequence[int], stride: int) -> Tensor:
    """Interpolate maps [N,C,n,m] of the cells looked at to all of a grid's, (height, width)."""
    if stride == 1:
        return planes
    reached = [stride * (side - 1) + 1 for side in planes.shape[2:]]
    fine = interpolate(planes, reached, mode="bilinear", align_corners=True)
    return pad(fine, (0, size[1] - reached[1], 0, size[0] - reached[0]), mode="replicate")


def others_than(chosen: Tensor, planes: Tensor) -> Tensor:
    """Mark all classes of [N,K,...] but a pixel's chosen one [N,1,...]: bool [N,K,...]."""
    classes = torch.arange(planes.shape[1], device=planes.device)
    return classes.view(-1, *[1] * (planes.ndim - 2)) != chosen


def log_odds(log_probability: Tensor) -> Tensor:
    """Turn log p into log p/(1-p), within +-12."""
    rest = -torch.expm1(log_probability)
    return (log_probability - rest.clamp_min(1e-38).log()).clamp(-ODDS_LIMIT, ODDS_LIMIT)


def neighbourhood(entropy: Tensor, labels: Tensor) -> Tensor:
    """Mean entropy, and share of neighbours with another label, of [N,1,h,w]: [N,4,h,w]."""
    if entropy.ndim != 4:
        return entropy.new_zeros(1).expand(len(entropy), 2 * len(RADII), *entropy.shape[2:])
    across = (labels[..., :, 1:] != labels[..., :, :-1]).float()
    down = (labels[..., 1:, :] != labels[..., :-1, :]).float()
    changes = pad(across, (0, 1)) + pad(across, (1, 0))
    changes = changes + pad(down, (0, 0, 0, 1)) + pad(down, (0, 0, 1, 0))
    both = torch.cat([entropy, changes], dim=1)
    return torch.cat([box_mean(both, radius) for radius in RADII], dim=1)


def box_mean(planes: Tensor, radius: int) -> Tensor:
    """Mean of [N,C,h,w] over squares of 2 reach + 1, the border repeated."""
    for axis in ((radius, radius, 0, 0), (0, 0, radius, radius)):
        kernel = (1, 2 * radius + 1) if axis[0] else (2 * radius + 1, 1)
        planes = avg_pool2d(pad(planes, axis, mode="replicate"), kernel, stride=1)
    return planes
