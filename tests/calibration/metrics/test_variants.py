import math

import pytest
import torch

from app.calibration.dataset import IGNORE
from app.calibration.metrics.confidence_histogram import ConfidenceHistogram
from app.calibration.metrics.evaluation import Evaluation
from app.calibration.metrics.reliability import ReliabilityBins
from app.calibration.metrics.segmentation import (
    UncertaintyIoU,
    accuracy,
    boundary_band,
    class_dice,
    class_iou,
    class_recall,
    confusion_matrix,
    mean_iou,
    theta_grid,
)
from app.errors import ArgumentError
from tests.factories.toy_metrics import CONFIDENCE, CORRECT, LABELS, PREDICTED


@pytest.fixture
def bins():
    return ReliabilityBins(10).add(CONFIDENCE, CORRECT)


@pytest.fixture
def confidence_histogram():
    return ConfidenceHistogram().add(CONFIDENCE, CORRECT)


def test_pooled_ece_averages_within_a_bin(bins):
    assert bins.ece() == pytest.approx((0.87 + 1.9) / 6)


def test_mce_ignores_bins_of_few_pixels(bins):
    assert bins.mce(n_min=1) == pytest.approx(0.85)
    assert bins.mce(n_min=2) == pytest.approx(0.435)
    assert math.isnan(bins.mce())


def test_bins_are_closed_above():
    bins = ReliabilityBins(10).add(torch.tensor([0.5, 0.55]), torch.tensor([False, True]))
    assert bins.ece() == pytest.approx(0.475)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 10, 15, 19])
def test_every_edge_lies_in_the_bin_it_closes(count, dtype):
    edges = (torch.arange(count + 1, dtype=torch.float64) / count).to(dtype)
    bins = ReliabilityBins(count).add(edges, torch.ones(count + 1, dtype=torch.bool))
    assert bins.counts.tolist() == [2] + [1] * (count - 1)


def test_empty_bins_give_nan():
    bins = ReliabilityBins(10)
    assert math.isnan(bins.ece())
    assert math.isnan(bins.mce(1))


def test_bins_reject_other_numbers_of_bins_and_zero():
    with pytest.raises(ArgumentError, match="expected 10 bins to merge, got 15"):
        ReliabilityBins(10).merge(ReliabilityBins(15))
    with pytest.raises(ArgumentError, match="at least 1 bin"):
        ReliabilityBins(0)


def test_auroc_and_aurc(confidence_histogram):
    assert confidence_histogram.auroc() == pytest.approx(5 / 9)
    assert confidence_histogram.aurc() == pytest.approx(
        (0 + 1 / 2 + 2 / 3 + 1 / 2 + 2 / 5 + 1 / 2) / 6
    )


def test_risk_coverage_curve(confidence_histogram):
    curve = confidence_histogram.risk_coverage()
    assert [p.coverage for p in curve] == pytest.approx([n / 6 for n in range(1, 7)])
    assert [p.risk for p in curve] == pytest.approx([0, 1 / 2, 2 / 3, 1 / 2, 2 / 5, 1 / 2])
    assert [p.coverage for p in confidence_histogram.risk_coverage(points=2)] == pytest.approx(
        [0.5, 1]
    )


def test_tied_pixels_count_half_and_average_over_their_orders():
    confidence_histogram = ConfidenceHistogram().add(
        torch.full((2,), 0.5), torch.tensor([True, False])
    )
    assert confidence_histogram.auroc() == 0.5
    # Right first: 0, 1/2. Wrong first: 1, 1/2.
    assert confidence_histogram.aurc() == pytest.approx((0.25 + 0.75) / 2)


def test_confidences_of_zero_and_one_are_ranked():
    confidence_histogram = ConfidenceHistogram().add(
        torch.tensor([0.0, 1.0]), torch.tensor([False, True])
    )
    assert confidence_histogram.auroc() == 1


def test_metrics_of_an_empty_histogram_are_nan():
    confidence_histogram = ConfidenceHistogram()
    assert math.isnan(confidence_histogram.auroc())
    assert math.isnan(confidence_histogram.aurc())
    assert confidence_histogram.risk_coverage() == []


def test_threshold_accepts_the_given_coverage(confidence_histogram):
    for count in range(1, 7):
        threshold = confidence_histogram.threshold(count / 6)
        assert (threshold <= CONFIDENCE).sum() == count
    with pytest.raises(ArgumentError, match="got 6 pixels and 0"):
        confidence_histogram.threshold(0)
    with pytest.raises(ArgumentError, match="got 0 pixels"):
        ConfidenceHistogram().threshold(0.5)


def test_boundary_ece():
    labels = torch.tensor([[0, 0, 0, 1, 1, 1]])
    confidence = torch.tensor([[0.9, 0.8, 0.62, 0.73, 0.95, 0.9]])
    correct = torch.tensor([[True, True, False, True, True, True]])
    band = boundary_band(labels, radius=1)
    assert band.tolist() == [[False, False, True, True, False, False]]
    assert ReliabilityBins(10).add(confidence[band], correct[band]).ece() == pytest.approx(0.445)
    # The same through an evaluation that is given the band only.
    predicted = torch.where(correct, labels, 1 - labels)
    rows = torch.where(predicted[band][:, None] == torch.arange(2), confidence[band][:, None], 0)
    rows = torch.where(rows == 0, 1 - confidence[band][:, None], rows)
    figures = Evaluation(2).add(rows.log(), labels[band]).result()
    assert figures.ece_image == pytest.approx(0.445)


