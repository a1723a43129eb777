import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from app.calibration.metrics.evaluation import Evaluation
from app.calibration.metrics.intervals import (
    bootstrap_mean,
    sign_flip_p_value,
)
from app.errors import ArgumentError
from tests.factories.toy_metrics import IMAGES, LABELS, PROBABILITIES


@pytest.fixture
def evaluation():
    evaluation = Evaluation(3)
    for image in IMAGES:
        evaluation.add(PROBABILITIES[image].log(), LABELS[image])
    return evaluation


def test_metrics_of_toy_set(evaluation):
    metrics = evaluation.result()
    assert (metrics.images, metrics.pixels) == (2, 6)
    assert metrics.ece_image == pytest.approx((0.41666667 + 0.54) / 2)
    # 15 bins separate .92 and .95: every pixel has a bin of its own.
    assert metrics.ece_pooled == pytest.approx(2.87 / 6)
    assert metrics.nll == pytest.approx(1.27145, abs=1e-5)
    assert metrics.brier == pytest.approx(0.71393, abs=1e-5)
    assert metrics.auroc_misprediction == pytest.approx(5 / 9)
    assert metrics.aurc == pytest.approx(0.4278, abs=5e-5)
    assert metrics.miou == pytest.approx(0.3611, abs=5e-5)
    assert metrics.accuracy == 0.5


def test_metrics_by_image(evaluation):
    first, second = evaluation.images
    assert (first.pixels, second.pixels) == (3, 3)
    assert first.ece == pytest.approx(1.25 / 3)
    assert second.ece == pytest.approx(1.62 / 3)
    assert first.aurc == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert first.accuracy == pytest.approx(2 / 3)
    assert first.nll == pytest.approx(-math.log(0.95 * 0.10 * 0.65) / 3)
    assert first.brier == pytest.approx((0.0038 + 1.535 + 0.195) / 3)


def test_metrics_become_json(evaluation):
    assert json.loads(json.dumps(dataclasses.asdict(evaluation.result())))["pixels"] == 6


def test_predicted_labels_replace_the_argmax():
    given = torch.full_like(LABELS, 1)
    metrics = Evaluation(3).add(PROBABILITIES.log(), LABELS, given).result()
    assert metrics.accuracy == 0.5
    assert metrics.miou == pytest.approx((0 + 3 / 6 + 0) / 3)
    # Confidence stays the top probability, hits are those of the emitted map: 0 1 1 0 1 0.
    gaps = [0.95, 1 - 0.85, 1 - 0.65, 0.75, 1 - 0.45, 0.92]
    assert metrics.ece_pooled == pytest.approx(sum(gaps) / 6)


def test_reliability_curve_lists_all_bins(evaluation):
    curve = evaluation.reliability()
    assert len(curve) == 15
    assert sum(point.pixels for point in curve) == 6
    top = curve[-1]
    assert top.lower == pytest.approx(14 / 15)
    assert (top.upper, top.pixels, top.accuracy) == (1.0, 1, 1.0)
    assert top.confidence == pytest.approx(0.95)
    assert math.isnan(curve[0].confidence)
    assert math.isnan(curve[0].accuracy)


def test_image_without_pixels_is_nan_and_skipped(evaluation):
    before = evaluation.result()
    evaluation.add(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert evaluation.result() == before
    assert evaluation.images[2].pixels == 0
    assert math.isnan(evaluation.images[2].ece)


def test_nothing_counted_gives_nan():
    metrics = Evaluation(3).result()
    assert (metrics.images, metrics.pixels) == (0, 0)
    assert all(math.isnan(value) for value in dataclasses.astuple(metrics)[2:])


def test_no_errors_leave_auroc_undefined_and_aurc_zero():
    metrics = Evaluation(3).add(PROBABILITIES.log(), PROBABILITIES.argmax(1)).result()
    assert math.isnan(metrics.auroc_misprediction)
    assert metrics.aurc == 0


def test_impossible_label_costs_the_floor():
    log_probabilities = torch.tensor([[0.0, -torch.inf]])
    metrics = Evaluation(2).add(log_probabilities, torch.tensor([1])).result()
    assert metrics.nll == pytest.approx(-math.log(1e-12))
    assert metrics.brier == 2.0


@pytest.mark.parametrize(
    ("log_probabilities", "labels", "predicted", "message"),
    [
        (torch.zeros(2, 4), [0, 1], None, r"\[m,3\]"),
        (torch.zeros(2), [0, 1], None, r"\[m,3\]"),
        (torch.zeros(2, 3), [0], None, r"\[m,3\]"),
        (torch.zeros(2, 3), [0, 1], [0], r"\[m,3\]"),
        (torch.zeros(2, 3), [0, 255], None, r"labels in 0..2, got 0..255"),
        (torch.zeros(2, 3), [-1, 1], None, r"labels in 0..2, got -1..1"),
        (torch.zeros(2, 3), [0, 1], [0, 3], r"predicted classes in 0..2"),
        (torch.full((2, 3), torch.nan), [0, 1], None, "NaN"),
    ],
)
def test_wrong_input_is_rejected(log_probabilities, labels, predicted, message):
    predicted = None if predicted is None else torch.tensor(predicted)
    evaluation = Evaluation(3)
    with pytest.raises(ArgumentError, match=message):
        evaluation.add(log_probabilities, torch.tensor(labels), predicted)
    assert evaluation.result().pixels == 0


def test_merge_of_other_classes_is_rejected(evaluation):
    with pytest.raises(ArgumentError, match="expected 3 classes, got 4"):
        evaluation.merge(Evaluation(4))


def test_bootstrap_of_zeros_is_zero():
    assert bootstrap_mean([0.0, 0.0], seed=0) == (0, 0, 0)


def test_bootstrap_of_equal_images_has_no_width():
    mean, low, high = bootstrap_mean([0.25] * 8, seed=0)
    assert mean == low == high == 0.25


def test_bootstrap_follows_the_normal_interval():
    values = np.random.default_rng(0).normal(size=1000)
    mean, low, high = bootstrap_mean(values.tolist(), seed=1)
    half = 1.960 * values.std() / 1000**0.5
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.006)


