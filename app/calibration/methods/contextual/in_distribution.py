"""How like those of a fit an image is, told by a few figures of the whole of it.

An image is familiar where its figures lie no farther from the usual than three in four of the
fit's own images do, and not at all from half as much again.
"""

import torch
from torch import Tensor, nn

QUANTILE = 0.75  # quantile of the distance among the images of the fit
LEAST = 1e-3
UNFITTED = 1e30


class InDistributionScore(nn.Module):
    """Figures [N,F] of images to 1 where they are as the fit's, down to 0.

    Fresh from its constructor it finds all images familiar. After a fit, however alike its images
    are, a figure's deviation is `least_std` or more, and `least_threshold` of them are familiar.
    """

    mean: Tensor
    std: Tensor
    threshold: Tensor

    def __init__(
        self, figures: int, least_std: float = LEAST, least_threshold: float = LEAST
    ) -> None:
        super().__init__()
        self._least_std, self._least_threshold = least_std, least_threshold
        self.register_buffer("mean", torch.zeros(figures))
        self.register_buffer("std", torch.ones(figures))
        self.register_buffer("threshold", torch.tensor(UNFITTED))

    @property
    def fitted(self) -> bool:
        """Whether it has learned what is familiar."""
        return self.threshold.item() < UNFITTED / 2

    def forward(self, figures: Tensor) -> Tensor:
        """Figures [N,F] to [N] between 0 and 1."""
        return (3 - 2 * self.distance(figures) / self.threshold).clamp(0, 1)

    def distance(self, figures: Tensor) -> Tensor:
        """Figures [N,F] to their distance [N] from the usual, in deviations."""
        return ((figures - self.mean) / self.std).square().mean(dim=1).sqrt()

    def forget(self) -> None:
        """Go back to the beginning."""
        self.mean.zero_()
        self.std.fill_(1)
        self.threshold.fill_(UNFITTED)

    def learn(self, figures: Tensor) -> None:
        """Take the figures [n,F] of a fit's images for what is familiar."""
        self.mean.copy_(figures.mean(dim=0))
        self.std.copy_(figures.std(dim=0, correction=0).clamp_min(self._least_std))
        self.threshold.copy_(
            self.distance(figures).quantile(QUANTILE).clamp_min(self._least_threshold)
        )
