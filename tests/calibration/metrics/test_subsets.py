"""Subsets of pixels, by hand on the toy set of the metrics and on small maps."""

import math

import numpy as np
import pytest
import torch

from app.calibration.dataset import IGNORE
from app.calibration.metrics.assessment import Assessment
from app.calibration.metrics.evaluation import Evaluation
from app.calibration.metrics.reliability import ReliabilityBins
from app.calibration.metrics.subsets import (
    BOUNDARY,
    CORRECT,
    INTERIOR,
    MISPREDICTED,
    by_boundary,
    by_class,
    by_correctness,
    by_crop_size,
    merge,
    subset_bins,
    subset_metrics,
)
from app.errors import ArgumentError
from tests.factories.predictions import prediction_of
from tests.factories.toy_metrics import CONFIDENCE, LABELS, PREDICTED, PROBABILITIES

TOY = prediction_of(CONFIDENCE, PREDICTED)


def close(subset, pixels, confidence, accuracy, ece):
    assert subset == (
        pixels,
        pytest.approx(confidence),
        pytest.approx(accuracy),
        pytest.approx(ece),
    )


def test_correct_and_mispredicted_pixels_of_the_toy_set():
    subsets = {name: subset_metrics(bins) for name, bins in by_correctness(TOY, LABELS).items()}
    # Correct: .95 .65 .75, each with a gap to 1. Wrong: .85 .45 .92, each with a gap to 0.
    close(subsets[CORRECT], 3, 2.35 / 3, 1, 0.65 / 3)
    close(subsets[MISPREDICTED], 3, 2.22 / 3, 0, 2.22 / 3)
    assert subsets[MISPREDICTED].surplus == pytest.approx(0.74)


def test_unlabelled_pixels_belong_to_no_subset():
    labels = LABELS.clone()
    labels[0] = IGNORE
    subsets = by_correctness(TOY, labels)
    assert [int(bins.counts.sum()) for bins in subsets.values()] == [2, 3]
    assert 0 not in {**by_class(TOY, torch.where(PREDICTED == 0, IGNORE, LABELS))}


def test_subsets_of_classes_by_prediction_and_by_label():
    # Predicted 0 0 1 2 0 1 for the labels 0 1 1 2 1 2.
    predicted = {k: subset_metrics(bins) for k, bins in by_class(TOY, LABELS).items()}
    close(predicted[0], 3, (0.95 + 0.85 + 0.45) / 3, 1 / 3, (0.05 + 0.85 + 0.45) / 3)
    close(predicted[1], 2, (0.65 + 0.92) / 2, 1 / 2, (0.35 + 0.92) / 2)
    close(predicted[2], 1, 0.75, 1, 0.25)
    labelled = {k: subset_metrics(bins) for k, bins in by_class(TOY, LABELS, labelled=True).items()}
    close(labelled[0], 1, 0.95, 1, 0.05)
    close(labelled[1], 3, (0.85 + 0.65 + 0.45) / 3, 1 / 3, (0.85 + 0.35 + 0.45) / 3)
    close(labelled[2], 2, (0.75 + 0.92) / 2, 1 / 2, (0.25 + 0.92) / 2)


def test_boundary_and_interior():
    labels = torch.tensor([[0, 0, 0, 1, 1, 1]])
    predicted = torch.tensor([[0, 0, 1, 1, 1, 1]])
    confidence = torch.tensor([[0.9, 0.8, 0.62, 0.73, 0.95, 0.9]])
    subsets = by_boundary(prediction_of(confidence, predicted), labels, radius=1, bins=10)
    close(subset_metrics(subsets[BOUNDARY]), 2, 1.35 / 2, 1 / 2, 0.445)
    # Bins (.8, .9] hold .9 .9, (.7, .8] holds .8, (.9, 1] holds .95; all right.
    close(subset_metrics(subsets[INTERIOR]), 4, 3.55 / 4, 1, (0.1 + 0.2 + 0.05 + 0.1) / 4)


def test_gaps_cancel_out_in_large_crops_only():
    # One bin: a right and a wrong pixel at .9. Together the gap is |.9 - .5|, alone .1 and .9.
    prediction = prediction_of(torch.tensor([[0.9, 0.9]]), torch.tensor([[0, 0]]))
    labels = torch.tensor([[0, 1]])
    errors = by_crop_size(prediction, labels, (1, 2, 50), 40, np.random.default_rng(0))
    assert {round(error, 6) for error in errors[1]} == {0.1, 0.9}
    assert errors[2] == pytest.approx([0.4] * 40)
    assert errors[50] == pytest.approx([0.4] * 40)


def test_crops_are_random_whole_and_repeatable():
    rng = np.random.default_rng(1)
    labels = torch.zeros(4, 5, dtype=torch.int64)
    confidence = torch.arange(20).reshape(4, 5) / 20
    prediction = prediction_of(confidence, labels)
    once = by_crop_size(prediction, labels, [2], 200, rng)[2]
    again = by_crop_size(prediction, labels, [2], 200, np.random.default_rng(1))[2]
    assert once == again
    # All right, so a crop's ECE is 1 - mean confidence, and each of 3 x 4 places has its own.
    places = {round(1 - float(confidence[r : r + 2, c : c + 2].mean()), 6)
              for r in range(3) for c in range(4)}  # fmt: skip
    assert {round(error, 6) for error in once} == places


