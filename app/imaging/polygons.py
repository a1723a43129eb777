"""Trace the outlines of a mask's classes as polygons with holes, exactly.

Outlines run along the edges of pixels: their points are corners of pixels, (x, y) with the origin
at the image's upper left corner, so that the pixel in row r and column c covers c..c+1 by r..r+1.
A pixel is inside a polygon where its centre is inside the exterior and in no hole.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import TooLargeError
from app.imaging.encode import Mask
from app.numerics import compiled

MAX_POINTS = 1 << 20  # about 12 MB of JSON

Ring = NDArray[np.int32]  # [n,2], columns and rows, not closed


@dataclass(frozen=True)
class Polygon:
    """A 4-connected region: its exterior, clockwise on the screen, and its holes, the other way."""

    exterior: Ring
    holes: list[Ring] = field(default_factory=list)


def trace_polygons(mask: Mask, max_points: int = MAX_POINTS) -> dict[int, list[Polygon]]:
    """Return the polygons of each class of a mask [H,W], without abstained pixels.

    Pixels that touch at a corner only belong to different polygons. Raises TooLargeError above
    `max_points`.
    """
    abstained = np.iinfo(mask.dtype).max
    total = _count_corners(mask, abstained)
    if total > max_points:
        raise TooLargeError(
            f"expected outlines of at most {max_points} points, got {total}; ask for rle instead"
        )
    points = np.empty((total, 2), np.int32)
    rings = np.empty((total // 4, 5), np.int32)
    count = _trace_rings(mask, abstained, points, rings)
    return _assemble(points, rings[:count])


def _assemble(points: Ring, rings: NDArray[np.int32]) -> dict[int, list[Polygon]]:
    """Join rings, rows of (first point, class, is a hole, column, ring to its left), to polygons.

    A hole belongs to the polygon of the ring to its left, which starts further to the left: in
    the order of their columns, that ring's polygon is known.
    """
    polygons: dict[int, list[Polygon]] = {}
    owners: dict[int, Polygon] = {}
    bounds = [*rings[:, 0].tolist(), len(points)]
    outlines = [points[start:end] for start, end in pairwise(bounds)]
    for index in np.flatnonzero(rings[:, 2] == 0).tolist():
        owners[index] = Polygon(outlines[index])
        polygons.setdefault(int(rings[index, 1]), []).append(owners[index])
    holes = np.flatnonzero(rings[:, 2])
    for index in holes[np.argsort(rings[holes, 3], kind="stable")].tolist():
        owners[index] = owners[int(rings[index, 4])]
        owners[index].holes.append(outlines[index])
    return polygons


@compiled
def _is(mask: NDArray[Any], y: int, x: int, label: int) -> bool:
    """Return whether a pixel lies inside the mask and is of a class."""
    return bool(0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] == label)


@compiled
def _count_corners(mask: NDArray[Any], abstained: int) -> int:
    """Count the points of all outlines: each pixel has four candidates.

    A corner is convex where both neighbours beside it are of other classes, and concave where both
    are of the pixel's class and the diagonal one is not.
    """
    corners = 0
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            label = mask[y, x]
            if label == abstained:
                continue
            for dy in (-1, 1):
                for dx in (-1, 1):
                    row, column = _is(mask, y, x + dx, label), _is(mask, y + dy, x, label)
                    if row == column and not (row and _is(mask, y + dy, x + dx, label)):
                        corners += 1
    return corners


@compiled
def _trace_rings(mask: NDArray[Any], abstained: int, points: Ring, rings: Ring) -> int:
    """Trace each ring once, from the first upper edge of a pixel that no ring has yet.

    Returns the number of rings; see `_assemble` for their rows.
    """
    seen = np.zeros(mask.shape, np.bool_)  # upper edges of pixels
    left = np.zeros(mask.shape, np.int32)  # the ring of each pixel's left edge
    count = used = 0
    for top in range(mask.shape[0]):
        for start in range(mask.shape[1]):
            label = mask[top, start]
            if label == abstained or seen[top, start] or _is(mask, top - 1, start, label):
                continue
            rings[count, 0], rings[count, 1] = used, label
            used = _trace_ring(mask, seen, left, points, rings, count, top, start)
            count += 1
    for ring in range(count):  # after all are traced, as the ring to the left may be a later one
        label, column, row = rings[ring, 1], rings[ring, 3], rings[ring, 4]
        if rings[ring, 2]:
            while _is(mask, row, column - 1, label):
                column -= 1
            rings[ring, 4] = left[row, column]
    return count


@compiled
def _trace_ring(
    mask: NDArray[Any],
    seen: NDArray[np.bool_],
    left: NDArray[np.int32],
    points: Ring,
    rings: Ring,
    ring: int,
    y: int,
    x: int,
) -> int:
    """Walk around a ring eastwards from a pixel's upper edge; return the number of points so far.

    The walk keeps its class on the right. It turns right wherever the pixel ahead is of another
    class, also where the one diagonally ahead is of its own: regions are 4-connected.
    """
    steps = ((0, 1), (1, 0), (0, -1), (-1, 0))  # (rows, columns) eastwards, south, west, north
    label, used = rings[ring, 1], int(rings[ring, 0])
    area, column, row, heading = 0, mask.shape[1], 0, 0
    while heading != 0 or not seen[y, x]:
        if heading == 0:
            seen[y, x] = True
            area -= y
        elif heading == 1 and x < column:
            column, row = x, y
        elif heading == 2:
            area += y + 1
        elif heading == 3:
            left[y, x] = ring
        turn = (heading + 3) % 4
        ahead_y, ahead_x = y + steps[heading][0], x + steps[heading][1]
        side_y, side_x = ahead_y + steps[turn][0], ahead_x + steps[turn][1]
        ahead = _is(mask, ahead_y, ahead_x, label)
        if ahead and not _is(mask, side_y, side_x, label):
            y, x = ahead_y, ahead_x
            continue
        points[used, 0], points[used, 1] = x + (heading < 2), y + (0 < heading < 3)
        used += 1
        if ahead:
            y, x, heading = side_y, side_x, turn
        else:
            heading = (heading + 1) % 4
    # A hole's leftmost edge is the right edge of the pixel (row, column).
    rings[ring, 2], rings[ring, 3], rings[ring, 4] = area < 0, column, row
    return used
