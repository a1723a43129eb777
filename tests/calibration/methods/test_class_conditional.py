import pytest
import torch

from app.calibration.base import FitContext
from app.calibration.dataset import InMemory, LabelledImage
from app.calibration.methods.class_conditional import CDC, CMSap, CMSop
from tests.factories.logits import nll, synthetic_set


def fitted(calibrator, data):
    calibrator.fit(data, FitContext())
    return calibrator


def test_margins_and_gaps_are_the_same_for_two_classes():
    data = synthetic_set(2)
    one, other = fitted(CMSap(2), data), fitted(CMSop(2), data)
    assert torch.allclose(one.theta, other.theta)
    logits = 3 * torch.randn(20, 2)
    assert torch.allclose(one(logits), other(logits))


def test_margins_by_hand():
    calibrator = CMSap(3)
    # Expert 1 doubles the margin of class 0 and adds 0.5 to that of class 2.
    calibrator.theta[1] = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.5]])
    result = calibrator(torch.tensor([[1.0, 3.0, 2.0], [3.0, 1.0, 2.0]]))
    assert torch.allclose(result[0], torch.tensor([-4.0, 0.0, -1.5]).log_softmax(0))
    assert torch.allclose(result[1], torch.tensor([3.0, 1.0, 2.0]).log_softmax(0), atol=1e-5)


def test_gaps_by_hand():
    calibrator = CMSop(3)
    # Ranked 1, 2, 0 with gaps 1 and 1: the first becomes 3, the second 1 + 0.5 * 1.
    calibrator.theta[1] = torch.tensor([[3.0, 0.0, 0.0], [0.5, 1.0, 0.0]])
    result = calibrator(torch.tensor([[1.0, 3.0, 2.0]]))[0]
    assert torch.allclose(result, torch.tensor([-4.5, 0.0, -3.0]).log_softmax(0))


def test_experts_fit_the_pixels_of_their_class():
    # Predictions of class 0 are correct in 50 %, those of class 1 in 90 % of the pixels.
    logits = torch.tensor([[4.0, 0.0]] * 2000 + [[0.0, 4.0]] * 2000).T
    labels = torch.tensor([0, 1] * 1000 + [1] * 1800 + [0] * 200)
    data = InMemory(2, [LabelledImage(logits, labels)])
    for kind in (CDC, CMSap, CMSop):
        given = fitted(kind(2), data)(torch.tensor([[4.0, 0.0], [0.0, 4.0]])).exp()
        assert given[0].tolist() == pytest.approx([0.5, 0.5], abs=0.02)
        assert given[1].tolist() == pytest.approx([0.1, 0.9], abs=0.01)


@pytest.mark.parametrize("kind", [CDC, CMSap, CMSop])
def test_expert_without_pixels_stays_identity(kind):
    data = synthetic_set(4)
    images = [LabelledImage(z, y.where(z.argmax(0) != 3, -1)) for z, y, _ in data.images]
    calibrator = fitted(kind(4), InMemory(4, images))
    assert torch.equal(calibrator.theta[3], calibrator.identity()[3].float())
    assert calibrator.summary() == {"fitted_experts": 3.0}


def test_expert_with_too_few_pixels_stays_identity():
    assert fitted(CDC(4, min_pixels=10**6), synthetic_set(4)).summary() == {"fitted_experts": 0.0}


@pytest.mark.parametrize("kind", [CDC, CMSap, CMSop])
def test_auto_requires_a_pixel_for_each_parameter(kind):
    assert kind.required_pixels(5) == kind(5).theta.numel()


def test_positive_entries_are_kept():
    calibrator = fitted(CMSop(4), synthetic_set(4))
    assert calibrator.theta.min() > 0


@pytest.mark.parametrize("kind", [CMSap, CMSop])
def test_bounded_fit_is_not_improved_by_any_single_change(kind):
    data = synthetic_set(3)
    calibrator = fitted(kind(3, pull=1e-3), data)
    reached = nll(calibrator, data)
    for place in torch.nonzero(calibrator.theta > 0.05):
        for factor in (0.97, 1.03):
            moved = kind(3)
            moved.theta.copy_(calibrator.theta)
            moved.theta[tuple(place)] *= factor
            assert nll(moved, data) >= reached - 1e-6
