import math
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch

from app.calibration.metrics.confidence_histogram import ConfidenceHistogram
from app.calibration.risk_control import (
    Acceptance,
    Floats,
    Plan,
    betting_p_values,
    certify,
    conformal_threshold,
    fixed_sequence,
    hoeffding_bentkus_p_values,
    pooled_losses,
    threshold_grid,
)
from app.errors import ArgumentError

ALPHA = DELTA = 0.1
THRESHOLDS = np.linspace(0.9, 0.4, 50).tolist()


def acceptance_of(
    accepted: Iterable[Floats], wrong: Iterable[Floats], thresholds: Sequence[float] = THRESHOLDS
) -> Acceptance:
    images = Acceptance(thresholds)
    images.accepted, images.wrong = list(accepted), list(wrong)
    return images


@pytest.fixture(scope="module")
def population():
    """Shares accepted and wrong, [images, thresholds], of images whose errors cluster.

    Some images are hard: there the model is as sure as ever but right less often.
    """
    rng = np.random.default_rng(0)
    confidence = np.sort(rng.beta(6, 1.5, (20_000, 64)).astype(np.float32), axis=1)
    hardness = rng.beta(0.3, 5.0, (20_000, 1))
    wrong = rng.uniform(size=confidence.shape) < 0.5 * (1 - confidence + hardness)
    kept = confidence[:, :, None] >= THRESHOLDS
    return kept.mean(1), (kept & wrong[:, :, None]).mean(1)


@pytest.mark.parametrize(("mean", "p_value"), [(0.05, 0.1565), (0.04, 0.0645)])
def test_hoeffding_bentkus_by_hand(mean, p_value):
    [found] = hoeffding_bentkus_p_values(np.array([mean]), 100, ALPHA)
    assert found == pytest.approx(p_value, abs=5e-5)


@pytest.mark.parametrize(("alpha", "images"), [(0.05, 45), (0.01, 230)])
def test_images_that_certify_without_an_error(alpha, images):
    assert (1 - alpha) ** images <= DELTA < (1 - alpha) ** (images - 1)
    assert hoeffding_bentkus_p_values(np.zeros(1), images, alpha)[0] <= DELTA


@pytest.mark.parametrize("errors", [0, 1, 7, 29, 30])
def test_hoeffding_bentkus_agrees_with_its_formula(errors):
    n, alpha = 30, 0.3
    tail = sum(math.comb(n, k) * alpha**k * (1 - alpha) ** (n - k) for k in range(errors + 1))
    a = min(errors / n, alpha)
    entropy = (a * math.log(a / alpha) if a else 0) + (1 - a) * math.log((1 - a) / (1 - alpha))
    expected = min(math.exp(-n * entropy), math.e * tail, 1)
    [found] = hoeffding_bentkus_p_values(np.array([errors / n]), n, alpha)
    assert found == pytest.approx(expected)


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


def test_betting_never_wins_on_certain_loss():
    assert betting_p_values(np.ones((9, 2)), ALPHA, DELTA).tolist() == [1, 1]


@pytest.mark.parametrize("size", [1.0, 0.5])
def test_null_at_the_edge_is_rejected_at_most_delta_of_the_time(size):
    # Losses of 0 or `size` whose mean is alpha exactly, in 4,000 sets of 200 images.
    losses = size * (np.random.default_rng(0).uniform(size=(200, 4000)) < ALPHA / size)
    betting = (betting_p_values(losses, ALPHA, DELTA) <= DELTA).mean()
    hoeffding = (hoeffding_bentkus_p_values(losses.mean(0), 200, ALPHA) <= DELTA).mean()
    assert 0.02 < betting <= DELTA  # not idle either
    assert hoeffding <= DELTA


@pytest.mark.parametrize(
    ("p_values", "starts", "last"),
    [
        ([0.01, 0.02, 0.5, 0.01], 1, 1),
        ([0.5, 0.01, 0.01, 0.01], 1, None),
        ([0.5, 0.01, 0.01, 0.01], 2, 3),
        ([0.01, 0.01, 0.5, 0.01], 2, 1),
        ([0.01, 0.01], 1, 1),
    ],
)
def test_fixed_sequence_stops_at_the_first_failure(p_values, starts, last):
    assert fixed_sequence(np.array(p_values), 0.05, starts) == last


def test_pooled_loss_is_at_most_alpha_where_the_risk_is(population):
    accepted, wrong = population
    losses = pooled_losses(accepted, wrong, ALPHA)
    assert losses.min() >= 0
    assert losses.max() <= 1
    risk = wrong.mean(0) / accepted.mean(0)
    assert ((losses.mean(0) <= ALPHA) == (risk <= ALPHA)).all()


