import math

import pytest
import torch

from app.calibration.base import FitContext
from app.calibration.temperature import Temperature
from app.calibration.validation import InMemory, LabelledImage
from tests.calibration.synthetic import nll, synthetic_set


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


def test_perfect_and_hopeless_models_stay_in_range():
    logits, labels = torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])
    for low, high, given in ((0.05, 0.25, labels), (9.9e3, 1e4, 1 - labels)):
        calibrator = Temperature(2)
        calibrator.fit(InMemory(2, [LabelledImage(logits, given)]), FitContext())
        assert low <= calibrator.summary()["temperature"] <= high * 1.001
