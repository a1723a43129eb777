"""Outlines of masks as polygons, exact to the pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Outline

from app.errors import TooLargeError
from app.imaging.polygons import trace_polygons


def rasterize(polygons, shape):
    """Fill pixels whose centre is inside an exterior and in no hole, by the even-odd rule."""
    inside = np.zeros((shape[0], shape[1] + 1), bool)
    for polygon in polygons:
        for ring in (polygon.exterior, *polygon.holes):
            for (x, y), (to_x, to_y) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                assert (x == to_x) != (y == to_y)  # along the edges of pixels
                if x == to_x:
                    inside[min(y, to_y) : max(y, to_y), x] ^= True
    return np.logical_xor.accumulate(inside, axis=1)[:, :-1]


def area(ring):
    """Compute the signed area of a ring, positive where it runs clockwise on the screen."""
    x, y = ring.astype(int).T
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def test_polygons_of_a_frame_with_an_island():
    mask = np.array(
        [
            [0, 0, 0, 0, 0],
            [0, 1, 1, 1, 0],
            [0, 1, 2, 1, 255],
            [0, 1, 1, 1, 0],
            [0, 0, 0, 0, 0],
        ],
        np.uint8,
    )
    polygons = trace_polygons(mask)
    assert sorted(polygons) == [0, 1, 2]
    (frame,), (ring,), (island,) = polygons[0], polygons[1], polygons[2]
    assert island.exterior.tolist() == [[3, 2], [3, 3], [2, 3], [2, 2]]
    assert island.holes == []
    assert ring.exterior.tolist() == [[4, 1], [4, 4], [1, 4], [1, 1]]
    assert [hole.tolist() for hole in ring.holes] == [[[3, 3], [3, 2], [2, 2], [2, 3]]]
    # The abstained pixel opens the frame to the right: a notch instead of a hole.
    assert frame.holes == []
    assert len(frame.exterior) == 12


def test_pixels_that_touch_at_a_corner_are_two_polygons():
    polygons = trace_polygons(np.array([[0, 1], [1, 0]], np.uint8))
    assert [len(polygons[label]) for label in (0, 1)] == [2, 2]


def test_a_hole_that_touches_the_outside_at_a_corner_stays_a_hole():
    mask = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], np.uint8)
    (polygon,) = trace_polygons(mask)[1]
    (hole,) = polygon.holes  # two pixels of another class that touch at a corner: one ring of 1
    assert area(hole) == -2
    assert len(trace_polygons(mask)[0]) == 2


def test_a_hole_beside_a_deeper_one_belongs_to_the_outer_polygon():
    mask = np.ones((9, 9), np.uint8)
    mask[1:8, 1:3] = 0  # traced last, at its lower end
    mask[2:4, 5:7] = 0
    mask[3, 1] = 1  # an island's neighbour on the hole's left side
    (polygon,) = trace_polygons(mask)[1]
    assert sorted(area(hole) for hole in polygon.holes) == [-13, -4]


@settings(deadline=None)  # the kernels are compiled at their first call
@given(
    arrays(
        st.sampled_from([np.uint8, np.uint16]),
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.sampled_from([0, 1, 2, 255]),
    )
)
def test_polygons_rasterize_to_the_mask(mask):
    polygons = trace_polygons(mask)
    present = set(np.unique(mask).tolist()) - {np.iinfo(mask.dtype).max}
    assert set(polygons) == present
    for label, found in polygons.items():
        assert np.array_equal(rasterize(found, mask.shape), mask == label)
        for polygon in found:
            # Each by itself is a region: its exterior runs clockwise, and holes lie inside of it.
            region = rasterize([polygon], mask.shape)
            assert region.sum() == area(polygon.exterior) + sum(map(area, polygon.holes))
            assert all(area(hole) < 0 for hole in polygon.holes)
            assert not (region & (mask != label)).any()


def test_pixel_centres_are_inside_by_matplotlib_as_well():
    mask = np.random.default_rng(2).integers(0, 3, (40, 60)).astype(np.uint8)
    centres = np.stack(np.meshgrid(np.arange(60) + 0.5, np.arange(40) + 0.5), -1).reshape(-1, 2)
    for label, found in trace_polygons(mask).items():
        inside = np.zeros(len(centres), bool)
        for polygon in found:
            holes = [Outline(hole).contains_points(centres) for hole in polygon.holes]
            inside |= Outline(polygon.exterior).contains_points(centres) & ~np.any(
                [np.zeros(len(centres), bool), *holes], axis=0
            )
        assert np.array_equal(inside.reshape(mask.shape), mask == label)


def test_an_abstained_mask_has_no_polygons():
    assert trace_polygons(np.full((3, 4), 255, np.uint8)) == {}


def test_points_above_the_limit_are_an_error():
    checkers = np.indices((4, 4)).sum(axis=0).astype(np.uint8) % 2
    assert sum(len(found) for found in trace_polygons(checkers, 64).values()) == 16
    with pytest.raises(TooLargeError, match="63 points, got 64"):
        trace_polygons(checkers, 63)
