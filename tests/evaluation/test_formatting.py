"""Sentences, numbers, charts and images, each by itself."""

import base64
import io
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image

from app.calibration.metrics.assessment import Assessment
from app.calibration.metrics.confidence_histogram import RiskCoverage
from app.calibration.metrics.intervals import Interval
from app.calibration.metrics.reliability import ReliabilityBin
from app.evaluation import charts
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
    signed,
)
from app.evaluation.thumbnails import LONG_SIDE, SURE, UNSURE, VOID, error_map, views
from tests.factories.predictions import prediction_of


def assessed(*groups: tuple[float, int, int]) -> Assessment:
    """One image of two classes from (confidence, right pixels, wrong pixels)."""
    confidence = torch.cat([torch.full((right + wrong,), c) for c, right, wrong in groups])
    predicted = torch.cat(
        [torch.cat([torch.zeros(right), torch.ones(wrong)]) for _, right, wrong in groups]
    ).long()
    labels = torch.zeros_like(predicted)
    prediction = prediction_of(confidence[None], predicted[None])
    return Assessment(2).add(prediction, labels[None], nll=1, brier=1)


# Sentences


def test_headline_says_what_90_percent_is_worth():
    assert headline(assessed((0.9, 176, 24), (0.99, 500, 0)), None) == (
        "When the service says 90%, it is right in 88% of pixels."
    )


def test_headline_speaks_of_what_is_served():
    before, after = assessed((0.9, 150, 50)), assessed((0.88, 170, 30))
    assert headline(before, after) == "When the service says 88%, it is right in 85% of pixels."
    assert findings(before, after, Interval(-0.1, -0.2, -0.05))[0] == (
        "Uncalibrated, a confidence of 90% was right in 75%."
    )


def test_headline_without_pixels_near_90_percent_speaks_of_the_mean():
    assert headline(assessed((0.9, 99, 0), (0.6, 301, 100)), None) == (
        "The service says 66% on average, and is right in 80% of pixels."
    )


@pytest.mark.parametrize(
    ("confidence", "right", "words"),
    [(0.9, 80, "over-confident by 10.0 percentage points"),
     (0.6, 80, "under-confident by 20.0 percentage points"),
     (0.802, 80, "neither over- nor under-confident")],
)  # fmt: skip
def test_overall_bias_is_named(confidence, right, words):
    (overall, *_) = findings(assessed((confidence, right, 100 - right)), None, None)
    assert words in overall


@pytest.mark.parametrize(
    ("change", "words"),
    [(Interval(-0.1, -0.15, -0.05), "better beyond chance"),
     (Interval(0.1, 0.05, 0.15), "worse beyond chance"),
     (Interval(0.0, -0.05, 0.05), "can not tell from chance"),
     (Interval(0.0, -0.00001, 0.00002), "leaves the image-wise calibration error at 0.1000"),
     (Interval(0.1, math.nan, math.nan), "one image gives no interval")],
)  # fmt: skip
def test_verdict_follows_the_interval(change, words):
    side = assessed((0.7, 80, 20))
    assert any(words in sentence for sentence in findings(side, side, change))


def test_abstention_is_offered_where_something_is_wrong():
    some = findings(assessed((0.9, 800, 0), (0.5, 150, 50)), None, None)
    assert some[-1] == "The surest 80% of pixels are wrong in 0.0%, all of them in 5.0%."
    assert not any("surest" in line for line in findings(assessed((0.9, 10, 0)), None, None))


# Numbers


def test_numbers_as_they_are_written():
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


# Charts


def shapes(svg: str, kind: str) -> list[ET.Element]:
    return [e for e in ET.fromstring(svg).iter() if kind in e.get("class", "").split()]


def test_reliability_bars_are_as_high_as_accuracy():
    curve = [
        ReliabilityBin(0.0, 0.5, 0, math.nan, math.nan),
        ReliabilityBin(0.5, 1.0, 1000, 0.8, 0.6),
    ]
    svg = charts.reliability(curve, "after")
    accuracy, fraction = shapes(svg, "bar")
    (gap,) = shapes(svg, "gap")
    assert float(accuracy.get("height", "")) == pytest.approx(0.6 * charts.SIDE)
    assert float(gap.get("height", "")) == pytest.approx(0.2 * charts.SIDE, abs=0.01)
    assert float(gap.get("y", "")) == pytest.approx(charts.TOP + 0.2 * charts.SIDE)
    assert float(fraction.get("height", "")) == charts.MASS_HEIGHT
    assert "1\u202f000 pixels, says 80.0%, right in 60.0%" in svg


def test_bins_of_few_pixels_are_faint():
    few = ReliabilityBin(0.5, 1.0, 99, 0.8, 0.6)
    assert len(shapes(charts.reliability([few], "before"), "faint")) == 1


def test_reliability_of_nothing_is_an_empty_plot():
    assert shapes(charts.reliability([], "before"), "bar") == []


def test_risk_coverage_curves_lie_in_the_plot():
    points_ = [RiskCoverage(0.001, 1.0), RiskCoverage(0.5, 0.01), RiskCoverage(1.0, 0.04)]
    svg = charts.risk_coverage(
        [charts.Curve("before", points_), charts.Curve("after", points_[1:])]
    )
    curves = {e.get("class"): e.get("points", "") for e in shapes(svg, "curve")}
    assert curves.keys() == {"curve before", "curve after"}
    drawn = [tuple(map(float, pair.split(","))) for pair in curves["curve before"].split()]
    # The scale ends at 5%: the first point, of a handful of pixels, is cut off at the top.
    assert drawn[0][1] == charts.TOP
    assert drawn[-1] == pytest.approx((charts.LEFT + charts.SIDE, charts.TOP + 0.2 * charts.SIDE))
    assert re.findall(r">(\d+)%</text>", svg)[:6] == ["0", "1", "2", "3", "4", "5"]


def test_share_bar_of_nothing_is_nothing():
    assert charts.fraction_bar(math.nan) == ""
    assert 'width="15.0"' in charts.fraction_bar(0.25)


# Images


def test_errors_run_from_yellow_to_red_and_the_rest_is_dim():
    image = np.full((1, 4, 3), 200, np.uint8)
    mask = np.array([[0, 1, 1, 1]], np.uint8)
    labels = np.array([[0, 0, 0, -1]], np.int32)
    confidence = np.array([[0.9, 0.4, 1.0, 1.0]], np.float32)
    right, unsure, sure, void = error_map(image, mask, confidence, labels)[0]
    assert right.tolist() == [70, 70, 70]
    assert unsure.tolist() == UNSURE.tolist()
    assert sure.tolist() == SURE.tolist()
    assert void.tolist() == [VOID] * 3


def test_views_are_small_and_in_proportion():
    height, width = 1000, 1500
    image = np.zeros((height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    drawn = views(image, mask, np.ones((height, width), np.float32), mask.astype(np.int32),
                  [(255, 0, 0)])  # fmt: skip
    assert (drawn.width, drawn.height) == (LONG_SIDE, 320)
    for uri in drawn[2:]:
        data = base64.b64decode(uri.split(",", 1)[1])
        with Image.open(io.BytesIO(data)) as decoded:
            assert decoded.size == (480, 320)


def test_long_thin_images_keep_a_row():
    strip = np.zeros((1, 4000), np.uint8)
    drawn = views(np.zeros((1, 4000, 3), np.uint8), strip, np.ones((1, 4000), np.float32),
                  strip.astype(np.int32), [(0, 0, 0)])  # fmt: skip
    assert (drawn.width, drawn.height) == (480, 1)
