"""Fits reach the likelihood and probabilities of fiducio's on the same problem."""

import pytest

from app.calibration.base import FitContext
from app.calibration.methods.class_conditional import CDC, CMSap, CMSop
from app.calibration.registry import build
from tests.factories.logits import nll, synthetic_set, table

fiducio = pytest.importorskip("fiducio", reason="fiducio is an optional oracle")

OPTIONS = {"max_iter": 300, "lr": 0.05}
PAIRS = {
    "temperature": (lambda: fiducio.TemperatureScaling(**OPTIONS), 1e-4),
    "vector": (lambda: fiducio.VectorScaling(**OPTIONS), 1e-3),
    "matrix": (lambda: fiducio.MatrixScaling(**OPTIONS), 1e-3),
    "matrix_ti": (lambda: fiducio.TranslationInvariantMatrixScaling(**OPTIONS), 1e-3),
    "dirichlet": (
        lambda: fiducio.DirichletCalibration(lambda_reg=1e-3, mu_reg=1e-3, **OPTIONS),
        1e-3,
    ),
    "ets": (lambda: fiducio.EnsembleTemperatureScaling(**OPTIONS), 1e-3),
}


def negative_log_likelihood(probabilities, labels):
    chosen = probabilities.gather(1, labels[:, None]).clamp_min(1e-12)
    return -chosen.log().mean().item()


@pytest.mark.parametrize("method", PAIRS)
def test_likelihood_is_no_worse_and_probabilities_agree(method):
    data = synthetic_set(3, images=40, side=10)  # enough for the prior of the temperature to vanish
    logits, labels = table(data)
    make, tolerance = PAIRS[method]
    theirs = make().fit(logits, labels).predict_proba(logits)
    calibrator = build(method, 3)
    calibrator.fit(data, FitContext())
    ours = calibrator(logits).exp()
    assert nll(calibrator, data) <= negative_log_likelihood(theirs, labels) + 1e-5
    assert (ours - theirs).abs().mean() < 10 * tolerance


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (CDC, "ClassConditionalMatrixScaling"),
        (CMSap, "ArgmaxPreservingMatrixScaling"),
        (CMSop, "OrderPreservingMatrixScaling"),
    ],
)
def test_experts_reach_the_likelihood_of_a_long_descent(kind, name):
    data = synthetic_set(3, images=4, side=10)
    logits, labels = table(data)
    theirs = getattr(fiducio, name)(**OPTIONS).fit(logits, labels).predict_proba(logits)
    calibrator = kind(3, pull=1e-3)
    calibrator.fit(data, FitContext())
    assert nll(calibrator, data) <= negative_log_likelihood(theirs, labels) + 1e-5
    assert (calibrator(logits).exp() - theirs).abs().mean() < 0.03
