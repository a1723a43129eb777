"""Which images fit, which choose, and which have the last word.

A figure is only honest on images that had no part in what it judges. So images, never pixels, are
parted in three: to fit the candidates on, to choose among them, and to test the chosen one. The
test images serve the gate and the certified thresholds: each is a statement that fails at most
with its own probability over the draw of these images, whatever the other one says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.calibration.dataset import split_at

SMALLEST_IN_THREE = 10  # images; with fewer, two of them would choose among many methods
FIT_FRACTION, SELECT_FRACTION = 0.4, 0.15  # the rest tests: certifying needs images most
HALF = 0.5


@dataclass(frozen=True)
class Split:
    """Sorted image indices. `select` is empty where there is nothing to choose.

    `independent_test` says that the test images took no part in the choice.
    """

    fit: list[int]
    select: list[int]
    test: list[int]
    independent_test: bool


def split_images(groups: Sequence[int], seed: int, *, choosing: bool) -> Split:
    """Part images at random: 40% to fit, 15% to choose among several methods, 45% to test.

    Images of one group stay together; `groups` names each image's. Without a choice to make, 55%
    fit. With a choice among fewer than ten images or three groups half of them fit, and the
    others both choose and test: `independent_test` is then false. Raises ArgumentError for fewer
    than two groups.
    """
    if not choosing:
        fit, test = split_at(groups, [FIT_FRACTION + SELECT_FRACTION], seed)
        return Split(fit, [], test, independent_test=True)
    if len(groups) < SMALLEST_IN_THREE or len(set(groups)) < 3:
        fit, rest = split_at(groups, [HALF], seed)
        return Split(fit, rest, rest, independent_test=False)
    fit, select, test = split_at(groups, [FIT_FRACTION, FIT_FRACTION + SELECT_FRACTION], seed)
    return Split(fit, select, test, independent_test=True)
