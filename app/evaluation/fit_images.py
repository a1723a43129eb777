"""Images that a calibrator's fit has read, and those of them that an evaluation reads again.

Images are compared by the hash of their file's bytes, so that a file encoded again is another one.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class SharedImages(NamedTuple):
    """Number of evaluated images that the fit read: all, to fit, to select, and to test.

    A fit on few images selects and tests on the same ones.
    """

    total: int
    fit: int
    select: int
    held_out: int


class FitImages(NamedTuple):
    """Hashes of the image files that a fit read, by their role; see `content_hash`."""

    fit: frozenset[str]
    select: frozenset[str]
    held_out: frozenset[str]

    @classmethod
    def recorded(cls, report: Mapping[str, object]) -> "FitImages | None":
        """Read the hashes of a fit's report; None for a fit from logits or by an older version."""
        hashes = report.get("image_hashes")
        if not isinstance(hashes, Mapping):
            return None
        return cls(*(frozenset(hashes.get(role, ())) for role in cls._fields))

    def shared(self, hashes: Iterable[str]) -> SharedImages:
        """Count the images of each role among those with the given hashes."""
        evaluated = list(hashes)
        roles = (frozenset().union(*self), *self)
        return SharedImages(*(sum(one in role for one in evaluated) for role in roles))
