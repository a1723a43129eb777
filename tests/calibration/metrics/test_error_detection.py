"""A selector's accuracy, recall and precision, by hand; and whose verdicts they are."""

import math

import pytest
import torch

from app.calibration.base import FitContext
from app.calibration.dataset import IGNORE, LabelledImage, labelled_pixels
from app.calibration.methods.contextual.calibrator import Contextual
from app.calibration.methods.selective import Selective
from app.calibration.metrics.error_detection import ErrorDetection, predicted_errors
from app.calibration.registry import METHODS, build
from tests.calibration.methods.test_selective import two_kinds
from tests.factories.logits import synthetic_set


def of(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


def test_figures_by_hand():
    detection = ErrorDetection()
    detection.add(of(1, 1, 0), of(1, 0, 1))
    detection.add(of(0, 0), of(0, 0))
    # of 5 pixels 3 were judged right, of 2 wrong ones 1 was suspected, of 2 suspected 1 was wrong
    assert detection.metrics() == pytest.approx((3 / 5, 1 / 2, 1 / 2))


def test_what_was_never_seen_has_no_share():
    detection = ErrorDetection()
    assert all(math.isnan(figure) for figure in detection.metrics())
    detection.add(of(0), of(0))
    accuracy, recall, precision = detection.metrics()
    assert accuracy == 1
    assert math.isnan(recall)
    assert math.isnan(precision)


def test_selective_suspects_what_hard_routing_gives_the_other_temperature():
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


def test_contextual_suspects_what_it_believes_to_be_wrong():
    calibrator = Contextual(4)
    calibrator.fit(synthetic_set(4, images=8), FitContext(seed=1))
    calibrator.detector.detector_weight.fill_(0.5)
    logits = synthetic_set(4, images=1, seed=9)[0].logits[None]
    confidence = calibrator(logits).exp().amax(1)
    predicted = calibrator.predict_errors(logits)
    assert predicted is not None
    # Temperature can't lower the top probability below an even share, so 1/K..1/2 is suspected.
    clear = (confidence - 0.5).abs() > 1e-3
    assert torch.equal(predicted[clear], (confidence < 0.5)[clear])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_verdicts_are_of_labelled_pixels_or_of_none(method):
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