def test_acceptance_counts_shares():
    images = Acceptance([0.8, 0.5])
    images.add(torch.tensor([0.9, 0.8, 0.6, 0.2]), torch.tensor([True, False, False, True]))
    images.add(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    assert [row.tolist() for row in images.accepted] == [[0.5, 0.75]]
    assert [row.tolist() for row in images.wrong] == [[0.25, 0.5]]


def test_certificate_tells_what_was_measured():
    accepted, wrong = np.full((300, 2), [0.5, 1.0]), np.full((300, 2), [0.005, 0.4])
    certificate = certify(acceptance_of(accepted, wrong, [0.8, 0.5]), Plan(ALPHA, DELTA))
    assert certificate.threshold == 0.8
    assert certificate.coverage == 0.5
    assert certificate.risk == pytest.approx(0.01)
    assert (certificate.alpha, certificate.delta, certificate.images) == (ALPHA, DELTA, 300)


def test_nothing_certified_abstains_everywhere():
    certificate = certify(acceptance_of(np.ones((300, 50)), np.ones((300, 50))), Plan(0.1, 0.1))
    assert certificate.threshold is None
    assert certificate.coverage == 0
    assert math.isnan(certificate.risk)


@pytest.mark.parametrize(("images", "threshold"), [(25, None), (40, THRESHOLDS[-1])])
def test_few_images_certify_less_and_not_wrongly(images, threshold):
    flawless = acceptance_of(np.ones((images, 50)), np.zeros((images, 50)))
    assert certify(flawless, Plan(ALPHA, DELTA)).threshold == threshold


def test_wrong_arguments_are_refused():
    with pytest.raises(ArgumentError, match="alpha and delta"):
        Plan(0.0, 0.1)
    with pytest.raises(ArgumentError, match="falling thresholds"):
        Acceptance([0.5, 0.8])
    with pytest.raises(ArgumentError, match=r"expected 1\.\.50 starts, got 51"):
        certify(acceptance_of([], []), Plan(ALPHA, DELTA, starts=51))
    with pytest.raises(ArgumentError, match="expected at least 1 labelled image, got 0"):
        certify(acceptance_of([], []), Plan(ALPHA, DELTA, risk="image_mean"))
    with pytest.raises(ArgumentError, match="at least 1 labelled image, got 0"):
        conformal_threshold(acceptance_of([], []), ALPHA)


def test_conformal_threshold_by_hand():
    # (sum + 1) / 10 at each threshold: .1, .19, .28
    images = acceptance_of(np.ones((9, 3)), np.full((9, 3), [0.0, 0.1, 0.2]), [0.9, 0.8, 0.7])
    assert conformal_threshold(images, 0.2) == 0.8
    assert conformal_threshold(images, 0.1) == 0.9
    assert conformal_threshold(images, 0.05) is None


def test_threshold_grid_goes_from_half_to_full_coverage():
    confidence = torch.linspace(0.2, 0.99, 1000)
    grid = threshold_grid(ConfidenceHistogram().add(confidence, confidence > 0), points=6)
    fractions = Acceptance(grid).add(confidence, confidence > 0).accepted[0]
    assert fractions.tolist() == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], abs=0.002)


@pytest.mark.parametrize(
    ("plan", "least_coverage"),
    [
        (Plan(ALPHA, DELTA), 0.6),
        (Plan(ALPHA, DELTA, starts=3), 0.4),
        (Plan(ALPHA, DELTA, risk="image_mean"), 0.6),
        (Plan(ALPHA, DELTA, risk="image_mean", p_value="hoeffding_bentkus"), 0.4),
    ],
    ids=["pooled", "pooled, 3 starts", "image mean", "image mean, Hoeffding-Bentkus"],
)
def test_risk_exceeds_alpha_in_at_most_delta_of_the_draws(population, plan, least_coverage):
    accepted, wrong = population
    risk = wrong.mean(0) / accepted.mean(0)
    if plan.risk == "image_mean":
        risk = np.divide(wrong, accepted, out=np.zeros_like(wrong), where=accepted > 0).mean(0)
    assert risk[0] < ALPHA < risk[-1]  # there is something to decide
    truth = dict(zip(THRESHOLDS, risk, strict=True))
    rng = np.random.default_rng(1)
    violations, coverages = 0, []
    for _ in range(200):
        drawn = rng.integers(0, len(accepted), 400)
        certificate = certify(acceptance_of(accepted[drawn], wrong[drawn]), plan)
        coverages.append(certificate.coverage)
        violations += certificate.threshold is not None and truth[certificate.threshold] > ALPHA
    assert violations / 200 <= DELTA
    assert np.mean(coverages) >= least_coverage


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


def test_frames_of_a_group_are_one_draw():
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


def test_images_without_a_group_stay_apart():
    images = Acceptance([0.5])
    for _ in range(3):
        images.add(torch.tensor([0.9]), torch.tensor([True]))
    assert len(images.by_group().accepted) == 3
