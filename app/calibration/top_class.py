"""The top class of a pixel: its log-odds, and the temperature at which it has given ones."""

import torch
from torch import Tensor

SCALE_RANGE = (1e-3, 1e4)  # of a pixel's inverse temperature
NEWTON_STEPS = 8


def is_other(chosen: Tensor, planes: Tensor) -> Tensor:
    """Mark all classes of [N,K,...] but each pixel's chosen one [N,1,...]: bool [N,K,...]."""
    classes = torch.arange(planes.shape[1], device=planes.device)
    return classes.view(-1, *[1] * (planes.ndim - 2)) != chosen


def top_log_odds(log_probabilities: Tensor) -> Tensor:
    """Compute the log-odds [N,1,...] of the top class, exact where its probability is near 1."""
    top = log_probabilities.argmax(dim=1, keepdim=True)
    others = log_probabilities.where(is_other(top, log_probabilities), -torch.inf)
    return log_probabilities.gather(1, top) - others.logsumexp(dim=1, keepdim=True)


def scale_for(logs: Tensor, log_odds: Tensor) -> Tensor:
    """Compute the b [N,1,...] at which softmax(b logs) has a top probability of given log-odds.

    With gaps d to the top class, log sum exp(-b d) over the others falls convexly in b and is to
    equal minus the log-odds: Newton's steps from the left never overshoot. The result is in
    0.001..10,000; ties and uniform pixels end at a bound.
    """
    top = logs.argmax(dim=1, keepdim=True)
    gaps = logs.gather(1, top) - logs
    others = is_other(top, logs)
    nearest = gaps.where(others, torch.inf).amin(dim=1, keepdim=True)
    beyond = (gaps - nearest).where(others, 1e9)  # the top class itself never counts
    scale = torch.ones_like(log_odds)
    for _ in range(NEWTON_STEPS):
        weights = torch.exp(-scale * beyond)
        total = weights.sum(dim=1, keepdim=True)
        slope = nearest + (weights * beyond).sum(dim=1, keepdim=True) / total
        value = total.log() - scale * nearest + log_odds
        scale = (scale + value / slope.clamp_min(1e-6)).clamp(*SCALE_RANGE)
    return scale
