import math
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch

from app.calibration.metrics.confidence_histogram import ConfidenceHistogram
from app.calibration.risk_control import (
    Acceptance,
    Floats,
    betting_p_values,
    certify,
    fixed_sequence,
    pooled_losses,
    threshold_grid,
)
from app.errors import ArgumentError
from app.schemas.calibrator import CertifiedThreshold

ALPHA = DELTA = 0.1
SEED = 0
THRESHOLDS = np.linspace(0.9, 0.4, 50).tolist()


def acceptance_of(
    accepted: Iterable[Floats], wrong: Iterable[Floats], thresholds: Sequence[float] = THRESHOLDS
) -> Acceptance:
    images = Acceptance(thresholds)
    images.accepted, images.wrong = list(accepted), list(wrong)
    return images


@pytest.fixture(scope="module")
def population():
    """Fractions accepted and wrong, [images, thresholds], of images whose errors cluster.

    On some images the model is wrong more often at the same confidence.
    """
    rng = np.random.default_rng(0)
    confidence = np.sort(rng.beta(6, 1.5, (20_000, 64)).astype(np.float32), axis=1)
    hardness = rng.beta(0.3, 5.0, (20_000, 1))
    wrong = rng.uniform(size=confidence.shape) < 0.5 * (1 - confidence + hardness)
    kept = confidence[:, :, None] >= THRESHOLDS
    return kept.mean(1), (kept & wrong[:, :, None]).mean(1)


def test_betting_by_hand():
    # Both stakes are capped at .75 / .9, and each bet on a loss of 0 wins alpha times that.
    [found] = betting_p_values(np.zeros((2, 1)), ALPHA, DELTA)
    assert found == pytest.approx(1 / (1 + 0.1 * 0.75 / 0.9) ** 2)


def test_betting_agrees_with_a_loop():
    losses = np.random.default_rng(0).beta(0.3, 6, 300)
    capital = highest = 1.0
    total, squares, variance = ALPHA, 0.25, 0.25
    for rank, loss in enumerate(losses, start=1):
        stake = min(math.sqrt(2 * math.log(10) / (300 * variance)), 0.75 / 0.9)
        capital *= 1 + stake * (ALPHA - loss)
        highest = max(highest, capital)
        total += loss
        squares += (loss - total / (rank + 1)) ** 2
        variance = squares / (rank + 1)
    [found] = betting_p_values(losses[:, None], ALPHA, DELTA)
    assert found == pytest.approx(1 / highest)
    assert found < 1


def test_betting_rejects_nothing_on_certain_loss():
    assert betting_p_values(np.ones((9, 2)), ALPHA, DELTA).tolist() == [1, 1]


@pytest.mark.parametrize("size", [1.0, 0.5])
def test_null_at_the_edge_is_rejected_at_most_delta_of_the_time(size):
    # Losses of 0 or `size` whose mean is alpha exactly, in 4,000 sets of 200 images.
    losses = size * (np.random.default_rng(0).uniform(size=(200, 4000)) < ALPHA / size)
    betting = (betting_p_values(losses, ALPHA, DELTA) <= DELTA).mean()
    assert 0.02 < betting <= DELTA  # the test has power, too


@pytest.mark.parametrize(
    ("p_values", "last"),
    [
        ([0.01, 0.02, 0.5, 0.01], 1),
        ([0.5, 0.01, 0.01, 0.01], None),
        ([0.01, 0.01], 1),
    ],
)
def test_fixed_sequence_stops_at_the_first_failure(p_values, last):
    assert fixed_sequence(np.array(p_values), 0.05) == last


def test_pooled_loss_is_at_most_alpha_where_the_risk_is(population):
    accepted, wrong = population
    losses = pooled_losses(accepted, wrong, ALPHA)
    assert losses.min() >= 0
    assert losses.max() <= 1
    risk = wrong.mean(0) / accepted.mean(0)
    assert ((losses.mean(0) <= ALPHA) == (risk <= ALPHA)).all()