@pytest.mark.parametrize("radius", [1, 2])
def test_boundary_band_agrees_with_all_pairs(radius):
    labels = torch.randint(-1, 3, (9, 7), generator=torch.Generator().manual_seed(radius))
    labels[:4] = labels[0, 0]
    band = boundary_band(labels, radius)
    cells = [(r, c) for r in range(9) for c in range(7) if labels[r, c] != IGNORE]
    for r, c in cells:
        near = (
            labels[i, j] != labels[r, c] for i, j in cells if max(abs(i - r), abs(j - c)) <= radius
        )
        assert band[r, c] == any(near)
    assert not band[labels == IGNORE].any()


def test_unlabelled_pixels_are_no_boundary():
    assert not boundary_band(torch.tensor([[0, 0, IGNORE, IGNORE, IGNORE, 1]])).any()


def test_boundary_band_rejects_other_shapes_and_radii():
    with pytest.raises(ArgumentError, match=r"\[6\] and 2"):
        boundary_band(torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="radius"):
        boundary_band(torch.zeros(2, 2, dtype=torch.int64), radius=0)


def test_miou_and_accuracy_of_toy_set():
    confusion = confusion_matrix(LABELS, PREDICTED, 3)
    assert confusion.tolist() == [[1, 0, 0], [2, 1, 0], [0, 1, 1]]
    assert mean_iou(confusion) == pytest.approx((1 / 3 + 1 / 4 + 1 / 2) / 3)
    assert accuracy(confusion) == 0.5


def test_iou_dice_and_recall_by_class():
    # Hits 1 1 1, false alarms 2 1 0, misses 0 2 1.
    confusion = confusion_matrix(LABELS, PREDICTED, 4)
    assert class_iou(confusion) == pytest.approx([1 / 3, 1 / 4, 1 / 2, math.nan], nan_ok=True)
    assert class_dice(confusion) == pytest.approx([2 / 4, 2 / 5, 2 / 3, math.nan], nan_ok=True)
    assert class_recall(confusion) == pytest.approx([1, 1 / 3, 1 / 2, math.nan], nan_ok=True)


def test_miou_skips_classes_that_never_occur():
    confusion = confusion_matrix(LABELS, PREDICTED, 5)
    assert mean_iou(confusion) == pytest.approx((1 / 3 + 1 / 4 + 1 / 2) / 3)
    empty = confusion_matrix(LABELS[:0], LABELS[:0], 5)
    assert math.isnan(mean_iou(empty))
    assert math.isnan(accuracy(empty))


def test_uncertainty_iou():
    invalid = torch.tensor([False, False, False, False, True, False])
    measure = UncertaintyIoU(3, [1 / 3, 0.5, 0.7])
    measure.add(CONFIDENCE, PREDICTED, LABELS, invalid)
    assert measure.uiou() == pytest.approx([0.3611, 0.5, 0.4167], abs=5e-5)
    assert measure.auiou() == pytest.approx(0.4259, abs=5e-5)


def test_theta_grid_starts_at_the_plain_iou():
    assert theta_grid(4, points=4) == pytest.approx([0.25, 0.5, 0.75, 1])
    nothing = torch.zeros(6, dtype=torch.bool)
    measure = UncertaintyIoU(3, theta_grid(3)).add(CONFIDENCE, PREDICTED, LABELS, nothing)
    assert len(measure.thetas) == 10
    assert measure.uiou()[0] == pytest.approx(mean_iou(confusion_matrix(LABELS, PREDICTED, 3)))
    assert measure.uiou()[-1] == 0  # no confidence reaches 1


@pytest.mark.parametrize("classes", range(2, 20))
def test_uniform_pixels_are_kept_at_the_first_theta(classes):
    confidence = torch.zeros(1, classes).log_softmax(1).exp()[:, 0]
    only = torch.zeros(1, dtype=torch.int64)
    measure = UncertaintyIoU(classes, [1 / classes]).add(confidence, only, only, only.bool())
    assert measure.uiou() == [1]


def test_uncertainty_iou_merges():
    invalid = torch.tensor([False, True, False, False, True, True])
    whole = UncertaintyIoU(3, [0.5, 0.8]).add(CONFIDENCE, PREDICTED, LABELS, invalid)
    parts = UncertaintyIoU(3, [0.5, 0.8])
    for part in (slice(0, 2), slice(2, 6)):
        other = UncertaintyIoU(3, [0.5, 0.8])
        other.add(CONFIDENCE[part], PREDICTED[part], LABELS[part], invalid[part])
        parts.merge(other)
    assert parts.uiou() == whole.uiou()


def test_uncertainty_iou_rejects_other_thetas():
    with pytest.raises(ArgumentError, match="got 3 and"):
        UncertaintyIoU(3, [0.5]).merge(UncertaintyIoU(3, [0.6]))
    with pytest.raises(ArgumentError, match="at least one theta"):
        UncertaintyIoU(3, [])
    assert math.isnan(UncertaintyIoU(3, [0.5]).auiou())
