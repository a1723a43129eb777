"""What selectors would change of the log-odds, gathered part by part until a picture is whole.

How far such changes are trusted depends on the picture as a whole, of which a strip tells little:
the sky alone is like no picture that was fitted on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Changes:
    """Changes float32 [S,n,m] at the cells looked at, every `step` rows and columns of a grid.

    There is one for each of S opinions.

    `sums` float32 [n,F] are of the features that led to them, over each row. `settle` is how the
    calibrator turns both, once they are of a whole grid, into what is added to the log-odds, [n,m].
    """

    change: Floats
    sums: Floats
    step: int
    settle: Callable[[Floats, Floats], Floats]

    def within(self, top: int, cells: range) -> "Changes":
        """Keep what lies in some rows of the grid, where the first row at hand is its row `top`."""
        first = -(-(cells.start - top) // self.step)
        end = -(-(cells.stop - top) // self.step)
        return replace(self, change=self.change[:, first:end], sums=self.sums[first:end])

    @staticmethod
    def joined(parts: Sequence["Changes"]) -> "Changes":
        """Put parts together, from top to bottom."""
        if len(parts) == 1:
            return parts[0]
        change = np.concatenate([part.change for part in parts], axis=1)
        return replace(parts[0], change=change, sums=np.concatenate([p.sums for p in parts]))

    def settled(self) -> Floats:
        """Give what is added to the log-odds at the cells of a grid of which these are all."""
        return self.settle(self.change, self.sums)
