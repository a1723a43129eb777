"""What selectors would change of the log-odds, gathered part by part until a picture is whole.

How far such changes are trusted depends on the picture as a whole, of which a strip tells little:
the sky alone is like no picture that was fitted on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Changes:
    """Changes float32 [n,m] at the cells looked at, every `step` rows and columns of a grid.

    `sums` float32 [n,F] are of the features that led to them, over each row.
    """

    change: Tensor
    sums: Tensor
    step: int

    def within(self, top: int, cells: range) -> "Changes":
        """Keep what lies in some rows of the grid, where the first row at hand is its row `top`."""
        first = -(-(cells.start - top) // self.step)
        end = -(-(cells.stop - top) // self.step)
        return Changes(self.change[first:end], self.sums[first:end], self.step)

    @classmethod
    def joined(cls, parts: Sequence["Changes"]) -> Self:
        """Put parts together, from top to bottom."""
        change, sums = ([getattr(part, name) for part in parts] for name in ("change", "sums"))
        return cls(torch.cat(change), torch.cat(sums), parts[0].step)

    def means(self) -> Tensor:
        """Mean features over all cells, float32 [1,F]."""
        return (self.sums.double().mean(dim=0) / self.change.shape[1]).float()[None]
