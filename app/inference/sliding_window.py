"""Windows over images that are too large for the network at once.

Windows are laid row by row and their logits blended on the backbone's grid. Rows of the grid that
no later window touches are handed on and dropped, so that memory is bounded by one row of windows.

What is blended are the logits. A weighted mean of log-probabilities differs from it by a constant
for each pixel, so the distribution is the same; but logits that only one window gives stay what
the network said, which is what a calibrator that is not invariant to such constants was fitted on,
and no window pays for a log-softmax.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.errors import ModelError
from app.inference.preprocess import Band

ALIGNMENT = 6  # calibrators may look at every row, at every second or at every third
BAND_BYTES = 16 << 20  # of logits at a time; calibrators need several times what they are given

Blend = Literal["hann", "mean"]
BlendWeights = tuple[NDArray[np.float32], ...]


class Strip(NamedTuple):
    """Logits float32 [1,K,n,w] of some rows of the grid, and which rows they are."""

    logits: Tensor
    band: Band


@dataclass(frozen=True)
class WindowAxis:
    """The windows along one axis: where they begin, and how long each and the axis are; pixels."""

    starts: tuple[int, ...]
    length: int
    total: int


def window_axis(total: int, crop: int, stride: int) -> WindowAxis:
    """Begin a window at every stride; the last one ends where the axis does.

    An axis that is shorter than the crop is one window of its own length.
    """
    length = min(crop, total)
    return WindowAxis((*range(0, total - length, stride), total - length), length, total)


def blend_weights(line: WindowAxis, cells: int, blend: Blend) -> BlendWeights:
    """Give each window's weights float32 [cells] along one axis.

    At every cell of the axis the weights of all windows sum to 1. Hann weights, sin^2 at the
    cells' centres, fade a window's borders out, where a network sees least of the surroundings.
    """
    shape = np.sin(np.pi * (np.arange(cells) + 0.5) / cells) ** 2
    if blend == "mean":
        shape = np.ones(cells)
    offsets = [start * cells // line.length for start in line.starts]
    total = np.zeros(line.total * cells // line.length)
    for offset in offsets:
        total[offset : offset + cells] += shape
    return tuple((shape / total[offset : offset + cells]).astype(np.float32) for offset in offsets)


@dataclass(frozen=True)
class Windows:
    """An image's windows; `cut(row, column)` makes the one at that corner, float32 [1,3,h,w]."""

    down: WindowAxis
    across: WindowAxis
    cut: Callable[[int, int], Tensor]


def strips(
    windows: Windows, network: Callable[[Tensor], Tensor], blend: Blend, receptive_radius: int
) -> Iterator[Strip]:
    """Run the network over the windows and give the grid's rows from top to bottom.

    Every row is one strip's own once. Around its own rows a strip has those that are read with
    them: `receptive_radius` rows above, from an aligned one on, and below one more than that, which
    emission interpolates with.
    """
    if len(windows.down.starts) == len(windows.across.starts) == 1:
        logits = network(windows.cut(0, 0))
        height = logits.shape[2]
        yield from bands(logits, 0, height, range(height), receptive_radius)
        return
    blended = None
    for row, top in enumerate(windows.down.starts):
        for column, left in enumerate(windows.across.starts):
            logits = network(windows.cut(top, left))
            blended = blended or Blended(windows, logits.shape, blend, receptive_radius)
            blended.add(row, column, logits)
        if blended is not None:
            yield from blended.finish(row)


def bands(
    logits: Tensor, top: int, height: int, cells: range, receptive_radius: int
) -> Iterator[Strip]:
    """Divide rows of logits [1,K,n,w], the first of them the grid's row `top`, by their bytes."""
    step = max(1, BAND_BYTES // (4 * logits.shape[1] * logits.shape[3]))
    if len(cells) == logits.shape[2] <= step and logits.is_contiguous():
        yield Strip(logits, Band(top, height, cells))
        return
    for start in range(cells.start, cells.stop, step):
        own = range(start, min(start + step, cells.stop))
        first, end = (
            max(_aligned(own.start - receptive_radius), top),
            min(own.stop + 1 + receptive_radius, height),
        )
        part = logits[:, :, first - top : end - top].clone()
        yield Strip(part, Band(first, height, own))


def _aligned(row: int) -> int:
    """Give the aligned row at or above: a calibrator that looks at some rows sees the same ones."""
    return row - row % ALIGNMENT


class Blended:
    """The rows of the grid that windows still add to, and those above that are still read."""

    def __init__(
        self, windows: Windows, shape: torch.Size, blend: Blend, receptive_radius: int
    ) -> None:
        _, classes, rows, columns = shape
        self._windows, self._cells, self._receptive_radius = (
            windows,
            (rows, columns),
            receptive_radius,
        )
        self._down = blend_weights(windows.down, rows, blend)
        self._across = blend_weights(windows.across, columns, blend)
        self._height = windows.down.total * rows // windows.down.length
        width = windows.across.total * columns // windows.across.length
        self._held = np.zeros(
            (1, classes, rows + ALIGNMENT + 2 * receptive_radius, width), np.float32
        )
        self._top = 0  # the grid's row that is held first
        self._done = 0  # grid rows that were given out

    def add(self, row: int, column: int, logits: Tensor) -> None:
        """Add the logits [1,K,n,m] of the window in this row and column of windows."""
        if logits.shape[2:] != self._cells:
            raise ModelError(
                f"expected a grid of {self._cells} cells for every window, "
                f"got {tuple(logits.shape[2:])}"
            )
        weights = self._down[row][:, None] * self._across[column]
        top = self._row(row) - self._top
        columns = self._cells[1]
        left = self._windows.across.starts[column] * columns // self._windows.across.length
        target = self._held[:, :, top : top + self._cells[0], left : left + columns]
        target += logits.numpy() * weights

    def finish(self, row: int) -> Iterator[Strip]:
        """Give the rows that are complete after a row of windows, and drop what is read no more."""
        last = row + 1 == len(self._windows.down.starts)
        complete = self._height if last else self._row(row + 1)
        stop = complete if last else max(self._done, complete - 1 - self._receptive_radius)
        held = torch.from_numpy(self._held[:, :, : complete - self._top])
        yield from bands(
            held, self._top, self._height, range(self._done, stop), self._receptive_radius
        )
        if last:
            return
        self._done = stop
        past = _aligned(max(0, stop - self._receptive_radius - self._top))
        kept = self._held[:, :, past:].copy()
        self._held[:, :, : kept.shape[2]] = kept
        self._held[:, :, kept.shape[2] :] = 0
        self._top += past

    def _row(self, row: int) -> int:
        """Give the grid's row at which a row of windows begins."""
        return self._windows.down.starts[row] * self._cells[0] // self._windows.down.length
