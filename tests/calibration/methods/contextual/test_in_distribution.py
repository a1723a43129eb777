import pytest
import torch

from app.calibration.methods.contextual.features import compute_features
from app.calibration.methods.contextual.in_distribution import (
    MIN_IMAGES,
    InDistributionScore,
    image_statistics,
    leave_one_out,
)

CLASSES = 3


def draw(count, seed, mean=0.0):
    """Draw statistics of images: two means, and class fractions that sum to 1."""
    rng = torch.Generator().manual_seed(seed)
    means = mean + torch.randn(count, 2, generator=rng) * torch.tensor([0.1, 0.5])
    fractions = (torch.randn(count, CLASSES, generator=rng) * 0.5).softmax(1)
    return torch.cat([means, fractions], dim=1)


def fitted(count, seed=0):
    score = InDistributionScore(CLASSES)
    score.fit(draw(count, seed))
    return score


def test_statistics_by_hand():
    probabilities = torch.tensor([[0.9, 0.05, 0.05], [0.2, 0.2, 0.6]])
    features = compute_features(probabilities.log().T[None])
    found = image_statistics(features, CLASSES)[0]
    entropy = -(probabilities * probabilities.log()).sum(1).mean()
    odds = torch.tensor([0.9, 0.6]).logit().mean()
    assert found.tolist() == pytest.approx([entropy.item(), odds.item(), 0.5, 0, 0.5], abs=1e-5)


@pytest.mark.parametrize("count", [6, 20, 60])
def test_leave_one_out_distances_equal_brute_force(count):
    values = draw(count, 1).double()
    away = values - values.mean(0)
    ridge = 1e-3 * torch.eye(5).double()
    found = leave_one_out(away, away.T @ away / (count - 1), ridge)
    for index in range(count):
        others = torch.cat([values[:index], values[index + 1 :]])
        precision = torch.linalg.inv(torch.cov(others.T) + ridge)
        difference = values[index] - others.mean(0)
        expected = (difference @ precision @ difference).sqrt()
        assert found[index].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("count", [4, 8, 20, 200])
def test_fresh_images_of_the_same_kind_score_high(count):
    means = [fitted(count, seed)(draw(200, 99)).mean().item() for seed in range(8)]
    assert sum(means) / len(means) >= 0.85


@pytest.mark.parametrize("count", [4, 20, 200])
def test_images_of_another_kind_score_zero(count):
    assert fitted(count)(draw(50, 5, mean=4.0)).max() == 0


def test_score_falls_linearly_between_the_threshold_and_twice_it():
    score = InDistributionScore(CLASSES)
    score.precision[0, 0] = 1.0
    score.threshold.fill_(2.0)
    statistics = torch.zeros(4, 5)
    statistics[:, 0] = torch.tensor([0.0, 2.0, 3.0, 4.0])
    assert score(statistics).tolist() == pytest.approx([1, 1, 0.5, 0])


def test_every_image_scores_one_before_a_fit_and_after_a_fit_on_too_few():
    few = InDistributionScore(CLASSES)
    few.fit(draw(MIN_IMAGES - 1, 0))
    for score in (InDistributionScore(CLASSES), few):
        assert (score(draw(9, 1, mean=50.0)) == 1).all()


def test_identical_images_leave_the_score_finite():
    score = InDistributionScore(CLASSES)
    score.fit(draw(1, 0).repeat(30, 1))
    assert torch.isfinite(score(draw(9, 1))).all()
    score.fit(torch.zeros(30, 2 + CLASSES))
    assert score(torch.zeros(1, 2 + CLASSES)).item() == 1
