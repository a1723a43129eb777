"""Measure drift of predictions from the reference images of a calibrator.

Each image has a histogram of confidence and one of predicted classes. A window of images is
compared with the reference by the Jensen-Shannon divergence (Lin 1991) of the mean histograms:
0 for equal histograms, ln 2 for disjoint ones, defined with empty bins. The divergence expected
without drift is estimated by resampling the reference images in runs, as consecutive images are
correlated (moving blocks bootstrap, Kuensch 1989).
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
SAMPLE = 1 << 14  # evenly spaced pixels of an image, enough for its histogram
MOST_IMAGES = 512  # of a reference
RUN = 8  # consecutive images that are resampled together
FEWEST_IMAGES = 3 * RUN  # with fewer, runs hardly differ and the limits come out too low
RESAMPLES = 4000
QUANTILE = 0.9995  # of each of the two divergences: either is exceeded by chance once in 1,000

Floats = NDArray[np.float64]


class Divergence(NamedTuple):
    """Jensen-Shannon divergences of confidence and of classes in nats, 0 to ln 2."""

    confidence: float
    classes: float


@dataclass(frozen=True)
class Reference:
    """Histograms float32 [n, 64 + K] of held-out images: confidence and classes, each sums to 1."""

    images: Tensor

    @property
    def mean(self) -> Floats:
        """Compute the mean histogram, [64 + K]."""
        average: Floats = self.images.double().mean(dim=0).numpy()
        return average

    def limits(self, window: int) -> Divergence | None:
        """Compute the divergences that few windows of `window` images exceed without drift.

        Window and reference are both resampled, since both are samples. None with fewer than 24
        reference images.
        """
        count = len(self.images)
        if count < FEWEST_IMAGES:
            return None
        rng = np.random.default_rng(0)
        rows = self.images.double().numpy()
        windows = _resample(rng, count, window) @ rows
        references = _resample(rng, count, count) @ rows
        # Runs of 8 vary by (n-8)/n less around the mean of n images than around the true mean, and
        # divergences are quadratic in such deviations.
        wider = count / (count - RUN)
        resampled = divergences(windows, references)
        return Divergence(*(wider * float(np.quantile(values, QUANTILE)) for values in resampled))


def reference_of(rows: list[Tensor]) -> Reference | None:
    """Build a reference from at most 512 evenly spaced histograms [64 + K]; None without any."""
    if not rows:
        return None
    indices = np.linspace(0, len(rows) - 1, min(len(rows), MOST_IMAGES)).round().astype(int)
    return Reference(torch.stack([rows[index] for index in indices]))


def histogram(
    confidence: NDArray[np.floating], predicted: NDArray[np.integer], num_classes: int
) -> Floats:
    """Compute the histograms [64 + K] of an image's confidence and of its predicted classes.

    Confidence in 0..1 and predicted classes have one shape. At most 32,767 evenly spaced pixels
    are counted. Raises ArgumentError for a class outside 0..K-1.
    """
    # An odd step does not select the same few columns in every row.
    step = max(confidence.size // SAMPLE, 1) | 1
    counts = np.zeros(CONFIDENCE_BINS + num_classes)
    _count(confidence.ravel(), predicted.ravel(), step, counts)
    total = counts[:CONFIDENCE_BINS].sum()
    if counts[CONFIDENCE_BINS:].sum() < total:
        got = f"{predicted.min()}..{predicted.max()}"
        raise ArgumentError(f"expected classes in 0..{num_classes - 1}, got {got}")
    fractions: Floats = counts / total
    return fractions


def divergences(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Compute the divergences of histograms [..., 64 + K]: confidence [...] and classes [...]."""
    return (
        jensen_shannon(a[..., :CONFIDENCE_BINS], b[..., :CONFIDENCE_BINS]),
        jensen_shannon(a[..., CONFIDENCE_BINS:], b[..., CONFIDENCE_BINS:]),
    )


def jensen_shannon(a: Floats, b: Floats) -> Floats:
    """Compute the Jensen-Shannon divergence of distributions [..., n] in nats, [...]."""
    middle = (a + b) / 2
    total: Floats = (_relative_entropy(a, middle) + _relative_entropy(b, middle)) / 2
    return np.maximum(total, 0)  # rounding may give less


def _relative_entropy(a: Floats, b: Floats) -> Floats:
    """Compute the Kullback-Leibler divergence of distributions [..., n] in nats, [...]."""
    ratio = np.divide(a, b, out=np.ones_like(a), where=a > 0)
    total: Floats = (a * np.log(ratio)).sum(axis=-1)
    return total


def _resample(rng: np.random.Generator, count: int, size: int) -> Floats:
    """Resample `size` of `count` images in runs: weights [resamples, count], rows sum to 1."""
    run = min(RUN, count, size)
    starts = rng.integers(0, count, (RESAMPLES, -(-size // run)))
    indices = (starts[..., None] + np.arange(run)).reshape(RESAMPLES, -1)[:, :size] % count
    flat = indices + np.arange(RESAMPLES)[:, None] * count
    counts = np.bincount(flat.ravel(), minlength=RESAMPLES * count)
    weights: Floats = counts.reshape(RESAMPLES, count) / size
    return weights


@compiled
def _count(
    confidence: NDArray[np.floating], predicted: NDArray[np.integer], step: int, counts: Floats
) -> None:
    """Add every `step`-th pixel to `counts`: 64 bins of confidence, then the classes."""
    bins, classes = counts[:CONFIDENCE_BINS], counts[CONFIDENCE_BINS:]
    for x in range(0, len(confidence), step):
        index = int(confidence[x] * CONFIDENCE_BINS)
        bins[min(max(index, 0), CONFIDENCE_BINS - 1)] += 1
        if 0 <= predicted[x] < len(classes):
            classes[predicted[x]] += 1
