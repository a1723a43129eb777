"""Metrics and fits agree with netcal's, where the definitions are the same."""

import pytest
import torch

from app.calibration.base import FitContext
from app.calibration.metrics.reliability import ReliabilityBins
from app.calibration.registry import build
from tests.factories.logits import nll, synthetic_set, table

metrics = pytest.importorskip("netcal.metrics", reason="netcal is an optional oracle")
scaling = pytest.importorskip("netcal.scaling", reason="netcal is an optional oracle")


@pytest.mark.parametrize("bins", [10, 15])
def test_calibration_errors_agree(bins):
    # netcal's bins are closed at the left, those here at the right; no confidence is on an edge.
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5000, 7, generator=rng)
    labels = (logits / 2).softmax(1).multinomial(1, generator=rng)[:, 0]
    probabilities = logits.softmax(1)
    bins_here = ReliabilityBins(bins).add(probabilities.amax(1), probabilities.argmax(1) == labels)
    given = probabilities.numpy(), labels.numpy()
    assert bins_here.ece() == pytest.approx(metrics.ECE(bins).measure(*given), abs=1e-6)
    assert bins_here.mce(1) == pytest.approx(metrics.MCE(bins).measure(*given), abs=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # netcal's, of pyro
@pytest.mark.parametrize(
    ("method", "netcal_name"),
    [("temperature", "TemperatureScaling"), ("vector_ti", "LogisticCalibration")],
)
def test_likelihood_is_no_worse_and_probabilities_agree(method, netcal_name):
    data = synthetic_set(3, images=4, side=10)
    logits, labels = table(data)
    probabilities = (
        logits.double().softmax(1).numpy()
    )  # netcal's numerical differences are 0 in float32
    fitted = getattr(scaling, netcal_name)()
    fitted.fit(probabilities, labels.numpy())
    found = torch.from_numpy(fitted.transform(probabilities))
    calibrator = build(method, 3)
    calibrator.fit(data, FitContext())
    loss = -found.gather(1, labels[:, None]).log().mean().item()
    assert nll(calibrator, data) <= loss + 1e-5
    assert (calibrator(logits).exp() - found).abs().mean() < 1e-3
