"""What selectors would change of the log-odds, gathered part by part until a picture is whole.

How far such changes are trusted depends on the picture as a whole, of which a strip tells little:
the sky alone is like no picture that was fitted on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Changes:
    """Changes float32 [S,n,m] at the cells looked at, every `step` rows and columns of a grid.

    There is one for each of S opinions.

    `sums` float32 [n,F] are of the features that led to them, over each row. `settle` is how the
    calibrator turns the changes of a whole grid (h, w) into what is added to the log-odds, [h,w].
    """

    change: Tensor
    sums: Tensor
    step: int
    settle: Callable[["Changes", tuple[int, int]], Tensor]

    def within(self, top: int, cells: range) -> "Changes":
        """Keep what lies in some rows of the grid, where the first row at hand is its row `top`."""
        first = -(-(cells.start - top) // self.step)
        end = -(-(cells.stop - top) // self.step)
        return replace(self, change=self.change[:, first:end], sums=self.sums[first:end])

    @staticmethod
    def joined(parts: Sequence["Changes"]) -> "Changes":
        """Put parts together, from top to bottom."""
        change = torch.cat([part.change for part in parts], dim=1)
        return replace(parts[0], change=change, sums=torch.cat([part.sums for part in parts]))

    def settled(self, size: tuple[int, int]) -> Tensor:
        """Give what is added to the log-odds on a grid (h, w) of which these are all: [h,w]."""
        return self.settle(self, size)

    def means(self) -> Tensor:
        """Mean features over all cells, float32 [1,F]."""
        return (self.sums.double().mean(dim=0) / self.change.shape[2]).float()[None]
