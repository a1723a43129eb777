"""Find the label of void pixels in label maps that come without one."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ArgumentError

COMMON_VOID = 255  # of most data sets


def find_void_label(label_maps: Iterable[NDArray[Any]], of_card: int, num_classes: int) -> int:
    """Return the label that marks void pixels: the model card's, or 255 where only that occurs.

    Label maps are integers of any shape; where 255 is a class or the card's label they are not
    read. Raises ArgumentError where both labels occur: one of them may be a class that the model
    does not have, whose pixels would be left out without a word.
    """
    if of_card == COMMON_VOID or num_classes > COMMON_VOID:
        return of_card
    found: set[int] = set()
    for labels in label_maps:
        found |= {value for value in (of_card, COMMON_VOID) if np.any(labels == value)}
        if len(found) > 1:
            raise ArgumentError(
                f"expected one label for void pixels, got both {of_card}, the label of the "
                f"model's card, and {COMMON_VOID}; name one by ignore_index and relabel the other"
            )
    return found.pop() if found else of_card
