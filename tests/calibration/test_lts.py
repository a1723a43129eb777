import pytest
import torch

from app.calibration.base import FitContext
from app.calibration.lts import LocalTemperature
from app.calibration.registry import build
from app.calibration.validation import InMemory, LabelledImage
from app.errors import ArgumentError
from tests.calibration.synthetic import nll


def test_fresh_temperature_is_one():
    assert torch.allclose(
        LocalTemperature(3).temperatures(torch.randn(1, 3, 5, 5)), torch.ones(1, 1, 5, 5)
    )


@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_maps_smaller_than_the_kernel(size):
    assert LocalTemperature(3)(torch.randn(1, 3, *size)).shape == (1, 3, *size)


def test_tables_are_refused():
    with pytest.raises(ArgumentError, match="maps"):
        LocalTemperature(3)(torch.randn(5, 3))
    data = InMemory(3, [LabelledImage(torch.randn(3, 9), torch.arange(9) % 3)])
    with pytest.raises(ArgumentError, match="two dimensions"):
        LocalTemperature(3).fit(data, FitContext())


def test_temperature_rises_where_the_surroundings_disagree():
    # Left halves are uniform and right; right halves flicker, and are right as a coin falls.
    rng = torch.Generator().manual_seed(0)
    images = []
    for _ in range(10):
        said = torch.zeros(16, 32, dtype=torch.int64)
        said[:, 16:] = torch.randint(2, (16, 16), generator=rng)
        labels = said.clone()
        labels[:, 16:] = torch.randint(2, (16, 16), generator=rng)
        logits = 5.0 * torch.stack([said == 0, said == 1]).float()
        images.append(LabelledImage(logits, labels))
    data = InMemory(2, images)
    calibrator = LocalTemperature(2)
    before = nll(calibrator, data)
    calibrator.fit(data, FitContext())
    assert nll(calibrator, data) < before - 0.1
    temperatures = calibrator.temperatures(images[0].logits[None])[0, 0].detach()
    assert temperatures[:, 22:].mean() > 1.5 * temperatures[:, :10].mean()


@pytest.mark.parametrize("method", ["lts", "selective+lts"])
def test_reach_is_how_far_a_pixel_is_felt(method):
    torch.manual_seed(0)
    calibrator = build(method, 3)
    for value in calibrator.state_dict().values():
        value.add_(0.1 * torch.randn(value.shape))
    reach = calibrator.invariances.reach
    assert reach > 0
    logits = torch.randn(1, 3, 31, 31)
    changed = logits.clone()
    changed[0, 0, 15, 15] += 9
    with torch.inference_mode():
        felt = (calibrator(changed) != calibrator(logits)).any(1)[0]
    rows, columns = (axis.tolist() for axis in felt.nonzero(as_tuple=True))
    assert (min(rows), max(rows)) == (min(columns), max(columns)) == (15 - reach, 15 + reach)
