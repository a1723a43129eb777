from dataclasses import dataclass

import pytest
import torch

from app.calibration.dataset import InMemory, LabelledImage, Subset, groups_of
from app.calibration.splits import split, split_images
from app.errors import ArgumentError


@pytest.mark.parametrize(
    ("count", "choosing", "sizes"),
    [
        (101, True, (40, 16, 45)),
        (10, True, (3, 1, 6)),
        (12, True, (4, 2, 6)),
        (8, False, (2, 0, 6)),
        (7, False, (4, 0, 3)),
        (101, False, (56, 0, 45)),
        (2, False, (1, 0, 1)),
    ],
)
def test_fit_selection_and_test_sets_are_disjoint(count, choosing, sizes):
    drawn = split_images(range(count), 0, choosing=choosing)

    assert (len(drawn.fit), len(drawn.select), len(drawn.test)) == sizes
    assert sorted(drawn.fit + drawn.select + drawn.test) == list(range(count))
    assert drawn.independent_test


@pytest.mark.parametrize("count", range(2, 10))
def test_few_images_both_select_and_test(count):
    drawn = split_images(range(count), 0, choosing=True)

    assert drawn.select == drawn.test
    assert sorted(drawn.fit + drawn.test) == list(range(count))
    assert drawn.fit
    assert not drawn.independent_test


def test_split_depends_on_the_seed_only():
    assert split_images(range(30), 1, choosing=True) == split_images(range(30), 1, choosing=True)
    assert split_images(range(30), 1, choosing=True) != split_images(range(30), 2, choosing=True)


@pytest.mark.parametrize("choosing", [True, False])
def test_one_image_is_too_few(choosing):
    with pytest.raises(ArgumentError, match="at least 2 images"):
        split_images(range(1), 0, choosing=choosing)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("choosing", [True, False])
def test_groups_stay_together(seed, choosing):
    groups = [7] * 9 + [3] * 8 + [5] * 7 + [4] * 6 + [1] * 5
    drawn = split_images(groups, seed, choosing=choosing)
    of_parts = [{groups[i] for i in images} for images in (drawn.fit, drawn.select, drawn.test)]

    assert sorted(drawn.fit + drawn.select + drawn.test) == list(range(35))
    assert set.union(*of_parts) == {1, 3, 4, 5, 7}
    assert sum(map(len, of_parts)) == 5  # none in two parts
    assert all(of_parts[place] for place in ((0, 1, 2) if choosing else (0, 2)))
    assert abs(len(drawn.fit) - 35 * (0.4 if choosing else 0.55)) <= 5


def test_of_two_groups_one_fits_and_the_other_selects_and_tests():
    drawn = split_images([0] * 20 + [1] * 20, 0, choosing=True)

    assert len(drawn.fit) == len(drawn.test) == 20
    assert drawn.select == drawn.test
    assert not drawn.independent_test


def test_one_group_is_too_few():
    with pytest.raises(ArgumentError, match="as many groups"):
        split_images([3] * 20, 0, choosing=True)


def test_methods_split_by_group_where_there_are_several():
    image = LabelledImage(torch.zeros(2, 4), torch.zeros(4, dtype=torch.int64))

    @dataclass(frozen=True)
    class Groups(InMemory):
        groups: tuple[int, ...] = ()

    several = Groups(2, [image] * 8, (0, 0, 0, 0, 1, 1, 1, 1))
    assert sorted(split(several, 0.7, 0)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert groups_of(Subset(several, [3, 4])) == [0, 1]
    one = Subset(several, [0, 1, 2, 3])  # the images of a single group are split
    assert [len(part) for part in split(one, 0.7, 0)] == [3, 1]
