import pytest
import torch

from app.calibration.base import FitContext
from app.calibration.dataset import InMemory, LabelledImage
from app.calibration.methods.ensemble_temperature import Ensemble
from app.calibration.methods.temperature import Temperature
from tests.factories.logits import nll, synthetic_set


def outliers(num_classes=3, pixels=20000):
    """Draw calibrated logits whose labels are random at 30 % of the pixels."""
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(pixels, num_classes, generator=rng)
    labels = torch.multinomial(logits.softmax(1), 1, generator=rng)[:, 0]
    random = torch.randint(num_classes, (pixels,), generator=rng)
    labels = torch.where(torch.rand(pixels, generator=rng) < 0.3, random, labels)
    return InMemory(num_classes, [LabelledImage(logits.T, labels)])


def test_weight_of_the_uniform_is_the_fraction_of_random_labels():
    calibrator = Ensemble(3)
    calibrator.fit(outliers(), FitContext())
    assert calibrator.weights.sum().item() == pytest.approx(1)
    assert calibrator.summary()["weight_uniform"] == pytest.approx(0.3, abs=0.03)


def test_weights_are_not_improved_on_a_grid():
    data = outliers()
    calibrator = Ensemble(3)
    calibrator.fit(data, FitContext())
    reached = nll(calibrator, data)
    for scaled in torch.linspace(0, 1, 11):
        for plain in torch.linspace(0, 1 - scaled.item(), 6):
            calibrator.weights.copy_(torch.stack([scaled, plain, 1 - scaled - plain]).clamp_min(0))
            assert reached <= nll(calibrator, data) + 1e-6


def test_never_worse_than_temperature():
    data = synthetic_set(4)
    ensemble, temperature = Ensemble(4), Temperature(4)
    ensemble.fit(data, FitContext())
    temperature.fit(data, FitContext())
    assert nll(ensemble, data) <= nll(temperature, data) + 1e-7
