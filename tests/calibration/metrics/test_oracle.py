"""Metrics against torchmetrics, where both define the same metric."""

import pytest
import torch

from app.calibration.metrics.evaluation import Evaluation
from app.calibration.metrics.reliability import ReliabilityBins
from tests.factories.toy_metrics import auroc_error_bound

oracle = pytest.importorskip(
    "torchmetrics.functional.classification", reason="torchmetrics is an optional oracle"
)


@pytest.fixture(scope="module")
def pixels():
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5000, 7, generator=rng)
    labels = (logits / 2).softmax(1).multinomial(1, generator=rng)[:, 0]
    return logits.softmax(1), labels


def test_calibration_errors_agree(pixels):
    probabilities, labels = pixels
    confidence, correct = probabilities.amax(1), probabilities.argmax(1) == labels
    bins = ReliabilityBins(15).add(confidence, correct)
    for norm, found in (("l1", bins.ece()), ("max", bins.mce(1))):
        expected = oracle.multiclass_calibration_error(probabilities, labels, 7, 15, norm)
        assert found == pytest.approx(expected.item(), abs=1e-5)


def test_metrics_agree(pixels):
    probabilities, labels = pixels
    evaluation = Evaluation(7).add(probabilities.log(), labels)
    metrics = evaluation.result()
    wrong = (probabilities.argmax(1) != labels).long()
    auroc = oracle.binary_auroc(1 - probabilities.amax(1), wrong).item()
    assert abs(metrics.auroc_misprediction - auroc) <= (
        auroc_error_bound(evaluation.confidence_histogram) + 1e-6
    )
    iou = oracle.multiclass_jaccard_index(probabilities, labels, 7).item()
    assert metrics.miou == pytest.approx(iou)
    accuracy = oracle.multiclass_accuracy(probabilities, labels, 7, average="micro").item()
    assert metrics.accuracy == pytest.approx(accuracy)