def test_crops_without_labels_are_omitted():
    labels = torch.full((3, 3), IGNORE)
    prediction = prediction_of(torch.ones(3, 3), torch.zeros(3, 3, dtype=torch.int64))
    assert by_crop_size(prediction, labels, [2], 5, np.random.default_rng(0)) == {2: []}


@pytest.mark.parametrize(("sizes", "crops"), [([0], 3), ([4], 0)])
def test_crops_of_no_size_or_number_are_rejected(sizes, crops):
    with pytest.raises(ArgumentError, match="crops and sizes of at least 1"):
        by_crop_size(TOY, LABELS, sizes, crops, np.random.default_rng(0))


def test_subsets_merge_to_those_of_one_pass():
    parts: dict[int, ReliabilityBins] = {}
    for part in (slice(0, 3), slice(3, 6)):
        merge(parts, by_class(prediction_of(CONFIDENCE[part], PREDICTED[part]), LABELS[part]))
    whole = by_class(TOY, LABELS)
    assert {k: subset_metrics(bins) for k, bins in sorted(parts.items())} == {
        k: subset_metrics(bins) for k, bins in whole.items()
    }


def test_empty_subset_is_nan():
    empty = subset_metrics(subset_bins(TOY, LABELS, torch.zeros(6, dtype=torch.bool)))
    assert empty.pixels == 0
    assert all(math.isnan(value) for value in (*empty[1:], empty.surplus))


# The assessment of two images


@pytest.fixture
def assessment():
    """The toy set as two maps of one row, the first with an unlabelled pixel."""
    assessment = Assessment(3)
    first = prediction_of(
        torch.cat([CONFIDENCE[:3], torch.ones(1)])[None],
        torch.cat([PREDICTED[:3], torch.zeros(1, dtype=torch.int64)])[None],
    )
    assessment.add(first, torch.tensor([[0, 1, 1, IGNORE]]), nll=2.0, brier=1.0)
    second = prediction_of(CONFIDENCE[None, 3:], PREDICTED[None, 3:])
    return assessment.add(second, LABELS[None, 3:], nll=4.0, brier=0.5)


def test_assessment_agrees_with_evaluation_of_the_same_pixels(assessment):
    found = assessment.evaluation.result()
    expected = Evaluation(3)
    for part in (slice(0, 3), slice(3, 6)):
        expected.add(PROBABILITIES[part].log(), LABELS[part])
    assert (found.ece_image, found.aurc, found.miou) == pytest.approx(
        (0.4783, 0.4278, 0.3611), abs=5e-5
    )
    assert found.ece_pooled == pytest.approx(expected.result().ece_pooled)
    assert (found.nll, found.brier) == (1.0, 0.25)


def test_assessment_of_images(assessment):
    first, second = assessment.images
    assert first == (3, *(pytest.approx(v) for v in (1.25 / 3, 2 / 3, 2.45 / 3)), 0)
    # .92 is wrong and above .9.
    assert second == (3, *(pytest.approx(v) for v in (0.54, 1 / 3, 2.12 / 3, 1 / 3)))


def test_assessment_of_boundaries(assessment):
    # All of image B lies near another class; of image A too.
    assert assessment.boundary_errors == pytest.approx([1.25 / 3, 0.54])
    assert assessment.boundary_ece == pytest.approx((1.25 / 3 + 0.54) / 2)
    assert assessment.kind(BOUNDARY).pixels == 6
    assert assessment.kind(INTERIOR).pixels == 0


def test_assessment_about_90(assessment):
    # In (.85, .95] lie .95 (right) and .92 (wrong), in one bin; .85 closes the bin below.
    close(assessment.about_90, 2, 0.935, 0.5, 0.435)


def test_assessment_of_classes(assessment):
    classes = assessment.classes()
    assert [c.pixels for c in classes] == [1, 3, 2]
    assert [c.iou for c in classes] == pytest.approx([1 / 3, 1 / 4, 1 / 2])
    assert [c.dice for c in classes] == pytest.approx([0.5, 0.4, 2 / 3])
    assert [c.recall for c in classes] == pytest.approx([1, 1 / 3, 1 / 2])
    assert [c.predicted.accuracy for c in classes] == pytest.approx([1 / 3, 1 / 2, 1])


def test_assessment_without_labels_is_nan():
    nothing = Assessment(2).add(
        prediction_of(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.int64)),
        torch.full((2, 2), IGNORE),
        nll=0,
        brier=0,
    )
    assert nothing.overall.pixels == 0
    assert math.isnan(nothing.overall.ece)
    assert math.isnan(nothing.boundary_ece)
    assert math.isnan(nothing.images[0].confident_errors)
    assert math.isnan(nothing.about_90.accuracy)
