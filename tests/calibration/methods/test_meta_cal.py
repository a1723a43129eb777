import math

import numpy as np
import pytest
import torch

from app.calibration.base import FitContext
from app.calibration.methods.meta_cal import MetaCal, entropy, eta_for_accuracy, eta_for_miscoverage
from app.errors import ArgumentError
from tests.factories.logits import synthetic_set, table


def test_entropy_where_probabilities_vanish():
    assert entropy(torch.tensor([[6e4, 0.0]])).item() == 0
    assert entropy(torch.zeros(1, 2)).item() == pytest.approx(math.log(2))


def test_eta_takes_the_higher_edge_of_the_quantile():
    assert eta_for_miscoverage(np.array([5.0, 4.0, 1.0, 0.0]), 0.1) == 2
    assert eta_for_miscoverage(np.array([5.0, 4.0, 1.0, 0.0]), 0.05) == 3


def test_miscoverage_bounds_the_rejected_correct_pixels():
    data = synthetic_set(4, images=10)
    calibrator = MetaCal(4, miscoverage=0.2)
    calibrator.fit(data, FitContext())
    logits, labels = table(data)
    correct = logits.argmax(1) == labels
    given_up = (entropy(logits)[:, 0] >= calibrator.eta)[correct].float().mean().item()
    assert given_up == pytest.approx(0.2, abs=0.05)


def test_rejected_pixels_are_uniform_and_keep_their_label():
    calibrator = MetaCal(4)
    calibrator.fit(synthetic_set(4), FitContext())
    result = calibrator(torch.tensor([[0.0, 0.0, 0.1, 0.0], [9.0, 0.0, 0.0, 0.0]])).exp()
    assert result[0].tolist() == pytest.approx([0.25] * 4, abs=1e-5)
    assert result[0].argmax() == 2
    assert result[1, 0] > 0.5


def test_rejected_pixels_of_a_large_temperature():
    calibrator = MetaCal(2, rejected_temperature=10.0)
    calibrator.eta.fill_(0.6)  # nats: between the entropies of the two pixels
    result = calibrator(torch.tensor([[0.0, 0.5], [0.0, 5.0]])).exp()
    assert result[0, 1].item() == pytest.approx(1 / (1 + math.exp(-0.05)), abs=1e-5)
    assert result[1, 1].item() == pytest.approx(1 / (1 + math.exp(-5)))


def test_rejected_pixels_of_the_largest_temperature_keep_their_label():
    calibrator = MetaCal(4, rejected_temperature=1e9)
    assert calibrator.beta_rejected.item() == pytest.approx(1e-4)
    calibrator.eta.fill_(0)
    logits = torch.tensor([[0.0, 0.0, 0.001, 0.0], [0.0, 2e-6, 1e-6, 0.0]])
    assert calibrator(logits).argmax(1).tolist() == [2, 1]


def test_fit_keeps_the_rejected_temperature():
    plain, large = MetaCal(4), MetaCal(4, rejected_temperature=10.0)
    for calibrator in (plain, large):
        calibrator.fit(synthetic_set(4), FitContext())
    assert "rejected_temperature" not in plain.summary()
    assert large.summary() == pytest.approx({**plain.summary(), "rejected_temperature": 10})


def test_accuracy_variant_reaches_the_accuracy():
    data = synthetic_set(4, images=10)
    logits, labels = table(data)
    correct = logits.argmax(1) == labels
    wanted = correct.float().mean().item() + 0.1
    calibrator = MetaCal(4, accuracy=wanted)
    calibrator.fit(data, FitContext())
    accepted = entropy(logits)[:, 0] < calibrator.eta
    assert correct[accepted].float().mean().item() == pytest.approx(wanted, abs=0.05)


def test_unreachable_accuracy_raises():
    half = np.full((2, 100), 10.0)
    with pytest.raises(ArgumentError, match="expected an accuracy in"):
        eta_for_accuracy(half, 0.9)
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        MetaCal(4, accuracy=1.0)
