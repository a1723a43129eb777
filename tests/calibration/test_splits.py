from dataclasses import dataclass

import pytest
import torch

from app.calibration.dataset import InMemory, LabelledImage, Subset, drives_of, split
from app.calibration.splits import part
from app.errors import ArgumentError


@pytest.mark.parametrize(
    ("count", "choosing", "sizes"),
    [
        (101, True, (40, 16, 45)),
        (10, True, (4, 2, 4)),
        (101, False, (56, 0, 45)),
        (2, False, (1, 0, 1)),
    ],
)
def test_three_parts_share_no_image(count, choosing, sizes):
    parts = part(range(count), 0, choosing=choosing)

    assert (len(parts.fit), len(parts.select), len(parts.test)) == sizes
    assert sorted(parts.fit + parts.select + parts.test) == list(range(count))
    assert parts.fresh


@pytest.mark.parametrize("count", range(2, 10))
def test_few_images_choose_and_test_at_once_and_say_so(count):
    parts = part(range(count), 0, choosing=True)

    assert parts.select == parts.test
    assert sorted(parts.fit + parts.test) == list(range(count))
    assert parts.fit
    assert not parts.fresh


def test_parts_are_drawn_under_the_seed():
    assert part(range(30), 1, choosing=True) == part(range(30), 1, choosing=True)
    assert part(range(30), 1, choosing=True) != part(range(30), 2, choosing=True)


@pytest.mark.parametrize("choosing", [True, False])
def test_one_image_is_too_few(choosing):
    with pytest.raises(ArgumentError, match="at least 2 images"):
        part(range(1), 0, choosing=choosing)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("choosing", [True, False])
def test_drives_stay_together(seed, choosing):
    drives = [7] * 9 + [3] * 8 + [5] * 7 + [4] * 6 + [1] * 5
    parts = part(drives, seed, choosing=choosing)
    of_parts = [{drives[i] for i in images} for images in (parts.fit, parts.select, parts.test)]

    assert sorted(parts.fit + parts.select + parts.test) == list(range(35))
    assert set.union(*of_parts) == {1, 3, 4, 5, 7}
    assert sum(map(len, of_parts)) == 5  # none in two parts
    assert all(of_parts[place] for place in ((0, 1, 2) if choosing else (0, 2)))
    assert abs(len(parts.fit) - 35 * (0.4 if choosing else 0.55)) <= 5


def test_two_drives_fit_on_one_and_say_that_the_other_chose_as_well():
    parts = part([0] * 20 + [1] * 20, 0, choosing=True)

    assert len(parts.fit) == len(parts.test) == 20
    assert parts.select == parts.test
    assert not parts.fresh


def test_one_drive_is_too_few():
    with pytest.raises(ArgumentError, match="as many drives"):
        part([3] * 20, 0, choosing=True)


def test_calibrators_part_by_drive_where_there_are_several():
    image = LabelledImage(torch.zeros(2, 4), torch.zeros(4, dtype=torch.int64))

    @dataclass(frozen=True)
    class Drives(InMemory):
        drives: tuple[int, ...] = ()

    several = Drives(2, [image] * 8, (0, 0, 0, 0, 1, 1, 1, 1))
    assert sorted(split(several, 0.7, 0)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert drives_of(Subset(several, [3, 4])) == [0, 1]
    one = Subset(several, [0, 1, 2, 3])  # a drive by itself is parted by image
    assert [len(part_) for part_ in split(one, 0.7, 0)] == [3, 1]
