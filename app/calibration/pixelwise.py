"""What calibrators share that treat each pixel by itself, as one row of K logits."""

from abc import abstractmethod

import torch
from torch import Tensor

from app.calibration.base import Calibrator, prepared

FEATURE_FLOOR = -30.0  # below it a log-probability says nothing more, but would rule every fit
PART = 256  # pixels whose products are added up in float32


class Pixelwise(Calibrator):
    """A calibrator that maps rows of logits to rows of log-probabilities."""

    def forward(self, logits: Tensor) -> Tensor:
        """Logits [N,K,...] of any float type to log-probabilities, float32 of the same shape."""
        calibrated = self.calibrate_rows(prepared(logits).movedim(1, -1)).movedim(-1, 1)
        return uniform_where_broken(calibrated, logits)

    @abstractmethod
    def calibrate_rows(self, rows: Tensor) -> Tensor:
        """Finite float32 logits [...,K] to log-probabilities [...,K]."""


def uniform_where_broken(calibrated: Tensor, logits: Tensor) -> Tensor:
    """Log-probabilities [N,K,...] with 1/K at the pixels whose logits hold a NaN.

    `prepared` makes such logits zero, which an affine map's bias would turn into an opinion.
    """
    broken = torch.isnan(logits).any(dim=1, keepdim=True)
    return torch.where(broken, -torch.log(torch.tensor(float(logits.shape[1]))), calibrated)


def floored_log_softmax(rows: Tensor) -> Tensor:
    """Logits [...,K] to log-probabilities [...,K] in [-30, 0]."""
    # Along the first axis, in which rows of maps lie, it is some twenty times as fast.
    return rows.movedim(-1, 0).log_softmax(dim=0).clamp_min(FEATURE_FLOOR).movedim(0, -1)


def with_one(features: Tensor) -> Tensor:
    """Features [...,D] with a last column of ones, which the bias multiplies."""
    return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)


def summed_products(left: Tensor, right: Tensor) -> Tensor:
    """Sum products over pixels: float32 [m,R] and [m,D] to float64 [R,D].

    In parts, because some processors' matrix product adds a column up term by term in float32:
    thousands of neighbours with one label then cost the digits in which a fit's end shows.
    """
    count = len(left) // PART
    whole = count * PART
    of_left, of_right = (rows[:whole].view(count, PART, rows.shape[1]) for rows in (left, right))
    parts = (of_left.mT @ of_right).sum(dim=0, dtype=torch.float64)
    return parts + left[whole:].T @ right[whole:]
