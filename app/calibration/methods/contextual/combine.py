"""What becomes of opinions once all of a picture is known: how far each is followed.

The serving half of `opinion.Opinion` and `Contextual.moved`, which are the definition, in one
compiled pass.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.numerics import compiled

Floats = NDArray[np.float32]

_ZERO = np.float32(0)


class Standing(NamedTuple):
    """How far an opinion is trusted, and with what images, as `opinion.Opinion` holds it."""

    trust: Floats  # []
    usual: Floats  # [F]
    spread: Floats
    limit: Floats  # []


@compiled
def settle(
    change: Floats,
    sums: Floats,
    first: Standing,
    wary: Standing,
    natural: np.float32,
    doubt: np.float32,
) -> Floats:
    """What opinions move the log-odds by, [n,m], as far as they are trusted.

    `change` [S,n,m] and `sums` [n,F] are those of a whole picture. `Contextual.moved` is the
    definition.
    """
    _, height, width = change.shape
    moved = np.empty((height, width), np.float32)
    familiar = _familiarity(sums, width, first)
    known = _familiarity(sums, width, wary) if len(change) > 1 else _ZERO
    trust, further = first.trust[()], wary.trust[()]
    for y in range(height):
        row = moved[y]
        for x in range(width):
            own = trust * change[0, y, x]
            elsewhere = min(max(own, -doubt), _ZERO)
            if len(change) > 1:
                said = further * change[1, y, x]
                lower = min(said, _ZERO)
                spoiled = lower + known * (said - lower)
                elsewhere = spoiled + natural * (elsewhere - spoiled)
            row[x] = elsewhere + familiar * (own - elsewhere)
    return moved


@compiled
def _familiarity(sums: Floats, width: int, standing: Standing) -> np.float32:
    """Tell how familiar an opinion finds a picture, 0..1, as `Opinion.familiarity` does."""
    count = len(standing.usual)
    distance = 0.0
    for f in range(count):
        mean = 0.0
        for y in range(len(sums)):
            mean += sums[y, f]
        away = (mean / (len(sums) * width) - standing.usual[f]) / standing.spread[f]
        distance += away * away
    distance = (distance / count) ** 0.5
    return np.float32(min(max(3 - 2 * distance / standing.limit[()], 0.0), 1.0))
