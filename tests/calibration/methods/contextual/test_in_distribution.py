"""How like those of a fit an image is."""

import pytest
import torch

from app.calibration.methods.contextual.in_distribution import LEAST, InDistributionScore


def test_before_a_fit_everything_is_familiar():
    known = InDistributionScore(3)
    assert not known.fitted
    assert known(1e6 * torch.randn(5, 3)).tolist() == [1] * 5


def test_distances_by_hand():
    """Figures 0 to 4 and their doubles: mean 2, deviation sqrt 2; three in four lie within 2."""
    known = InDistributionScore(2)
    column = torch.arange(5.0)
    known.learn(torch.stack([column, 2 * column], dim=1))
    assert known.fitted
    assert known.mean.tolist() == [2, 4]
    assert known.std.tolist() == pytest.approx([2**0.5, 8**0.5])
    assert known.threshold.item() == pytest.approx(2 / 2**0.5)
    along = torch.tensor([0.0, 2.0, 2.5, 3.0, 9.0])  # from the usual, one way or the other
    figures = torch.stack([2 + along, 4 - 2 * along], dim=1)
    assert known(figures).tolist() == pytest.approx([1, 1, 0.5, 0, 0])


def test_what_never_changed_and_what_came_alone_leaves_nothing_else_familiar():
    known = InDistributionScore(2)
    known.learn(torch.ones(7, 2))
    assert known.threshold.item() == pytest.approx(LEAST)
    assert known(torch.tensor([[1.0, 1.0], [1.0, 1.001]])).tolist() == [1, 0]
    assert known(torch.tensor([[1.0, 1.0], [2.0, 1.0]])).tolist() == [1, 0]
    known = InDistributionScore(2, least_std=0.5, least_threshold=1.0)
    known.learn(torch.ones(1, 2))
    assert known(torch.tensor([[1.0, 1.0], [1.5, 1.5], [1.625, 1.625], [2.0, 2.0]])).tolist() == [
        1, 1, 0.5, 0,
    ]  # fmt: skip
    known = InDistributionScore(2)
    known.learn(torch.ones(1, 2))
    assert known(torch.tensor([[1.0, 1.0], [2.0, 1.0]])).tolist() == [1, 0]
