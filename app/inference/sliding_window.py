"""Sliding windows over images that are too large for the network at once.

Windows are run row by row and their logits blended on the backbone's grid. Grid rows that no later
window covers are yielded and dropped, so that memory is bounded by one row of windows.

Logits are blended, not log-probabilities. The two means differ by a constant for each pixel, so
the distribution is the same; but logits of a single window stay the network's own, on which a
calibrator that is not invariant to such constants was fitted, and no log-softmax is computed.
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

ALIGNMENT = 6  # grid rows; calibrators may read every row, every second or every third
BAND_BYTES = 16 << 20  # of logits at a time; calibrators need several times as much

Blend = Literal["hann", "mean"]
BlendWeights = tuple[NDArray[np.float32], ...]


class Strip(NamedTuple):
    """Logits float32 [1,K,n,w] of a band of the grid's rows."""

    logits: Tensor
    band: Band


@dataclass(frozen=True)
class WindowAxis:
    """The windows along one axis: first pixels, length of each, and length of the axis."""

    starts: tuple[int, ...]
    length: int
    total: int


def window_axis(total: int, crop: int, stride: int) -> WindowAxis:
    """Place windows at every stride of an axis, the last one at the axis's end.

    An axis shorter than the crop is one window of its own length.
    """
    length = min(crop, total)
    return WindowAxis((*range(0, total - length, stride), total - length), length, total)


def blend_weights(axis: WindowAxis, cells: int, blend: Blend) -> BlendWeights:
    """Compute each window's weights float32 [cells] along one axis.

    The weights of all windows sum to 1 at every cell of the axis. Hann weights, sin^2 at the
    cells' centres, are small at a window's borders, where the network has least context.
    """
    shape = np.sin(np.pi * (np.arange(cells) + 0.5) / cells) ** 2
    if blend == "mean":
        shape = np.ones(cells)
    offsets = [start * cells // axis.length for start in axis.starts]
    total = np.zeros(axis.total * cells // axis.length)
    for offset in offsets:
        total[offset : offset + cells] += shape
    return tuple((shape / total[offset : offset + cells]).astype(np.float32) for offset in offsets)


@dataclass(frozen=True)
class Windows:
    """An image's windows; `cut(row, column)` returns the one at that corner, float32 [1,3,h,w]."""

    down: WindowAxis
    across: WindowAxis
    cut: Callable[[int, int], Tensor]


def strips(
    windows: Windows, network: Callable[[Tensor], Tensor], blend: Blend, receptive_radius: int
) -> Iterator[Strip]:
    """Run the network over the windows and yield the grid's rows from top to bottom.

    Every row is one strip's own exactly once. A strip also holds the rows that are read with its
    own: `receptive_radius` rows above, from an aligned row on, and one row more below, for
    upsampling.
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
            blended = blended or BlendedRows(windows, logits.shape, blend, receptive_radius)
            blended.add(row, column, logits)
        if blended is not None:
            yield from blended.finish(row)


def bands(
    logits: Tensor, top: int, height: int, cells: range, receptive_radius: int
) -> Iterator[Strip]:
    """Split rows of logits [1,K,n,w], the first of them the grid's row `top`, by BAND_BYTES."""
    rows = max(1, BAND_BYTES // (4 * logits.shape[1] * logits.shape[3]))
    if len(cells) == logits.shape[2] <= rows and logits.is_contiguous():
        yield Strip(logits, Band(top, height, cells))
        return
    for start in range(cells.start, cells.stop, rows):
        own = range(start, min(start + rows, cells.stop))
        first = max(_aligned(own.start - receptive_radius), top)
        end = min(own.stop + 1 + receptive_radius, height)
        part = logits[:, :, first - top : end - top].clone()
        yield Strip(part, Band(first, height, own))


class BlendedRows:
    """Blended logits of the grid rows that windows still add to, and of those still read."""

    def __init__(
        self, windows: Windows, shape: torch.Size, blend: Blend, receptive_radius: int
    ) -> None:
        _, classes, rows, columns = shape
        self._windows, self._cells = windows, (rows, columns)
        self._receptive_radius = receptive_radius
        self._down = blend_weights(windows.down, rows, blend)
        self._across = blend_weights(windows.across, columns, blend)
        self._height = windows.down.total * rows // windows.down.length
        width = windows.across.total * columns // windows.across.length
        capacity = rows + ALIGNMENT + 2 * receptive_radius
        self._buffer = np.zeros((1, classes, capacity, width), np.float32)
        self._top = 0  # grid row at the buffer's start
        self._done = 0  # grid rows that were yielded

    def add(self, row: int, column: int, logits: Tensor) -> None:
        """Add the logits [1,K,n,m] of the window at this row and column of windows."""
        if logits.shape[2:] != self._cells:
            raise ModelError(
                f"expected a grid of {self._cells} cells for every window, "
                f"got {tuple(logits.shape[2:])}"
            )
        weights = self._down[row][:, None] * self._across[column]
        top = self._row(row) - self._top
        columns = self._cells[1]
        left = self._windows.across.starts[column] * columns // self._windows.across.length
        target = self._buffer[:, :, top : top + self._cells[0], left : left + columns]
        target += logits.numpy() * weights

    def finish(self, row: int) -> Iterator[Strip]:
        """Yield the grid rows that a row of windows completes; drop those not read again."""
        last = row + 1 == len(self._windows.down.starts)
        complete = self._height if last else self._row(row + 1)
        stop = complete if last else max(self._done, complete - 1 - self._receptive_radius)
        logits = torch.from_numpy(self._buffer[:, :, : complete - self._top])
        own = range(self._done, stop)
        yield from bands(logits, self._top, self._height, own, self._receptive_radius)
        if last:
            return
        self._done = stop
        dropped = _aligned(max(0, stop - self._receptive_radius - self._top))
        kept = self._buffer[:, :, dropped:].copy()
        self._buffer[:, :, : kept.shape[2]] = kept
        self._buffer[:, :, kept.shape[2] :] = 0
        self._top += dropped

    def _row(self, row: int) -> int:
        """Return the grid row at which a row of windows begins."""
        return self._windows.down.starts[row] * self._cells[0] // self._windows.down.length


def _aligned(row: int) -> int:
    """Return the nearest multiple of ALIGNMENT at or above a row of the grid.

    A calibrator that reads every n-th row then reads the same rows in strips as in the whole grid.
    """
    return row - row % ALIGNMENT