def test_acceptance_holds_fractions_of_the_pixels():
    images = Acceptance([0.8, 0.5])
    images.add(torch.tensor([0.9, 0.8, 0.6, 0.2]), torch.tensor([True, False, False, True]))
    images.add(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    assert [row.tolist() for row in images.accepted] == [[0.5, 0.75]]
    assert [row.tolist() for row in images.wrong] == [[0.25, 0.5]]


def test_certified_threshold_reports_what_was_measured():
    accepted, wrong = np.full((300, 2), [0.5, 1.0]), np.full((300, 2), [0.005, 0.4])
    found = certify(acceptance_of(accepted, wrong, [0.8, 0.5]), ALPHA, DELTA, SEED)
    assert found is not None
    assert found.error == pytest.approx(0.01)
    assert found == CertifiedThreshold(ALPHA, 0.8, DELTA, 0.5, found.error, 300)


@pytest.mark.parametrize("images", [0, 300])
def test_no_threshold_is_certified_on_wrong_pixels_or_without_images(images):
    wrong = acceptance_of(np.ones((images, 50)), np.ones((images, 50)))
    assert certify(wrong, ALPHA, DELTA, SEED) is None


def test_few_images_certify_less():
    certified = []
    for count in (25, 40):
        flawless = acceptance_of(np.ones((count, 50)), np.zeros((count, 50)))
        certified.append(certify(flawless, ALPHA, DELTA, SEED))
    assert certified == [None, CertifiedThreshold(ALPHA, THRESHOLDS[-1], DELTA, 1, 0, 40)]


@pytest.mark.parametrize("thresholds", [[0.5, 0.8], [0.5, 0.5], []])
def test_thresholds_must_fall_strictly(thresholds):
    with pytest.raises(ArgumentError, match="falling thresholds"):
        Acceptance(thresholds)


def test_threshold_grid_has_even_steps_of_coverage():
    confidence = torch.linspace(0.2, 0.99, 5000)
    grid = threshold_grid(ConfidenceHistogram().add(confidence, confidence > 0))
    fractions = Acceptance(grid).add(confidence, confidence > 0).accepted[0]
    assert fractions.tolist() == pytest.approx(np.linspace(0.02, 1, 50).tolist(), abs=0.002)


def test_risk_exceeds_alpha_in_at_most_delta_of_the_draws(population):
    accepted, wrong = population
    risk = wrong.mean(0) / accepted.mean(0)
    assert risk[0] < ALPHA < risk[-1]  # there is something to decide
    truth = dict(zip(THRESHOLDS, risk, strict=True))
    rng = np.random.default_rng(1)
    violations, coverages = 0, []
    for _ in range(200):
        drawn = rng.integers(0, len(accepted), 400)
        found = certify(acceptance_of(accepted[drawn], wrong[drawn]), ALPHA, DELTA, SEED)
        coverages.append(found.coverage if found else 0)
        violations += found is not None and truth[found.threshold] > ALPHA
    assert violations / 200 <= DELTA
    assert np.mean(coverages) >= 0.6


def test_measured_risk_alone_exceeds_alpha_far_more_often(population):
    accepted, wrong = population
    risk = wrong.mean(0) / accepted.mean(0)
    rng = np.random.default_rng(1)
    violations = 0
    for _ in range(200):
        drawn = rng.integers(0, len(accepted), 400)
        measured = wrong[drawn].mean(0) / accepted[drawn].mean(0)
        chosen = np.flatnonzero(measured <= ALPHA)[-1]
        violations += risk[chosen] > ALPHA
    assert violations / 200 > 2 * DELTA


def test_images_of_a_group_are_averaged():
    images = Acceptance([0.8, 0.5])
    for group, confidence, correct in (
        (4, [0.9, 0.9, 0.6, 0.1], [1, 0, 1, 1]),
        (4, [0.9, 0.1], [1, 1]),
        (2, [0.6, 0.6], [0, 1]),
    ):
        images.add(torch.tensor(confidence), torch.tensor(correct, dtype=torch.bool), group)
    groups = images.by_group()
    # group 4: accepted (1/2 + 1/2)/2, (3/4 + 1/2)/2; wrong (1/4 + 0)/2 at both thresholds
    assert np.allclose(np.stack(groups.accepted), np.array([[1 / 2, 5 / 8], [0, 1]]))
    assert np.allclose(np.stack(groups.wrong), np.array([[1 / 8, 1 / 8], [0, 1 / 2]]))


def test_images_without_a_group_are_groups_by_themselves():
    images = Acceptance([0.5])
    for _ in range(3):
        images.add(torch.tensor([0.9]), torch.tensor([True]))
    assert len(images.by_group().accepted) == 3
