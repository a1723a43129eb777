"""Validation sets: labelled logits, read image by image.

A set is not held in memory as a whole. An image is read at each access: from a memory-mapped
upload, from a folder of arrays, or by running the backbone.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from app.errors import ArgumentError

LOGIT_LIMIT = 3e4  # logits are clamped to +-3e4: their differences are finite, in float16 too
IGNORE = -1  # label of unlabelled pixels; each source's own value is converted on loading


class LabelledImage(NamedTuple):
    """One image's logits float [K,*grid] and labels int64 [*grid], IGNORE where unlabelled.

    The grid is (h, w) for a map and (m,) for the rows of a table. `image`, where known, is the
    mean colour of each cell, uint8 RGB [3,h,w].
    """

    logits: Tensor
    labels: Tensor
    image: Tensor | None = None


class ValidationSet(Protocol):
    """A sequence of `LabelledImage`."""

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> LabelledImage:
        """Read one image."""


@runtime_checkable
class WithGroups(Protocol):
    """A set whose images have a group: a flight, a patient, a camera."""

    @property
    def groups(self) -> Sequence[int]:
        """Return the group of each image."""


def groups_of(data: ValidationSet) -> Sequence[int]:
    """Return the group of each image; without groups each image is a group by itself."""
    return data.groups if isinstance(data, WithGroups) else range(len(data))


@runtime_checkable
class WithImageHashes(Protocol):
    """A set read from image files."""

    @property
    def image_hashes(self) -> Sequence[str]:
        """Return the hash of each image file's bytes, the first 16 hex digits of its SHA-256."""


@dataclass(frozen=True)
class View(ABC):
    """A set derived from another one image by image."""

    whole: ValidationSet

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return self.whole.num_classes

    def __len__(self) -> int:
        return len(self.whole)

    @abstractmethod
    def __getitem__(self, index: int) -> LabelledImage: ...


@dataclass(frozen=True)
class Subset(View):
    """Some images of another set."""

    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> LabelledImage:
        return self.whole[self.indices[index]]

    @property
    def groups(self) -> Sequence[int]:
        """Return the group of each image, as in the whole set."""
        known = groups_of(self.whole)
        return [known[index] for index in self.indices]


@dataclass(frozen=True)
class InMemory:
    """A set held in memory."""

    num_classes: int
    images: Sequence[LabelledImage]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> LabelledImage:
        return self.images[index]


def labelled_pixels(image: LabelledImage) -> tuple[Tensor, Tensor]:
    """Select an image's labelled pixels: logits float32 [m,K] in [-3e4, 3e4], labels int64 [m].

    Raises ArgumentError where a selected logit is NaN or infinite.
    """
    keep = image.labels != IGNORE
    # A table of labelled pixels, which fits read many times, is not copied.
    whole = image.labels.ndim == 1 and bool(keep.all())
    logits = (image.logits if whole else image.logits[:, keep]).T.float()
    if logits.numel():
        least, most = logits.aminmax()  # NaN if one is
        if not (torch.isfinite(least) and torch.isfinite(most)):
            raise ArgumentError(
                "expected finite logits at every labelled pixel, got NaN or infinity"
            )
        if least < -LOGIT_LIMIT or most > LOGIT_LIMIT:
            logits = logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)  # as in serving
    return logits, image.labels[keep]


def pixels(data: ValidationSet) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over the labelled pixels of each image; images without any are skipped."""
    for index in range(len(data)):
        logits, labels = labelled_pixels(data[index])
        if len(labels):
            yield logits, labels
