"""How far live answers have moved away from the images a calibrator was measured on.

Every image gives a histogram of confidence and one of predicted classes. A window of images is
compared with the reference by the Jensen-Shannon divergence (Lin 1991) of their mean histograms:
0 where they agree, ln 2 where they share nothing, defined with empty bins. Images differ among
themselves, and neighbours in a group resemble each other; how much divergence that alone makes is
found by resampling the reference's own images in runs (moving blocks, Kuensch 1989).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.errors import ArgumentError
from app.numerics import compiled

CONFIDENCE_BINS = 64
SAMPLE = 1 << 14  # pixels of an image, evenly spaced, are enough for its histogram
MOST_IMAGES = 512  # of a reference, evenly spaced
FEWEST_IMAGES = 8  # with fewer, their scatter can't be told
RUN = 8  # images drawn together, for the likeness of neighbours
RESAMPLES = 4000
QUANTILE = 0.9995  # of each of the two divergences, so 0.999 of both

Floats = NDArray[np.float64]


class Divergence(NamedTuple):
    """Jensen-Shannon divergences in nats, 0 to ln 2."""

    confidence: float
    classes: float


@dataclass(frozen=True)
class Reference:
    """Histograms float32 [n, 64 + K] of held-out images, of confidence first; each sums to 1."""

    images: Tensor

    @property
    def mean(self) -> Floats:
        """Average the images, [64 + K]."""
        average: Floats = self.images.double().mean(dim=0).numpy()
        return average

    def limits(self, window: int) -> Divergence | None:
        """Find the divergence that windows of so many such images exceed once in a thousand.

        Both the window and the reference are redrawn, since both are samples. None with fewer
        than 8 images.
        """
        count = len(self.images)
        if count < FEWEST_IMAGES:
            return None
        rng = np.random.default_rng(0)
        rows = self.images.double().numpy()
        drawn = _drawn(rng, count, window) @ rows
        against = _drawn(rng, count, count) @ rows
        found = divergences(drawn, against)
        return Divergence(*(float(np.quantile(part, QUANTILE)) for part in found))


def reference_of(rows: list[Tensor]) -> Reference | None:
    """Keep at most 512 histograms, evenly spaced; None without any."""
    if not rows:
        return None
    places = np.linspace(0, len(rows) - 1, min(len(rows), MOST_IMAGES)).round().astype(int)
    return Reference(torch.stack([rows[place] for place in places]))


def histogram(
    confidence: NDArray[np.floating], predicted: NDArray[np.integer], num_classes: int
) -> Floats:
    """Shares [64 + K] of an image's confidences and of its predicted classes.

    Takes confidence in 0..1 and predicted classes of one shape, and looks at 32,767 pixels at most,
    evenly spaced. Raises ArgumentError for a class that is none of the K.
    """
    # Odd, so that it does not fall on the same few columns of an image in every row.
    step = max(confidence.size // SAMPLE, 1) | 1
    counts = np.zeros(CONFIDENCE_BINS + num_classes)
    _count(confidence.ravel(), predicted.ravel(), step, counts)
    seen = counts[:CONFIDENCE_BINS].sum()
    if counts[CONFIDENCE_BINS:].sum() < seen:
        found = f"{predicted.min()}..{predicted.max()}"
        raise ArgumentError(f"expected classes in 0..{num_classes - 1}, got {found}")
    fractions: Floats = counts / seen
    return fractions


@compiled
def _count(
    confidence: NDArray[np.floating], predicted: NDArray[np.integer], step: int, counts: Floats
) -> None:
    """Count every `step`-th pixel in its bin of confidence, and behind these in its class."""
    fractions, classes = counts[:CONFIDENCE_BINS], counts[CONFIDENCE_BINS:]
    for x in range(0, len(confidence), step):
        place = int(confidence[x] * CONFIDENCE_BINS)
        fractions[min(max(place, 0), CONFIDENCE_BINS - 1)] += 1
        if 0 <= predicted[x] < len(classes):
            classes[predicted[x]] += 1


def divergences(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Divergences of mean histograms [..., 64 + K]: of confidence [...] and of classes [...]."""
    return (
        jensen_shannon(a[..., :CONFIDENCE_BINS], b[..., :CONFIDENCE_BINS]),
        jensen_shannon(a[..., CONFIDENCE_BINS:], b[..., CONFIDENCE_BINS:]),
    )


def jensen_shannon(a: Floats, b: Floats) -> Floats:
    """Jensen-Shannon divergence of distributions [..., n] in nats, [...]."""
    middle = (a + b) / 2
    total: Floats = (_relative_entropy(a, middle) + _relative_entropy(b, middle)) / 2
    return np.maximum(total, 0)


def _relative_entropy(a: Floats, b: Floats) -> Floats:
    ratio = np.divide(a, b, out=np.ones_like(a), where=a > 0)
    total: Floats = (a * np.log(ratio)).sum(axis=-1)
    return total


def _drawn(rng: np.random.Generator, count: int, wanted: int) -> Floats:
    """Weights [resamples, count] of resamples of `wanted` images in runs, each row summing to 1."""
    run = min(RUN, count, wanted)
    starts = rng.integers(0, count, (RESAMPLES, -(-wanted // run)))
    places = (starts[..., None] + np.arange(run)).reshape(RESAMPLES, -1)[:, :wanted] % count
    flat = places + np.arange(RESAMPLES)[:, None] * count
    counts = np.bincount(flat.ravel(), minlength=RESAMPLES * count)
    weights: Floats = counts.reshape(RESAMPLES, count) / wanted
    return weights
