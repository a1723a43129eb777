"""Labelled logits to fit on and to measure with, image by image.

A set is never held in memory as a whole: each image is read when asked for, which a memory-mapped
upload, a folder of arrays or a backbone run on demand can all do.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from app.errors import ArgumentError

IGNORE = -1  # the one label of unlabelled pixels; each source's own value becomes it on loading


class LabelledImage(NamedTuple):
    """One image's logits float [K,*grid] and labels int64 [*grid], IGNORE where unlabelled.

    The grid is (h, w) for a map and (m,) for a table's rows.
    """

    logits: Tensor
    labels: Tensor


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
class WithCopies(Protocol):
    """A set that can show its images under other weather, their labels unchanged."""

    def copies(self, index: int) -> Sequence[LabelledImage]:
        """Read one image's copies; maybe none."""


def copies_of(data: ValidationSet, index: int) -> Sequence[LabelledImage]:
    """Read an image's copies under other weather, where the set can show any."""
    return data.copies(index) if isinstance(data, WithCopies) else ()


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

    def copies(self, index: int) -> Sequence[LabelledImage]:
        """Read one image's copies, where the whole set has any."""
        return copies_of(self.whole, self.indices[index])


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
    if not torch.isfinite(logits).all():
        raise ArgumentError("expected finite logits at every labelled pixel, got NaN or infinity")
    return logits, image.labels[keep]


def pixels(data: ValidationSet) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through a set image by image; images without a labelled pixel are left out."""
    for index in range(len(data)):
        logits, labels = labelled_pixels(data[index])
        if len(labels):
            yield logits, labels


def split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Part image indices at random into (fitting, held out), both sorted, neither empty.

    `share` is what goes to fitting, in (0,1). Whole images part, never pixels: neighbouring
    pixels are copies of each other, and a pixel split would measure memory.
    """
    if count < 2:
        raise ArgumentError(
            f"expected at least 2 images to fit on one and hold one out, got {count}"
        )
    order = np.random.default_rng(seed).permutation(count)
    cut = min(max(round(count * share), 1), count - 1)
    return sorted(order[:cut].tolist()), sorted(order[cut:].tolist())
