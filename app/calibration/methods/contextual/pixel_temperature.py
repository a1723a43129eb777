"""The temperature of a pixel at which its confidence is what it should be."""

import torch
from torch import Tensor

from app.calibration.methods.contextual.features import others_than

BETA_RANGE = (1e-3, 50.0)
NEWTON_STEPS = 8


def beta_for(logs: Tensor, odds: Tensor) -> Tensor:
    """Find what multiplies log-probabilities [N,K,...] so that the top one gets odds [N,1,...].

    With gaps d to the top class, log sum exp(-beta d) over the others falls convexly in beta and
    is to equal minus the log-odds: Newton's steps from the left never overshoot. The result is
    float32 [N,1,...] in 0.001..50; ties and uniform pixels end at a bound.
    """
    top = logs.argmax(dim=1, keepdim=True)
    gaps = logs.gather(1, top) - logs
    others = others_than(top, logs)
    nearest = gaps.where(others, torch.inf).amin(dim=1, keepdim=True)
    beyond = (gaps - nearest).where(others, 1e9)  # so far that it never counts
    beta = torch.ones_like(odds)
    for _ in range(NEWTON_STEPS):
        weights = torch.exp(-beta * beyond)
        total = weights.sum(dim=1, keepdim=True)
        slope = nearest + (weights * beyond).sum(dim=1, keepdim=True) / total
        value = total.log() - beta * nearest + odds
        beta = (beta + value / slope.clamp_min(1e-6)).clamp(*BETA_RANGE)
    return beta
