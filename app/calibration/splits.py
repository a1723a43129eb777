"""Split images into fit, selection and test sets (40/15/45% or six test groups), by group.

Metrics are unbiased only on images without a part in the fit or in the selection. Splits are by
image or group, never by pixel, since neighbouring pixels are near copies. The activation gate and
the certified thresholds share the test images: each is a statement with its own probability of
failure over the draw of these images, whatever the other's outcome.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.calibration.dataset import ValidationSet, groups_of
from app.errors import ArgumentError

# Certification needs images most, so the test set is the largest.
FIT_FRACTION, SELECT_FRACTION, TEST_FRACTION = 0.4, 0.15, 0.45
# The gate shows nothing on fewer groups, so of few groups a larger part tests.
MIN_TEST_GROUPS, MAX_TEST_FRACTION = 6, 0.75
FIT_FRACTION_OF_TWO = 0.5  # where one set of images both selects and tests
# With fewer, a selection set of one or two images would decide among many methods.
MIN_IMAGES_FOR_THREE, MIN_GROUPS_FOR_THREE = 10, 3


@dataclass(frozen=True)
class Split:
    """Sorted image indices. `select` is empty where there is one method only.

    `independent_test` is false where the test images are also the selection images.
    """

    fit: list[int]
    select: list[int]
    test: list[int]
    independent_test: bool


def split_images(groups: Sequence[int], seed: int, *, choosing: bool) -> Split:
    """Split images at random, whole groups together: 40% fit, 15% select, 45% test.

    `groups` is the group of each image. Without `choosing` among methods 55% fit and 45% test.
    Of 8 to 13 groups, six test. With `choosing` and fewer than 10 images or 3 groups, half of them
    fit and the others both select and test. Raises ArgumentError for fewer than two groups.
    """
    before_test = 1 - _test_fraction(len(set(groups)))
    if not choosing:
        fit, test = split_at(groups, [before_test], seed)
        return Split(fit, [], test, independent_test=True)
    if len(groups) < MIN_IMAGES_FOR_THREE or len(set(groups)) < MIN_GROUPS_FOR_THREE:
        fit, rest = split_at(groups, [FIT_FRACTION_OF_TWO], seed)
        return Split(fit, rest, rest, independent_test=False)
    fitting = before_test * FIT_FRACTION / (FIT_FRACTION + SELECT_FRACTION)
    fit, select, test = split_at(groups, [fitting, before_test], seed)
    return Split(fit, select, test, independent_test=True)


def _test_fraction(groups: int) -> float:
    """Return the fraction of images to test on: 0.45, or more where that makes six test groups."""
    needed = MIN_TEST_GROUPS / groups
    return max(TEST_FRACTION, needed) if needed <= MAX_TEST_FRACTION else TEST_FRACTION


def split(data: ValidationSet, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split a set's image indices at random into (training, held out), each sorted, none empty.

    About `fraction` of the images, in (0,1), are for training. Groups are kept together; where
    there is only one group, its images are split. One image serves as both parts.
    """
    if len(data) == 1:
        return [0], [0]
    groups = groups_of(data)
    several = len(set(groups)) > 1
    first, second = split_at(groups if several else range(len(data)), [fraction], seed)
    return first, second


def split_at(groups: Sequence[int], fractions: Sequence[float], seed: int) -> list[list[int]]:
    """Split image indices at random at cumulative fractions, whole groups together.

    `fractions` rise within (0,1); there is one part more than there are fractions, each sorted and
    of at least one group. Raises ArgumentError where there are fewer groups than parts.
    """
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    parts = len(fractions) + 1
    if len(names) < parts:
        raise ArgumentError(
            f"expected at least {parts} images, of as many groups, to fit on one and hold one "
            f"out, got {len(names)}"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    reached = np.bincount(group)[order].cumsum()
    cuts = [0]
    for number, fraction in enumerate(fractions):
        # At least one group for this part and for each part that follows.
        least, most = cuts[-1] + 1, len(names) - (len(fractions) - number)
        misses = np.abs(reached[least - 1 : most] - round(len(group) * fraction))
        cuts.append(least + int(misses.argmin()))
    part_of = np.searchsorted(cuts, np.argsort(order), side="right") - 1  # [groups]
    return [np.flatnonzero(part_of[group] == part).tolist() for part in range(parts)]
