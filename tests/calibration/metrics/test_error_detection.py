"""Accuracy, recall and precision of predicted errors, and the pixels they are predicted for."""

import math

import pytest
import torch

from app.calibration.base import FitContext
from app.calibration.dataset import IGNORE, LabelledImage, labelled_pixels
from app.calibration.methods.contextual import Contextual
from app.calibration.methods.selective import Selective
from app.calibration.metrics.error_detection import ErrorDetection, predicted_errors
from app.calibration.registry import build, discover
from tests.calibration.methods.test_selective import two_kinds
from tests.factories.logits import synthetic_set


def of(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


def test_metrics_by_hand():
    detection = ErrorDetection()
    detection.add(of(1, 1, 0), of(1, 0, 1))
    detection.add(of(0, 0), of(0, 0))
    # 3 of 5 pixels predicted correctly, 1 of 2 wrong pixels found, 1 of 2 predictions wrong
    assert detection.metrics() == pytest.approx((3 / 5, 1 / 2, 1 / 2))


def test_metrics_without_pixels_are_nan():
    detection = ErrorDetection()
    assert all(math.isnan(value) for value in detection.metrics())
    detection.add(of(0), of(0))
    accuracy, recall, precision = detection.metrics()
    assert accuracy == 1
    assert math.isnan(recall)
    assert math.isnan(precision)


def test_selective_predicts_the_errors_that_hard_routing_softens():
    data = two_kinds()
    calibrator = Selective(3, mixing="hard")
    calibrator.fit(data, FitContext())
    calibrator.beta_ok.fill_(2.0)
    calibrator.beta_mis.fill_(0.5)
    logits = data[0].logits[None]
    softened = calibrator(logits).exp().amax(1) < logits.softmax(1).amax(1)
    assert softened.any()
    assert not softened.all()
    assert torch.equal(calibrator.predict_errors(logits), softened)


def test_contextual_predicts_errors_below_a_confidence_of_half():
    calibrator = Contextual(4)
    calibrator.fit(synthetic_set(4, images=8), FitContext(seed=1))
    calibrator.detector.offset.sub_(1.0)
    logits = synthetic_set(4, images=1, seed=9)[0].logits[None]
    confidence = calibrator(logits).exp().amax(1)
    predicted = calibrator.predict_errors(logits)
    assert predicted is not None
    # The top probability is at least 1/K at any temperature: 1/K..1/2 is predicted wrong.
    clear = (confidence - 0.5).abs() > 1e-3
    assert torch.equal(predicted[clear], (confidence < 0.5)[clear])


@pytest.mark.parametrize("method", sorted(discover()))
def test_errors_are_predicted_for_labelled_pixels_only(method):
    calibrator = build(method, 3)
    image = synthetic_set(3, images=1)[0]
    image = LabelledImage(image.logits, image.labels.clone())
    image.labels[0] = IGNORE
    logits, labels = labelled_pixels(image)
    found = predicted_errors(calibrator, image, logits)
    assert (found is not None) == method.startswith("selective")
    if found is not None:
        assert found.dtype == torch.bool
        assert found.shape == labels.shape
