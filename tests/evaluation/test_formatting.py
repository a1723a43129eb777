"""Findings in sentences, and formatted numbers."""

import math

import pytest
import torch

from app.calibration.metrics.assessment import Assessment
from app.calibration.metrics.intervals import Interval
from app.evaluation.fit_images import SharedImages
from app.evaluation.formatting import (
    MINUS,
    NONE,
    count,
    findings,
    headline,
    number,
    percent,
    points,
    round_percent,
    shared_images,
    signed,
)
from app.evaluation.resampling import ResamplingUnits
from tests.factories.predictions import prediction_of

GROUPS = ResamplingUnits.of(range(12), 12)


def assessed(*groups: tuple[float, int, int]) -> Assessment:
    """Assess an image of two classes from (confidence, correct pixels, wrong pixels)."""
    confidence = torch.cat([torch.full((right + wrong,), c) for c, right, wrong in groups])
    predicted = torch.cat(
        [torch.cat([torch.zeros(right), torch.ones(wrong)]) for _, right, wrong in groups]
    ).long()
    labels = torch.zeros_like(predicted)
    prediction = prediction_of(confidence[None], predicted[None])
    return Assessment(2).add(prediction, labels[None], nll=1, brier=1)


# Sentences


def test_headline_gives_the_accuracy_at_90_percent_confidence():
    assert headline(assessed((0.9, 176, 24), (0.99, 500, 0)), None) == (
        "At a confidence of 90%, 88% of pixels are correct."
    )


def test_headline_is_about_the_served_confidence():
    before, after = assessed((0.9, 150, 50)), assessed((0.88, 170, 30))
    assert headline(before, after) == "At a confidence of 88%, 85% of pixels are correct."
    assert findings(before, after, Interval(-0.1, -0.2, -0.05), GROUPS)[0] == (
        "Uncalibrated, at a confidence of 90%, 75% of pixels are correct."
    )


def test_headline_without_pixels_near_90_percent_gives_the_mean():
    assert headline(assessed((0.9, 99, 0), (0.6, 301, 100)), None) == (
        "Mean confidence is 66%, and 80% of pixels are correct."
    )


@pytest.mark.parametrize(
    ("confidence", "right", "words"),
    [(0.9, 80, "over-confident by 10.0 percentage points"),
     (0.6, 80, "under-confident by 20.0 percentage points"),
     (0.802, 80, "neither over- nor under-confident")],
)  # fmt: skip
def test_overall_bias_is_named(confidence, right, words):
    (overall, *_) = findings(assessed((confidence, right, 100 - right)), None, None, GROUPS)
    assert words in overall


@pytest.mark.parametrize(
    ("change", "words"),
    [(Interval(-0.1, -0.15, -0.05), "a significant improvement"),
     (Interval(0.1, 0.05, 0.15), "significantly worse"),
     (Interval(0.0, -0.05, 0.05), "not a significant change"),
     (Interval(0.0, -0.00001, 0.00002), "leaves the image-wise calibration error at 0.1000"),
     (Interval(0.1, math.nan, math.nan), "fewer than 10 groups give no confidence interval"),
     (Interval(0.1, 0.05, 0.15), "95% interval of the change by group: +0.0500 to +0.1500")],
)  # fmt: skip
def test_significance_follows_the_interval(change, words):
    side = assessed((0.7, 80, 20))
    assert any(words in sentence for sentence in findings(side, side, change, GROUPS))


def test_abstention_is_described_where_pixels_are_wrong():
    some = findings(assessed((0.9, 800, 0), (0.5, 150, 50)), None, None, GROUPS)
    assert some[-1] == ("Of the most confident 80% of pixels 0.0% are wrong, of all pixels 5.0%.")
    none = findings(assessed((0.9, 10, 0)), None, None, GROUPS)
    assert not any("most confident" in sentence for sentence in none)


def test_images_of_the_fit_are_named():
    assert "does not record the images of its fit" in shared_images(None, 5)
    assert shared_images(SharedImages(0, 0, 0, 0), 5).startswith("None of the images")
    assert shared_images(SharedImages(3, 2, 0, 1), 5) == (
        "3 of 5 images are among those of the calibrator's fit (2 to fit, 0 to select the method, "
        "1 to test it): the metrics are optimistic."
    )


# Numbers


def test_numbers_are_formatted():
    assert [number(v) for v in (0.12345, -0.5, -0.00001, math.nan, None)] == [
        "0.1235", f"{MINUS}0.5000", "0.0000", NONE, NONE
    ]  # fmt: skip
    assert [signed(v) for v in (0.5, -0.5, 0.00001)] == ["+0.5000", f"{MINUS}0.5000", "0.0000"]
    assert [percent(0.1234), percent(0.5, 0), percent(math.nan)] == ["12.3%", "50%", NONE]
    assert [round_percent(v) for v in (0, 0.004, 0.5, 0.995, 1)] == [
        "0%", "0.4%", "50%", "99.5%", "100%"
    ]  # fmt: skip
    assert [points(v) for v in (0.031, -0.0204, 0.0001, math.nan)] == [
        "+3.1",
        f"{MINUS}2.0",
        "0.0",
        NONE,
    ]
    assert count(1234567) == "1\u202f234\u202f567"
