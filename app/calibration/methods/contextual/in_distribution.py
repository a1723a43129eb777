"""How like those of a fit an image is, told by a few figures of the whole of it.

An image is familiar where its figures lie no farther from the usual than three in four of the
fit's own images do, and not at all from half as much again.
"""

import torch
from torch import Tensor, nn

FAMILIAR = 0.75  # quantile of the distance among the images of the fit
LEAST = 1e-3
UNFITTED = 1e30


class Familiarity(nn.Module):
    """Figures [N,F] of images to 1 where they are as the fit's, down to 0.

    Fresh from its constructor it finds all images familiar. After a fit, however alike its images
    are, a figure's deviation is `least_spread` or more, and `least_limit` of them are familiar.
    """

    usual: Tensor
    spread: Tensor
    limit: Tensor

    def __init__(
        self, figures: int, least_spread: float = LEAST, least_limit: float = LEAST
    ) -> None:
        super().__init__()
        self._least_spread, self._least_limit = least_spread, least_limit
        self.register_buffer("usual", torch.zeros(figures))
        self.register_buffer("spread", torch.ones(figures))
        self.register_buffer("limit", torch.tensor(UNFITTED))

    @property
    def fitted(self) -> bool:
        """Whether it has learned what is familiar."""
        return self.limit.item() < UNFITTED / 2

    def forward(self, figures: Tensor) -> Tensor:
        """Figures [N,F] to [N] between 0 and 1."""
        return (3 - 2 * self.distance(figures) / self.limit).clamp(0, 1)

    def distance(self, figures: Tensor) -> Tensor:
        """Figures [N,F] to their distance [N] from the usual, in deviations."""
        return ((figures - self.usual) / self.spread).square().mean(dim=1).sqrt()

    def forget(self) -> None:
        """Go back to the beginning."""
        self.usual.zero_()
        self.spread.fill_(1)
        self.limit.fill_(UNFITTED)

    def learn(self, figures: Tensor) -> None:
        """Take the figures [n,F] of a fit's images for what is familiar."""
        self.usual.copy_(figures.mean(dim=0))
        self.spread.copy_(figures.std(dim=0, correction=0).clamp_min(self._least_spread))
        self.limit.copy_(self.distance(figures).quantile(FAMILIAR).clamp_min(self._least_limit))
