"""Which images fit, which choose, and which have the last word.

A figure is only honest on images that had no part in what it judges. So images, never pixels, are
parted in three: to fit the candidates on, to choose among them, and to test the chosen one. The
test images serve the gate and the certified thresholds: each is a statement that fails at most
with its own probability over the draw of these images, whatever the other one says.
"""

from dataclasses import dataclass

import numpy as np

from app.calibration.validation import split

SMALLEST_IN_THREE = 10  # images; with fewer, two of them would choose among many methods
FIT_SHARE, SELECT_SHARE = 0.4, 0.15  # the rest tests: certifying needs images most
HALF = 0.5


@dataclass(frozen=True)
class Parts:
    """Sorted image indices. `select` is empty where there is nothing to choose.

    `fresh` says that the test images took no part in the choice.
    """

    fit: list[int]
    select: list[int]
    test: list[int]
    fresh: bool


def part(count: int, seed: int, *, choosing: bool) -> Parts:
    """Part images at random: 40% to fit, 15% to choose among several methods, 45% to test.

    Without a choice to make, 55% fit. With a choice among fewer than ten images half of them fit,
    and the others both choose and test: `fresh` is then false. Raises ArgumentError for fewer
    than two images.
    """
    if not choosing:
        fit, test = split(count, FIT_SHARE + SELECT_SHARE, seed)
        return Parts(fit, [], test, fresh=True)
    if count < SMALLEST_IN_THREE:
        fit, rest = split(count, HALF, seed)
        return Parts(fit, rest, rest, fresh=False)
    order = np.random.default_rng(seed).permutation(count)
    first, second = round(count * FIT_SHARE), round(count * (FIT_SHARE + SELECT_SHARE))
    fit, select, test = (sorted(piece.tolist()) for piece in np.split(order, [first, second]))
    return Parts(fit, select, test, fresh=True)
