import pytest
import torch

from app.calibration.base import FitContext
from app.calibration.dataset import InMemory, LabelledImage
from app.calibration.methods.local_temperature import LocalTemperature
from app.calibration.registry import build
from app.errors import ArgumentError
from tests.factories.logits import nll


def test_unfitted_temperature_is_one():
    assert torch.allclose(
        LocalTemperature(3).temperatures(torch.randn(1, 3, 5, 5)), torch.ones(1, 1, 5, 5)
    )


@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_maps_smaller_than_the_kernel(size):
    assert LocalTemperature(3)(torch.randn(1, 3, *size)).shape == (1, 3, *size)


def test_tables_are_rejected():
    with pytest.raises(ArgumentError, match="maps"):
        LocalTemperature(3)(torch.randn(5, 3))
    data = InMemory(3, [LabelledImage(torch.randn(3, 9), torch.arange(9) % 3)])
    with pytest.raises(ArgumentError, match="two dimensions"):
        LocalTemperature(3).fit(data, FitContext())


def test_temperature_is_higher_where_neighbours_disagree():
    # Left halves are uniform and correct; right halves are random and correct in 50 %.
    rng = torch.Generator().manual_seed(0)
    images = []
    for _ in range(10):
        predicted = torch.zeros(16, 32, dtype=torch.int64)
        predicted[:, 16:] = torch.randint(2, (16, 16), generator=rng)
        labels = predicted.clone()
        labels[:, 16:] = torch.randint(2, (16, 16), generator=rng)
        logits = 5.0 * torch.stack([predicted == 0, predicted == 1]).float()
        images.append(LabelledImage(logits, labels))
    data = InMemory(2, images)
    calibrator = LocalTemperature(2)
    before = nll(calibrator, data)
    calibrator.fit(data, FitContext())
    assert nll(calibrator, data) < before - 0.1
    temperatures = calibrator.temperatures(images[0].logits[None])[0, 0].detach()
    assert temperatures[:, 22:].mean() > 1.5 * temperatures[:, :10].mean()


@pytest.mark.parametrize("method", ["lts", "selective+lts"])
def test_receptive_radius_bounds_the_influence_of_a_pixel(method):
    torch.manual_seed(0)
    calibrator = build(method, 3)
    for value in calibrator.state_dict().values():
        value.add_(0.1 * torch.randn(value.shape))
    receptive_radius = calibrator.invariances.receptive_radius
    assert receptive_radius > 0
    logits = torch.randn(1, 3, 31, 31)
    changed = logits.clone()
    changed[0, 0, 15, 15] += 9
    with torch.inference_mode():
        influenced = (calibrator(changed) != calibrator(logits)).any(1)[0]
    rows, columns = (axis.tolist() for axis in influenced.nonzero(as_tuple=True))
    assert (
        (min(rows), max(rows))
        == (min(columns), max(columns))
        == (15 - receptive_radius, 15 + receptive_radius)
    )


def red_random(informative, images=10, side=16):
    """Build maps of two classes; where the image is red, the label is random.

    Unless `informative`, the images are uniformly grey.
    """
    rng = torch.Generator().manual_seed(0)
    made = []
    for _ in range(images):
        predicted = torch.randint(2, (side, side), generator=rng)
        red = torch.zeros(side, side, dtype=torch.bool)
        red[:, : side // 2] = True
        red = red if torch.rand((), generator=rng) < 0.5 else ~red
        labels = torch.where(red, torch.randint(2, (side, side), generator=rng), predicted)
        image = torch.full((3, side, side), 128, dtype=torch.uint8)
        image[0] = torch.where(red, 220, 40) if informative else 128
        logits = 4.0 * torch.stack([predicted == 0, predicted == 1]).float()
        made.append(LabelledImage(logits, labels, image))
    return InMemory(2, made)


@pytest.mark.parametrize("method", ["lts_image", "selective+lts_image"])
def test_informative_image_lowers_nll(method):
    losses = {}
    for informative in (False, True):
        calibrator = build(method, 2)
        calibrator.fit(red_random(informative), FitContext())
        losses[informative] = nll(calibrator.eval(), red_random(informative))
    assert losses[True] < losses[False] - 0.1


def test_with_image_returns_a_copy_with_shared_weights():
    calibrator = build("lts_image", 3)
    image = torch.zeros(3, 5, 4, dtype=torch.uint8)
    with_image = calibrator.with_image(image)
    assert calibrator.image is None
    assert with_image.image is image
    assert with_image.weight is calibrator.weight
    assert build("lts", 3).with_image(image).image is None


@pytest.mark.parametrize("image", [None, torch.zeros(3, 4, 5, dtype=torch.uint8)])
def test_image_form_requires_an_image_of_the_grid(image):
    calibrator = build("lts_image", 3).with_image(image)
    with pytest.raises(ArgumentError, match=r"image on the logits' grid \[5, 4\]"):
        calibrator(torch.zeros(1, 3, 5, 4))


def test_image_form_is_not_fitted_without_images():
    logits = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    data = InMemory(3, [LabelledImage(logits, logits.argmax(0))])
    with pytest.raises(ArgumentError, match="expected images with lts_image, got logits alone"):
        build("lts_image", 3).fit(data, FitContext())
