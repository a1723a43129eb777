import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from app.calibration.base import FitContext
from app.calibration.dataset import InMemory, LabelledImage
from app.calibration.methods.temperature import Temperature, add_derivatives
from app.errors import ArgumentError
from tests.factories.logits import nll, synthetic_set, table

# Four pixels with margin 2, right three times: sigmoid(2 beta) = 3/4, so beta = log(3) / 2.
THREE_OF_FOUR = LabelledImage(
    torch.tensor([[2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), torch.tensor([0, 0, 0, 1])
)


def inverse_temperature(images):
    calibrator = Temperature(len(images[0].logits))
    calibrator.fit(InMemory(len(images[0].logits), images), FitContext())
    return calibrator.beta.item()


def test_temperature_of_many_images_wrong_once_in_four():
    assert inverse_temperature([THREE_OF_FOUR] * 2000) == pytest.approx(math.log(3) / 2, rel=1e-3)


def test_prior_counts_like_one_pixel_in_n():
    # Four pixels: slope 2 sigmoid(2 beta) - 3/2 of the loss, (beta - 1) / (4 / 4) of the prior.
    beta = inverse_temperature([THREE_OF_FOUR])
    assert 2 / (1 + math.exp(-2 * beta)) - 1.5 + (beta - 1) == pytest.approx(0, abs=1e-6)


def test_image_counts_as_a_hundred_pixels_at_most():
    logits, labels = THREE_OF_FOUR.logits.repeat(1, 25), THREE_OF_FOUR.labels.repeat(25)
    hundred = inverse_temperature([LabelledImage(logits, labels)])
    thousand = inverse_temperature([LabelledImage(logits.repeat(1, 10), labels.repeat(10))])
    spread = inverse_temperature([LabelledImage(logits, labels)] * 10)
    assert thousand == pytest.approx(hundred)
    assert math.log(3) / 2 < spread < hundred < 1


@pytest.mark.parametrize("sharpness", [1.0, 2.0, 3.0])
def test_prior_moves_temperature_of_twenty_images_by_less_than_half_a_percent(sharpness):
    data = synthetic_set(5, images=20, side=20, sharpness=sharpness)
    logits, labels = table(data)
    beta = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([beta], max_iter=50, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = cross_entropy(logits.double() * beta, labels)
        value.backward()
        return value

    optimiser.step(loss)
    assert inverse_temperature(data.images) == pytest.approx(beta.item(), rel=5e-3)


@pytest.mark.parametrize("margin", [1.0, 3.0, 8.0])
def test_temperature_of_twenty_images_without_an_error_is_moderate(margin):
    logits = margin * torch.rand(100, generator=torch.Generator().manual_seed(0))
    image = LabelledImage(torch.stack([logits, -logits]), torch.zeros(100, dtype=torch.int64))
    assert 0.15 < 1 / inverse_temperature([image] * 20) < 1


def test_temperature_of_a_wrong_model_is_bounded():
    logits, labels = torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([1, 0])
    wrong = [LabelledImage(logits, labels)] * 100
    assert inverse_temperature(wrong) == pytest.approx(1e-4, rel=1e-3)


def test_newton_agrees_with_grid():
    data = synthetic_set(5, images=2)
    calibrator = Temperature(5)
    calibrator.fit(data, FitContext())
    reached = nll(calibrator, data)
    for beta in torch.linspace(0.05, 3, 200):
        calibrator.beta.copy_(beta)
        assert reached <= nll(calibrator, data) + 1e-7


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
