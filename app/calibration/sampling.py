"""Pixels drawn from a validation set: all of them where they fit in memory, a share otherwise."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.calibration.base import FitContext
from app.calibration.dataset import InMemory, LabelledImage, ValidationSet, pixels
from app.errors import ArgumentError

SAMPLE_FLOATS = 2**25  # 128 MB of logits: 3 M pixels of 11 classes, 220 k pixels of 150
PIXELS_OF_AN_IMAGE = 4096  # neighbours are near copies: more of them say little that is new
THINNEST = 8  # one pixel in so many is near enough to begin with
PIXELS_OF_A_PARAMETER = 50  # and of a class; with fewer a solution says little of that on all
CHUNK_FLOATS = 2**19  # 2 MB at a time keeps a pass inside the processor's cache


@dataclass(frozen=True)
class Sample:
    """Labelled pixels of a set, the same number from each image as far as it has them.

    `counts` is over the whole set; `complete` says that no pixel was left out.
    """

    logits: Tensor  # float32 [M,K]
    labels: Tensor  # int64 [M]
    counts: Tensor  # int64 [K]
    complete: bool

    def as_set(self) -> InMemory:
        """View the pixels as a set of one table."""
        image = LabelledImage(self.logits.T, self.labels)
        return InMemory(self.logits.shape[1], [image])

    def subsampled(self, parameters: int) -> "Sample":
        """Keep one pixel in eight, or more where parameters or classes would have few left.

        Which ones is drawn: at regular steps the same columns of images would fall out.
        """
        counts = torch.bincount(self.labels, minlength=len(self.counts))
        rarest = int(counts[self.counts > 0].min())
        enough = min(len(self.labels) // parameters, rarest) // PIXELS_OF_A_PARAMETER
        step = min(enough, THINNEST)
        if step < 2:
            return self
        drawn = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(0))
        kept = drawn[: len(drawn) // step].sort().values
        return replace(self, logits=self.logits[kept], labels=self.labels[kept], complete=False)


def draw(data: ValidationSet, context: FitContext, budget: int = SAMPLE_FLOATS) -> Sample:
    """Draw at most `budget` floats' worth of labelled pixels in one pass.

    Raises ArgumentError where no pixel is labelled or a label is no class.
    """
    quota = max(budget // (data.num_classes * max(len(data), 1)), 1)
    generator = torch.Generator().manual_seed(context.seed)
    kept, counts, complete = [], torch.zeros(data.num_classes, dtype=torch.int64), True
    for done, (logits, labels) in enumerate(pixels(data)):
        context.progress("reading", done / len(data))
        counts += class_counts(labels, data.num_classes)
        if len(labels) <= quota:
            kept.append((logits, labels))
        else:
            chosen = torch.randperm(len(labels), generator=generator)[:quota]
            kept.append((logits[chosen], labels[chosen]))
            complete = False
    if not kept:
        raise ArgumentError("expected at least one labelled pixel to fit on, got none")
    tables, targets = zip(*kept, strict=True)
    return Sample(torch.cat(tables), torch.cat(targets), counts, complete)


def gather(data: ValidationSet, context: FitContext, budget: int = SAMPLE_FLOATS) -> InMemory:
    """Read a set's labelled pixels once into tables by image, at most `budget` floats of them.

    Each image gives at most 4,096, drawn at random: beyond some hundred pixels of an image only
    further images say more. Images without a labelled pixel are left out. Raises
    ArgumentError where no pixel is labelled or a label is no class.
    """
    quota = max(budget // (data.num_classes * max(len(data), 1)), 1)
    quota = min(quota, PIXELS_OF_AN_IMAGE)
    generator = torch.Generator().manual_seed(context.seed)
    images = []
    for done, (logits, labels) in enumerate(pixels(data)):
        context.progress("reading", done / len(data))
        class_counts(labels, data.num_classes)
        if len(labels) > quota:
            chosen = torch.randperm(len(labels), generator=generator)[:quota]
            images.append(LabelledImage(logits[chosen].T, labels[chosen]))
        else:
            images.append(LabelledImage(logits.contiguous().T, labels))
    if not images:
        raise ArgumentError("expected at least one labelled pixel to fit on, got none")
    return InMemory(data.num_classes, images)


def chunks(data: ValidationSet) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through a set's labelled pixels: logits [m,K] and labels [m], a few MB at a time."""
    for logits, labels in pixels(data):
        yield from cut(logits, labels)


def cut(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a table of pixels [m,K] and [m] into chunks of a few MB."""
    size = max(CHUNK_FLOATS // logits.shape[1], 1)
    for start in range(0, len(labels), size):
        yield logits[start : start + size], labels[start : start + size]


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Count each class's pixels, int64 [K]; raises ArgumentError for a label that is none."""
    require_classes(labels, num_classes)
    return torch.bincount(labels, minlength=num_classes)


def require_classes(labels: Tensor, num_classes: int) -> None:
    """Raise ArgumentError unless all labels [m], of which there are some, are classes."""
    if labels.min() < 0 or labels.max() >= num_classes:
        wrong = labels[(labels < 0) | (labels >= num_classes)][0].item()
        raise ArgumentError(f"expected labels below {num_classes}, got {wrong}")


def require_two_classes(counts: Tensor) -> None:
    """Raise ArgumentError unless at least two classes have labelled pixels.

    With one class every map that favours it is perfect, so the set determines nothing.
    """
    present = torch.nonzero(counts)[:, 0].tolist()
    if len(present) < 2:
        raise ArgumentError(f"expected labels of at least two classes, got only {present}")


def count_classes(data: ValidationSet) -> Tensor:
    """Count each class's labelled pixels in one pass, int64 [K]."""
    counts = torch.zeros(data.num_classes, dtype=torch.int64)
    for _, labels in pixels(data):
        counts += class_counts(labels, data.num_classes)
    return counts
