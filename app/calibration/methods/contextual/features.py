"""The features of a pixel from which the detector predicts whether its label is correct.

They are its own log-odds, the mean entropy and the mean number of label changes around it, and its
two most probable classes. All are translation invariant. The means are 0 for tables of pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from app.calibration.base import FEATURE_FLOOR, MAX_LOG_ODDS
from app.calibration.top_class import is_other, top_log_odds

NUM_FEATURES = 3
RADIUS = 7  # cells to each side: windows of 15 cells
RECEPTIVE_RADIUS = RADIUS + 1  # a cell's label is compared with that of the next one
MIN_COLUMNS, MAX_STRIDE = 80, 3


class Features(NamedTuple):
    """Features float32 [N,3,...] of each pixel, and its two most probable classes int64 [N,...].

    The first feature is the log-odds of the top probability, within +-12; `entropy` [N,...] is in
    nats.
    """

    values: Tensor
    entropy: Tensor
    first: Tensor
    second: Tensor

    @property
    def log_odds(self) -> Tensor:
        """Return the log-odds [N,...] of the top probability."""
        return self.values[:, 0]


def compute_features(log_probabilities: Tensor) -> Features:
    """Compute the features of log-probabilities float32 [N,K,h,w] of maps or [N,K,m] of tables."""
    logs = log_probabilities.clamp_min(FEATURE_FLOOR)
    first = log_probabilities.argmax(dim=1, keepdim=True)
    others = log_probabilities.where(is_other(first, logs), -torch.inf)
    second = others.argmax(dim=1, keepdim=True)
    odds = top_log_odds(log_probabilities).clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)
    entropy = -(logs.exp() * logs).sum(dim=1, keepdim=True)
    values = torch.cat([odds, neighbourhood(entropy, first)], dim=1)
    return Features(values, entropy[:, 0], first[:, 0], second[:, 0])


def neighbourhood(entropy: Tensor, labels: Tensor) -> Tensor:
    """Average entropy and label changes over windows: [N,1,h,w] twice to [N,2,h,w]."""
    if entropy.ndim != 4:
        return entropy.new_zeros(1).expand(len(entropy), 2, *entropy.shape[2:])
    return box_mean(torch.cat([entropy, label_changes(labels)], dim=1), RADIUS)


def label_changes(labels: Tensor) -> Tensor:
    """Count how many of the four neighbours of each cell of [N,1,h,w] have another label."""
    across = (labels[..., :, 1:] != labels[..., :, :-1]).float()
    down = (labels[..., 1:, :] != labels[..., :-1, :]).float()
    changes = pad(across, (0, 1)) + pad(across, (1, 0))
    return changes + pad(down, (0, 0, 0, 1)) + pad(down, (0, 0, 1, 0))


def box_mean(planes: Tensor, radius: int) -> Tensor:
    """Average [N,C,h,w] over windows of 2 radius + 1 cells, the edge repeated."""
    for axis in ((radius, radius, 0, 0), (0, 0, radius, radius)):
        kernel = (1, 2 * radius + 1) if axis[0] else (2 * radius + 1, 1)
        planes = avg_pool2d(pad(planes, axis, mode="replicate"), kernel, stride=1)
    return planes


def stride_of(planes: Tensor) -> int:
    """Return the stride at which maps [N,C,h,w] are subsampled, 1 for tables [N,C,m]."""
    if planes.ndim != 4:
        return 1
    # These accept the symbolic sizes of an export, too.
    at_least_one = torch.sym_max(planes.shape[3] // MIN_COLUMNS, 1)  # type: ignore[no-untyped-call]
    stride: int = torch.sym_min(at_least_one, MAX_STRIDE)  # type: ignore[no-untyped-call]
    return stride


def subsampled(planes: Tensor, stride: int) -> Tensor:
    """Keep every `stride`-th row and column of maps [...,h,w]."""
    if torch.compiler.is_exporting():  # slices have no symbolic step
        rows, columns = (torch.arange((side - 1) // stride + 1) for side in planes.shape[-2:])
        return planes[..., stride * rows, :][..., stride * columns]
    return planes if stride == 1 else planes[..., ::stride, ::stride]


def interpolated(planes: Tensor, size: tuple[int, ...], stride: int) -> Tensor:
    """Interpolate maps [N,C,n,m] of a subsampled grid bilinearly to its full size (h, w)."""
    if stride == 1:
        return planes
    reached = [stride * (side - 1) + 1 for side in planes.shape[2:]]
    fine = interpolate(planes, reached, mode="bilinear", align_corners=True)
    return pad(fine, (0, size[1] - reached[1], 0, size[0] - reached[0]), mode="replicate")
