import pytest
import torch

from app.calibration.base import FitContext
from app.calibration.dataset import IGNORE, InMemory, LabelledImage
from app.calibration.methods.selective import Selective
from app.errors import ArgumentError
from tests.factories.logits import relabelled, synthetic_set, table


def two_kinds(images=8, pixels=600):
    """Draw pixels whose predictions of class 0 are correct, and those of class 1 in 50 %."""
    rng = torch.Generator().manual_seed(0)
    made = []
    for _ in range(images):
        predicted = torch.randint(2, (pixels,), generator=rng)
        logits = torch.randn(3, pixels, generator=rng) * 0.1
        logits[predicted, torch.arange(pixels)] += 4
        labels = torch.where(torch.rand(pixels, generator=rng) < 0.5, predicted, 2)
        made.append(LabelledImage(logits, torch.where(predicted == 0, 0, labels)))
    return InMemory(3, made)


def fitted(data, **options):
    calibrator = Selective(data.num_classes, **options)
    calibrator.fit(data, FitContext())
    return calibrator.eval()


def test_selector_predicts_which_pixels_are_misclassified():
    data = two_kinds()
    logits, _ = table(data)
    selector = fitted(data).selector
    chance = selector.calibrated(selector(logits))[:, 0].sigmoid()
    reliable = logits.argmax(1) == 0
    assert chance[reliable].mean() > 0.95
    assert chance[~reliable].mean().item() == pytest.approx(0.5, abs=0.1)


def test_mispredicted_pixels_get_a_higher_temperature():
    summary = fitted(two_kinds()).summary()
    assert summary["t_ok"] < 1 < summary["t_mis"]


def test_soft_mixing_lies_between_the_two_temperatures():
    calibrator = fitted(synthetic_set(4))
    logits = 4 * torch.randn(200, 4)
    bounds = torch.stack(
        [
            (logits * calibrator.beta_ok).softmax(1).amax(1),
            (logits * calibrator.beta_mis).softmax(1).amax(1),
        ]
    )
    confidence = calibrator(logits).exp().amax(1)
    assert (confidence >= bounds.amin(0) - 1e-6).all()
    assert (confidence <= bounds.amax(0) + 1e-6).all()


def test_hard_mixing_takes_one_of_the_two():
    calibrator = fitted(two_kinds(), mixing="hard")
    logits = table(two_kinds())[0][:200]
    predicted_correct = calibrator.selector(logits)[:, 0] > 0
    beta = torch.where(predicted_correct, calibrator.beta_ok, calibrator.beta_mis)[:, None]
    assert torch.allclose(calibrator(logits), (logits * beta).log_softmax(1), atol=1e-5)


@pytest.mark.parametrize(("given", "kept"), [(2.0, 2.0), (1e10, 1e4)])
def test_fixed_temperature_of_mispredicted_pixels(given, kept):
    summary = fitted(two_kinds(), mispredicted=given).summary()
    assert summary == {"t_ok": 1.0, "t_mis": pytest.approx(kept)}


def test_without_mispredictions_there_is_one_temperature():
    data = relabelled(
        synthetic_set(4), lambda logits, labels: logits.argmax(0).where(labels >= 0, IGNORE)
    )
    summary = fitted(data).summary()
    assert summary["t_ok"] == summary["t_mis"] < 1


def test_unknown_mixing_is_rejected():
    with pytest.raises(ArgumentError, match="soft or hard"):
        Selective(3, mixing="firm")