def test_bootstrap_skips_images_that_are_nan():
    result = bootstrap_mean([1.0, math.nan, 2.0, math.nan], seed=0)
    assert result.mean == 1.5
    assert 1 <= result.low <= result.high <= 2


@pytest.mark.parametrize(("values", "mean"), [([], math.nan), ([0.5], 0.5)])
def test_bootstrap_of_fewer_than_two_images_has_no_interval(values, mean):
    result = bootstrap_mean(values, seed=0)
    assert result == pytest.approx((mean, math.nan, math.nan), nan_ok=True)


def test_bootstrap_resamples_whole_groups():
    # Two groups of equal images: each resample is one group twice, or both.
    values, groups = [0.0, 0.0, 0.0, 4.0], [7, 7, 7, 2]
    mean, low, high = bootstrap_mean(values, 0, groups)
    assert mean == 1  # images weigh equally
    assert (low, high) == (0, 4)


def test_bootstrap_of_repeated_images_is_as_wide_as_that_of_the_images():
    values = np.random.default_rng(0).normal(size=40)
    once = bootstrap_mean(values.tolist(), 3)
    eightfold = bootstrap_mean(values.repeat(8).tolist(), 3, np.arange(40).repeat(8).tolist())
    assert eightfold == pytest.approx(once)


def test_bootstrap_of_one_group_has_no_interval():
    assert bootstrap_mean([1.0, 3.0], 0, [5, 5]) == pytest.approx(
        (2, math.nan, math.nan), nan_ok=True
    )


def test_bootstrap_rejects_another_number_of_groups():
    with pytest.raises(ArgumentError, match="a group for each of 2 images, got 1"):
        bootstrap_mean([1.0, 3.0], 0, [5])


def test_bootstrap_is_repeatable():
    values = np.random.default_rng(0).uniform(size=30).tolist()
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


@pytest.mark.parametrize(
    ("differences", "p_value"),
    [
        ([-1.0, -2.0, -4.0], 1 / 8),  # no other pattern has as low a mean
        ([-1.0, -2.0, 4.0], 5 / 8),  # sums of at most 1: 1, -1, -3, -5 and -7
        ([-1.0, math.nan, -2.0], 1 / 4),
        ([-0.1] * 3, 1 / 8),
        ([0.0, 0.0], 1),
        ([], 1),
        ([-1.0] * 6, 1 / 64),
    ],
)
def test_sign_flip_p_value_by_hand(differences, p_value):
    assert sign_flip_p_value(differences, seed=0) == p_value


def test_sign_flip_p_value_of_many_groups_is_drawn():
    differences = np.random.default_rng(0).normal(-0.2, 1, size=30)
    z = differences.sum() / np.square(differences).sum() ** 0.5
    normal = 0.5 * math.erfc(-z / 2**0.5)
    assert sign_flip_p_value(differences.tolist(), seed=0) == pytest.approx(normal, rel=0.1)
    assert sign_flip_p_value([-1.0] * 30, seed=0) == 1 / 20_000


@pytest.mark.parametrize("groups", [2, 3, 5, 6, 8, 12])
def test_sign_flip_test_rejects_at_most_its_level_without_an_effect(groups):
    rng = np.random.default_rng(groups)
    draws, level = 1000, 0.025
    magnitudes = rng.lognormal(sigma=2, size=(draws, groups))
    differences = magnitudes * rng.choice([-1, 1], size=(draws, groups))
    rejected = np.mean([sign_flip_p_value(row.tolist(), seed=0) <= level for row in differences])
    assert rejected <= level + 3 * (level * (1 - level) / draws) ** 0.5
    if groups < 6:
        assert rejected == 0


def test_nll_of_correctness_by_hand():
    evaluation = Evaluation(2)
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    evaluation.add(probabilities.log(), torch.tensor([0, 1]))
    expected = -(math.log(0.9) + math.log(0.4)) / 2
    assert evaluation.images[0].correctness_nll == pytest.approx(expected)
    assert evaluation.result().correctness_nll == pytest.approx(expected)
