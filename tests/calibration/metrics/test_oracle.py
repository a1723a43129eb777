"""Our figures against torchmetrics', where both define the same one."""

import pytest
import torch

from app.calibration.metrics.evaluation import Evaluation
from app.calibration.metrics.reliability import ReliabilityBins

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
    for norm, ours in (("l1", bins.ece()), ("max", bins.mce(1))):
        theirs = oracle.multiclass_calibration_error(probabilities, labels, 7, 15, norm)
        assert ours == pytest.approx(theirs.item(), abs=1e-5)


def test_figures_agree(pixels):
    probabilities, labels = pixels
    evaluation = Evaluation(7).add(probabilities.log(), labels)
    figures = evaluation.result()
    wrong, doubt = (probabilities.argmax(1) != labels).long(), 1 - probabilities.amax(1)
    auroc = oracle.binary_auroc(doubt, wrong).item()
    bound = evaluation.confidence_histogram.auroc_error_bound()
    assert abs(figures.auroc_misprediction - auroc) <= bound + 1e-6
    precision = oracle.binary_average_precision(doubt, wrong).item()
    assert evaluation.confidence_histogram.aupr_error() == pytest.approx(precision, abs=1e-3)
    iou = oracle.multiclass_jaccard_index(probabilities, labels, 7).item()
    assert figures.miou == pytest.approx(iou)
    accuracy = oracle.multiclass_accuracy(probabilities, labels, 7, average="micro").item()
    assert figures.accuracy == pytest.approx(accuracy)
