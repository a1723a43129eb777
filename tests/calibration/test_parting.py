import pytest

from app.calibration.parting import part
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
    parts = part(count, 0, choosing=choosing)

    assert (len(parts.fit), len(parts.select), len(parts.test)) == sizes
    assert sorted(parts.fit + parts.select + parts.test) == list(range(count))
    assert parts.fresh


@pytest.mark.parametrize("count", range(2, 10))
def test_few_images_choose_and_test_at_once_and_say_so(count):
    parts = part(count, 0, choosing=True)

    assert parts.select == parts.test
    assert sorted(parts.fit + parts.test) == list(range(count))
    assert parts.fit
    assert not parts.fresh


def test_parts_are_drawn_under_the_seed():
    assert part(30, 1, choosing=True) == part(30, 1, choosing=True)
    assert part(30, 1, choosing=True) != part(30, 2, choosing=True)


@pytest.mark.parametrize("choosing", [True, False])
def test_one_image_is_too_few(choosing):
    with pytest.raises(ArgumentError, match="at least 2 images"):
        part(1, 0, choosing=choosing)
