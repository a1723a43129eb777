"""The in-distribution score of an image: how far its statistics are like those of the fit.

The threshold is the 95 % quantile of the fit's own leave-one-out distances: distances computed
in-sample are smaller than those of fresh images, the more so the fewer images there are.
"""

import torch
from torch import Tensor, nn

from app.calibration.methods.contextual.features import Features

MEANS = 2  # statistics that few images determine: mean entropy and mean log-odds
IMAGES_PER_STATISTIC = 3  # below that many images, only the means are used
MIN_IMAGES = 4  # to determine the two means' covariance
QUANTILE = 0.95
RIDGE = 1e-3  # of the mean variance: class fractions sum to 1, so their covariance is singular
SMALLEST = 1e-6  # absolute, for images that are all the same


class InDistributionScore(nn.Module):
    """Statistics [S] of an image to a score in 0..1; 1 for every image before a fit.

    The score is clip(2 - d / threshold, 0, 1) of the distance d.
    """

    mean: Tensor
    precision: Tensor
    threshold: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        size = MEANS + num_classes
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("precision", torch.zeros(size, size))
        self.register_buffer("threshold", torch.ones(()))

    def forward(self, statistics: Tensor) -> Tensor:
        """Compute scores [N] in 0..1 from statistics [N,S]."""
        return (2 - self.distance(statistics) / self.threshold).clamp(0, 1)

    def distance(self, statistics: Tensor) -> Tensor:
        """Compute Mahalanobis distances [N] to the fit's images from statistics [N,S]."""
        away = (statistics - self.mean).double()
        squared = (away @ self.precision.double() * away).sum(dim=1)
        return squared.clamp_min(0).sqrt().float()

    def fit(self, statistics: Tensor) -> None:
        """Fit mean, precision and threshold to the statistics [n,S] of the fit's images.

        With fewer than 3 S images only the mean entropy and log-odds are used; with fewer than 4
        images nothing is known, and the score stays 1.
        """
        self.precision.zero_()
        self.mean.copy_(statistics.mean(dim=0))
        count, size = statistics.shape
        if count < MIN_IMAGES:
            return
        used = size if count >= IMAGES_PER_STATISTIC * size else MEANS
        away = (statistics - statistics.mean(dim=0))[:, :used].double()
        covariance = away.T @ away / (count - 1)
        ridge = (RIDGE * covariance.diagonal().mean() + SMALLEST) * torch.eye(used).double()
        self.precision[:used, :used] = torch.linalg.inv(covariance + ridge)
        distances = leave_one_out(away, covariance, ridge)
        self.threshold.copy_(distances.quantile(QUANTILE).clamp_min(SMALLEST))


def leave_one_out(away: Tensor, covariance: Tensor, ridge: Tensor) -> Tensor:
    """Compute each image's distance [n] to the others by Sherman and Morrison's formula, float64.

    `away` [n,S] are deviations from the mean of all, `covariance` [S,S] their unbiased covariance.
    """
    count = len(away)
    scaled = (count - 1) / (count - 2) * covariance + ridge
    inner = (away @ torch.linalg.inv(scaled) * away).sum(dim=1)
    outer = count / ((count - 1) * (count - 2))
    distances: Tensor = count / (count - 1) * (inner / (1 - outer * inner).clamp_min(1e-12)).sqrt()
    return distances


def image_statistics(features: Features, num_classes: int) -> Tensor:
    """Compute statistics [N,2+K] of images from their features: two means and class fractions."""
    first = features.first.flatten(1)
    fractions = torch.stack([(first == k).float().mean(dim=1) for k in range(num_classes)], dim=1)
    means = [features.entropy.flatten(1).mean(dim=1), features.log_odds.flatten(1).mean(dim=1)]
    return torch.cat([torch.stack(means, dim=1), fractions], dim=1)
