"""Labelled logits to fit on and to measure with, image by image.

A set is never held in memory as a whole: each image is read when asked for, which a memory-mapped
upload, a folder of arrays or a backbone run on demand can all do.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from app.errors import ArgumentError

Augmentation = Literal["none", "corruptions"]

IGNORE = -1  # the one label of unlabelled pixels; each source's own value becomes it on loading


class LabelledImage(NamedTuple):
    """One image's logits float [K,*grid] and labels int64 [*grid], IGNORE where unlabelled.

    The grid is (h, w) for a map and (m,) for a table's rows. Where the image is at hand, it is
    there as each cell's mean colour, uint8 RGB [3,h,w].
    """

    logits: Tensor
    labels: Tensor
    image: Tensor | None = None


class ValidationSet(Protocol):
    """Images with logits and labels; see `LabelledImage` for what each holds."""

    @property
    def num_classes(self) -> int:
        """Count the classes."""

    def __len__(self) -> int:
        """Count the images."""

    def __getitem__(self, index: int) -> LabelledImage:
        """Read one image."""


@runtime_checkable
class WithAugmentedImages(Protocol):
    """A set that can show its images under corruptions, their labels unchanged."""

    def augmented(self, index: int) -> Sequence[LabelledImage]:
        """Read one image's copies; all images have some, or none has."""


def augmented_images(data: ValidationSet, index: int) -> Sequence[LabelledImage]:
    """Read an image's copies under corruptions, where the set can show any."""
    return data.augmented(index) if isinstance(data, WithAugmentedImages) else ()


@runtime_checkable
class WithGroups(Protocol):
    """A set that knows which group (flight, patient, camera) each image comes from."""

    @property
    def groups(self) -> Sequence[int]:
        """Number the images' groups."""


def groups_of(data: ValidationSet) -> Sequence[int]:
    """Give each image's group; where the set knows none, each image is one by itself."""
    return data.groups if isinstance(data, WithGroups) else range(len(data))


@dataclass(frozen=True)
class View(ABC):
    """Another set seen differently, image by image."""

    whole: ValidationSet

    @property
    def num_classes(self) -> int:
        """Count the classes."""
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
        """Number the images' groups, as the whole set does."""
        known = groups_of(self.whole)
        return [known[index] for index in self.indices]

    def augmented(self, index: int) -> Sequence[LabelledImage]:
        """Read one image's copies, where the whole set has any."""
        return augmented_images(self.whole, self.indices[index])


@dataclass(frozen=True)
class InMemory:
    """A set that is small enough to be kept."""

    num_classes: int
    images: Sequence[LabelledImage]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> LabelledImage:
        return self.images[index]


def labelled_pixels(image: LabelledImage) -> tuple[Tensor, Tensor]:
    """Keep an image's labelled pixels: logits float32 [m,K] and labels int64 [m].

    Raises ArgumentError where a kept logit is NaN or infinite: a fit must not swallow those.
    """
    keep = image.labels != IGNORE
    # A table of labelled pixels, which fits read many times, is handed on without a copy.
    whole = image.labels.ndim == 1 and bool(keep.all())
    logits = (image.logits if whole else image.logits[:, keep]).T.float()
    # What is not finite stays so in the sum, which takes a twentieth of the time to look through.
    if not torch.isfinite(logits.sum(dtype=torch.float64)):
        raise ArgumentError("expected finite logits at every labelled pixel, got NaN or infinity")
    return logits, image.labels[keep]


def pixels(data: ValidationSet) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through a set image by image; images without a labelled pixel are left out."""
    for index in range(len(data)):
        logits, labels = labelled_pixels(data[index])
        if len(labels):
            yield logits, labels


def split(data: ValidationSet, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Part a set's image indices at random into (fitting, held out), both sorted, neither empty.

    `fraction` is about what goes to fitting, in (0,1). Whole groups part, or images where there is
    only one group; never pixels: neighbouring pixels are copies of each other, and a pixel split
    would measure memory.
    """
    groups = groups_of(data)
    several = len(set(groups)) > 1
    first, second = split_at(groups if several else range(len(data)), [fraction], seed)
    return first, second


def split_at(groups: Sequence[int], fractions: Sequence[float], seed: int) -> list[list[int]]:
    """Part images at random, whole groups together, where shares of them are reached.

    `fractions` rise within (0,1); there is one part more than there are shares, each sorted and of
    one group at least. Raises ArgumentError where there are fewer groups than parts.
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
        # At least one group for this part, and one for each that follows.
        least, most = cuts[-1] + 1, len(names) - (len(fractions) - number)
        misses = np.abs(reached[least - 1 : most] - round(len(group) * fraction))
        cuts.append(least + int(misses.argmin()))
    place = np.searchsorted(cuts, np.argsort(order), side="right") - 1  # each group's part
    return [np.flatnonzero(place[group] == part).tolist() for part in range(parts)]
