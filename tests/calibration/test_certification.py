"""The guarantee of `max_error`, by simulation: levels and thresholds as in a fit."""

import numpy as np
import pytest
import torch

from app.calibration.certification import (
    DELTA,
    LEVELS,
    certify_levels,
    least_images,
)
from app.calibration.metrics.confidence_histogram import ConfidenceHistogram
from app.calibration.risk_control import Acceptance, threshold_grid

POPULATION, PIXELS = 20_000, 64


@pytest.fixture(scope="module")
def population():
    """Confidence float32 and correctness bool, [images, pixels], with errors clustered by image.

    On some images the model is wrong more often at the same confidence.
    """
    rng = np.random.default_rng(0)
    confidence = rng.beta(6, 1.0, (POPULATION, PIXELS)).astype(np.float32)
    hardness = rng.beta(0.3, 8.0, (POPULATION, 1))
    correct = rng.uniform(size=confidence.shape) >= 0.6 * (1 - confidence) + 0.5 * hardness
    return confidence, correct


def acceptance(population, places, thresholds):
    confidence, correct = population
    found = Acceptance(thresholds)
    for place in places:
        found.add(torch.from_numpy(confidence[place]), torch.from_numpy(correct[place]))
    return found


def tuning_on(population, places):
    confidence, correct = (torch.from_numpy(part[places].ravel()) for part in population)
    return ConfidenceHistogram().add(confidence, correct)


def certified_on(population, places, tuning):
    images = acceptance(population, places, threshold_grid(tuning))
    return certify_levels(images, tuning, 0, at_image_size=True)


def certified_at_all_levels(images):
    tuning = ConfidenceHistogram().add(torch.tensor([0.6, 0.9]), torch.tensor([True, True]))
    return certify_levels(images, tuning, 0, at_image_size=False)


def true_risk(population, threshold):
    confidence, correct = population
    kept = confidence >= np.float32(threshold)
    return (kept & ~correct).mean(1).mean() / kept.mean(1).mean()


@pytest.mark.parametrize("images", [20, 40, 200])
def test_guarantee_fails_in_at_most_delta_of_the_fits_at_every_level(population, images):
    """Each run draws its own tuning images, grid and test images, as every fit does."""
    rng = np.random.default_rng(images)
    runs = 150
    failed, certified = dict.fromkeys(LEVELS, 0), dict.fromkeys(LEVELS, 0)
    for _ in range(runs):
        drawn = rng.integers(0, POPULATION, images + images // 2)
        tuning = tuning_on(population, drawn[images:])
        found = certified_on(population, drawn[:images], tuning)
        for level in found.thresholds:
            certified[level.max_error] += 1
            failed[level.max_error] += true_risk(population, level.threshold) > level.max_error
    allowed = DELTA * runs + 2 * np.sqrt(DELTA * (1 - DELTA) * runs)  # the simulation's own error
    assert max(failed.values()) <= allowed
    assert certified[0.3] >= 0.9 * runs  # the guarantee is given at all
    assert certified[0.01] < runs / 2


def test_no_stricter_level_is_certified_where_a_looser_one_was_not(population):
    rng = np.random.default_rng(2)
    tuning = tuning_on(population, rng.integers(0, POPULATION, 20))
    found = certified_on(population, rng.integers(0, POPULATION, 40), tuning)
    certified = [level.max_error for level in found.thresholds]

    assert certified == sorted(certified)
    assert max(found.uncertified) < min(certified)
    assert set(certified) | set(found.uncertified) == set(LEVELS)


def test_stricter_levels_accept_no_more(population):
    rng = np.random.default_rng(3)
    tuning = tuning_on(population, rng.integers(0, POPULATION, 100))
    found = certified_on(population, rng.integers(0, POPULATION, 200), tuning).thresholds
    thresholds = [level.threshold for level in found]

    assert len(found) >= 4
    assert thresholds == sorted(thresholds, reverse=True)
    assert [level.coverage for level in found] == sorted(level.coverage for level in found)


@pytest.mark.parametrize(("level", "needed"), [(0.01, 306), (0.05, 60), (0.1, 29), (0.3, 9)])
def test_reason_counts_the_images_that_suffice_without_an_error(level, needed):
    assert least_images(level) == needed
    few = Acceptance([0.5])
    for _ in range(needed - 1):
        few.add(torch.ones(4), torch.ones(4, dtype=torch.bool))
    found = certified_at_all_levels(few)

    assert level not in [certified.max_error for certified in found.thresholds]
    assert f"at least {needed} images" in found.uncertified[level]
    assert f"got {needed - 1}" in found.uncertified[level]


def test_reason_names_the_errors_where_images_suffice():
    wrong = Acceptance([0.5])
    for _ in range(100):
        wrong.add(torch.ones(4), torch.tensor([True, True, True, False]))
    found = certified_at_all_levels(wrong)

    assert "fewer errors than 20%" in found.uncertified[0.2]
    assert "got 25.00% on 100 images" in found.uncertified[0.2]


def test_nothing_is_certified_without_a_labelled_image():
    found = certified_at_all_levels(Acceptance([0.5]))

    assert found.thresholds == ()
    assert "got 0" in found.uncertified[0.3]
