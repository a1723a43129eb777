"""Sample labelled pixels of a validation set: all where they fit in memory, else a fraction."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.calibration.base import FitContext
from app.calibration.dataset import InMemory, LabelledImage, ValidationSet, pixels
from app.errors import ArgumentError

SAMPLE_FLOATS = 2**25  # 128 MB of logits: 3 M pixels of 11 classes, 220 k pixels of 150
PIXELS_OF_AN_IMAGE = 4096  # neighbouring pixels are near copies: more add little information
LARGEST_STRIDE = 8  # one pixel in 8 is enough for a first solution
PIXELS_OF_A_PARAMETER = 50  # and of a class; with fewer the first solution is too far off
CHUNK_FLOATS = 2**19  # 2 MB, so that a pass stays in the processor's cache


@dataclass(frozen=True)
class Sample:
    """Labelled pixels of a set, at most the same number from each image.

    `counts` is the number of pixels of each class in the whole set. `complete` is true where the
    sample contains every pixel of the set.
    """

    logits: Tensor  # float32 [M,K]
    labels: Tensor  # int64 [M]
    counts: Tensor  # int64 [K]
    complete: bool

    def as_set(self) -> InMemory:
        """Return the pixels as a set of one table."""
        image = LabelledImage(self.logits.T, self.labels)
        return InMemory(self.logits.shape[1], [image])

    def subsampled(self, parameters: int) -> "Sample":
        """Draw one pixel in 8, or more so that 50 remain for each parameter and class.

        Drawn at random, since a regular stride would select the same columns of images.
        """
        counts = torch.bincount(self.labels, minlength=len(self.counts))
        rarest = int(counts[self.counts > 0].min())
        enough = min(len(self.labels) // parameters, rarest) // PIXELS_OF_A_PARAMETER
        stride = min(enough, LARGEST_STRIDE)
        if stride < 2:
            return self
        drawn = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(0))
        kept = drawn[: len(drawn) // stride].sort().values
        return replace(self, logits=self.logits[kept], labels=self.labels[kept], complete=False)


def draw(data: ValidationSet, context: FitContext, budget: int = SAMPLE_FLOATS) -> Sample:
    """Sample labelled pixels in one pass, at most `budget` logits.

    Raises ArgumentError where no pixel is labelled or a label is outside 0..K-1.
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
    """Sample labelled pixels in one pass into one table per image, at most `budget` logits.

    At most 4,096 pixels are drawn from each image. Images without a labelled pixel are skipped.
    Raises ArgumentError where no pixel is labelled or a label is outside 0..K-1.
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
    """Iterate over a set's labelled pixels in chunks of 2 MB: logits [m,K] and labels [m]."""
    for logits, labels in pixels(data):
        yield from cut(logits, labels)


def cut(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut logits [m,K] and labels [m] into chunks of 2 MB."""
    size = max(CHUNK_FLOATS // logits.shape[1], 1)
    for start in range(0, len(labels), size):
        yield logits[start : start + size], labels[start : start + size]


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each class, int64 [K]; raises ArgumentError for other labels."""
    require_classes(labels, num_classes)
    return torch.bincount(labels, minlength=num_classes)


def require_classes(labels: Tensor, num_classes: int) -> None:
    """Raise ArgumentError unless all labels [m], m > 0, are in 0..K-1."""
    if labels.min() < 0 or labels.max() >= num_classes:
        wrong = labels[(labels < 0) | (labels >= num_classes)][0].item()
        raise ArgumentError(f"expected labels below {num_classes}, got {wrong}")


def require_two_classes(counts: Tensor) -> None:
    """Raise ArgumentError unless at least two classes have labelled pixels.

    With one class the likelihood has no maximum: every larger logit of that class raises it.
    """
    present = torch.nonzero(counts)[:, 0].tolist()
    if len(present) < 2:
        raise ArgumentError(f"expected labels of at least two classes, got only {present}")


def count_classes(data: ValidationSet) -> Tensor:
    """Count the labelled pixels of each class in one pass, int64 [K]."""
    counts = torch.zeros(data.num_classes, dtype=torch.int64)
    for _, labels in pixels(data):
        counts += class_counts(labels, data.num_classes)
    return counts
