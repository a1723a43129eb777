import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from app.calibration.base import FitContext
from app.calibration.dataset import InMemory, LabelledImage
from app.calibration.methods.temperature import Temperature, add_derivatives
from app.errors import ArgumentError
from tests.factories.logits import nll, synthetic_set


def test_temperature_of_two_pixels_wrong_once_in_four():
    # Four pixels with margin 2, right three times: sigmoid(2/T) = 3/4, so T = 2/log 3.
    logits = torch.tensor([[2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    calibrator = Temperature(2)
    labels = torch.tensor([0, 0, 0, 1])
    calibrator.fit(InMemory(2, [LabelledImage(logits, labels)]), FitContext())
    assert calibrator.summary()["temperature"] == pytest.approx(2 / math.log(3))


def test_newton_agrees_with_grid():
    data = synthetic_set(5, images=2)
    calibrator = Temperature(5)
    calibrator.fit(data, FitContext())
    reached = nll(calibrator, data)
    for beta in torch.linspace(0.05, 3, 200):
        calibrator.beta.copy_(beta)
        assert reached <= nll(calibrator, data) + 1e-7


def test_temperature_of_perfect_and_wrong_models_is_bounded():
    logits, labels = torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])
    for low, high, given in ((0.05, 0.25, labels), (9.9e3, 1e4, 1 - labels)):
        calibrator = Temperature(2)
        calibrator.fit(InMemory(2, [LabelledImage(logits, given)]), FitContext())
        assert low <= calibrator.summary()["temperature"] <= high * 1.001


@pytest.mark.parametrize("pixels", [1, 511, 513, 2000])
@pytest.mark.parametrize("beta", [1e-4, 0.3, 1.0, 20.0])
@pytest.mark.parametrize("spread", [0.0, 3.0, 3e4])
def test_derivatives_are_those_of_the_loss(pixels, beta, spread):
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(5, pixels, generator=generator) + 1000
    labels = torch.randint(5, (pixels,), generator=generator)
    point = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    loss = cross_entropy(logits.T.double() * point, labels, reduction="sum")
    (slope,) = torch.autograd.grad(loss, point, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, point)

    sums = np.zeros(2)
    add_derivatives(logits.numpy(), labels.numpy(), beta, sums)

    assert sums[0] == pytest.approx(slope.item(), rel=1e-5, abs=1e-6 * pixels * (1 + spread))
    assert sums[1] == pytest.approx(curvature.item(), rel=1e-4, abs=1e-6 * pixels * (1 + spread**2))


@pytest.mark.parametrize("label", [3, 7, 100_000, -2])
def test_label_out_of_range_is_rejected(label):
    labels = torch.tensor([0, 1, label, 2])
    with pytest.raises(ArgumentError, match=f"expected labels below 3, got {label}"):
        Temperature(3).fit(InMemory(3, [LabelledImage(torch.randn(3, 4), labels)]), FitContext())
