import math

import numpy as np
import pytest
import torch

from app.calibration.drift import (
    CONFIDENCE_BINS,
    FEWEST_IMAGES,
    MOST_IMAGES,
    Reference,
    divergences,
    histogram,
    jensen_shannon,
    reference_of,
)
from app.errors import ArgumentError

CLASSES = 3


def scattered(rng, images, concentration=6.0, correlation=0.0):
    """Histograms of images that vary in confidence and classes, with correlated neighbours."""
    rows, walk = [], 0.0
    for _ in range(images):
        walk = correlation * walk + math.sqrt(1 - correlation**2) * rng.normal()
        confidence = rng.beta(concentration * math.exp(0.3 * walk), 1.0, (40, 50))
        fractions = rng.dirichlet((8, 4, 2))
        predicted = rng.choice(CLASSES, (40, 50), p=fractions)
        rows.append(torch.from_numpy(histogram(confidence, predicted, CLASSES)).float())
    return torch.stack(rows)


def beyond(reference, limit, window):
    found = divergences(window.double().mean(0).numpy(), reference.mean)
    return found[0] > limit.confidence or found[1] > limit.classes


# For (1, 0) and (1/2, 1/2) the mean is (3/4, 1/4).
HALF_IN_COMMON = (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0.5, 0.5, 0.0), (0.5, 0.5, 0.0), 0.0),
        ((1.0, 0.0, 0.0), (0.0, 0.5, 0.5), math.log(2)),
        ((1.0, 0.0, 0.0), (0.5, 0.5, 0.0), HALF_IN_COMMON),
    ],
)
def test_divergence_by_hand(a, b, expected):
    assert jensen_shannon(np.array(a), np.array(b)) == pytest.approx(expected)
    assert jensen_shannon(np.array(b), np.array(a)) == pytest.approx(expected)


def test_histogram_has_fractions_of_confidence_and_of_classes():
    confidence = np.array([[0.0, 1.0], [0.99, 0.5]])
    row = histogram(confidence, np.array([[0, 2], [2, 2]]), CLASSES)

    assert row[:CONFIDENCE_BINS].nonzero()[0].tolist() == [0, 32, 63]
    assert row[63] == 0.5
    assert row[CONFIDENCE_BINS:].tolist() == [0.25, 0, 0.75]


def test_large_image_is_sampled_evenly():
    confidence = np.linspace(0, 1, 480 * 360, dtype=np.float32).reshape(360, 480).T
    row = histogram(confidence, np.zeros((480, 360), np.uint8), CLASSES)

    assert row[:CONFIDENCE_BINS] == pytest.approx(np.full(64, 1 / 64), abs=0.002)


@pytest.mark.parametrize("wrong", [3, -1, -9])
def test_class_outside_the_range_is_rejected(wrong):
    with pytest.raises(ArgumentError, match=r"expected classes in 0\.\.2, got "):
        histogram(np.ones((1, 2)), np.array([[0, wrong]]), CLASSES)


def test_reference_is_bounded_and_includes_first_and_last_image():
    rows = [torch.full((CONFIDENCE_BINS + CLASSES,), float(i)) for i in range(3 * MOST_IMAGES)]
    reference = reference_of(rows)

    assert reference is not None
    assert len(reference.images) == MOST_IMAGES
    assert reference.images[[0, -1], 0].tolist() == [0, 3 * MOST_IMAGES - 1]
    assert reference_of([]) is None


@pytest.mark.parametrize(("images", "correlation"), [(60, 0.0), (60, 0.4), (FEWEST_IMAGES, 0.0)])
def test_windows_without_drift_stay_within_the_limit(images, correlation):
    rng = np.random.default_rng(0)
    exceeded = 0
    for _ in range(8):
        reference = Reference(scattered(rng, images, correlation=correlation))
        limit = reference.limits(32)
        live = scattered(rng, 10 * 32, correlation=correlation)
        exceeded += sum(beyond(reference, limit, part) for part in live.split(32))
    assert exceeded <= 3  # of 80 windows


def test_windows_of_less_confident_images_exceed_the_limit():
    rng = np.random.default_rng(0)
    reference = Reference(scattered(rng, 60))
    limit = reference.limits(32)

    live = scattered(rng, 10 * 32, concentration=3.0)
    assert all(beyond(reference, limit, part) for part in live.split(32))


def test_limit_is_wider_for_smaller_windows():
    reference = Reference(scattered(np.random.default_rng(0), 60))
    small, large = reference.limits(16), reference.limits(128)

    assert small is not None
    assert large is not None
    assert small.confidence > large.confidence > 0
    assert small.classes > large.classes > 0


def test_too_few_images_have_no_limit():
    assert Reference(scattered(np.random.default_rng(0), FEWEST_IMAGES - 1)).limits(32) is None
