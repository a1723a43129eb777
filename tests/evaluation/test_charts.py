"""Charts: drawn coordinates, and equal bytes for equal data."""

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from app.calibration.metrics.confidence_histogram import RiskCoverage
from app.calibration.metrics.reliability import ReliabilityBin
from app.errors import ArtifactError
from app.evaluation.charts import (
    STYLES,
    Stage,
    reliability_curves,
    reliability_diagram,
    risk_coverage_diagram,
)

NAMESPACES = {"svg": "http://www.w3.org/2000/svg", "xlink": "http://www.w3.org/1999/xlink"}
HREF = f"{{{NAMESPACES['xlink']}}}href"
EMPTY = ReliabilityBin(0.0, 0.5, 0, math.nan, math.nan)
BEFORE = [
    EMPTY,
    ReliabilityBin(0.5, 0.75, 99, 0.7, 0.4),
    ReliabilityBin(0.75, 1.0, 9801, 0.9, 0.6),
]
AFTER = [EMPTY, ReliabilityBin(0.5, 0.75, 9900, 0.6, 0.65)]


@dataclass
class Chart:
    """Parses a chart's SVG; the upper panel spans x from 0 to 1 and y from 0 to `top`."""

    svg: bytes
    top: float = 1.0

    def groups(self, name: str) -> list[ET.Element]:
        return ET.fromstring(self.svg).findall(f".//svg:g[@id='{name}']", NAMESPACES)

    def curve(self, name: str) -> list[tuple[float, float]]:
        """Return the data coordinates of a line's points."""
        (group,) = self.groups(name)
        (path,) = group.findall("svg:path", NAMESPACES)
        return self.data([tuple(map(float, p)) for p in path_points(path)])

    def markers(self, name: str) -> list[tuple[float, float]]:
        """Return the data coordinates of the markers."""
        uses = [use for g in self.groups(name) for use in g.iterfind(".//svg:use", NAMESPACES)]
        return self.data([(float(use.get("x", "")), float(use.get("y", ""))) for use in uses])

    def data(self, points: list[tuple[float, ...]]) -> list[tuple[float, float]]:
        plot = self.groups("plot")[0].find("svg:path", NAMESPACES)
        assert plot is not None
        columns, rows = zip(*path_points(plot), strict=True)
        left, right, upper, lower = min(columns), max(columns), min(rows), max(rows)
        return [
            ((x - left) / (right - left), self.top * (lower - y) / (lower - upper))
            for x, y in points
        ]

    def texts(self) -> list[str]:
        return [
            text.text or "" for text in ET.fromstring(self.svg).iterfind(".//svg:text", NAMESPACES)
        ]


def path_points(path: ET.Element) -> list[tuple[float, float]]:
    pairs = re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))
    return [(float(x), float(y)) for x, y in pairs]


def near(points: list[tuple[float, float]]) -> list[object]:
    return [pytest.approx(point, abs=1e-4) for point in points]


# Reliability diagram


def test_reliability_curves_are_accuracy_by_confidence():
    chart = Chart(reliability_diagram({"before": BEFORE, "after": AFTER}))
    assert chart.curve("before") == near([(0.7, 0.4), (0.9, 0.6)])
    assert chart.markers("before-bins") == near([(0.7, 0.4), (0.9, 0.6)])
    assert chart.markers("after-bins") == near([(0.6, 0.65)])
    assert {"perfect", "uncalibrated", "calibrated", "confidence", "accuracy"} <= set(chart.texts())


def test_bars_are_the_fractions_of_pixels_on_a_logarithmic_axis():
    (panel,) = Chart(reliability_diagram({"before": BEFORE})).groups("axes_2")
    paths = list(panel.iterfind(".//svg:path", NAMESPACES))
    bottom, *_, top = sorted((y for _, y in path_points(paths[0])), reverse=True)  # the background
    bars = [path for path in paths if "fill-opacity: 0.25" in path.get("style", "")]
    heights = [(bottom - min(y for _, y in path_points(bar))) / (bottom - top) for bar in bars]
    decades = 4  # from 0.01% to 100%
    assert heights == pytest.approx(
        [1 + math.log10(fraction) / decades for fraction in (0.01, 0.99)], abs=1e-4
    )


def test_bins_of_few_pixels_have_hollow_markers():
    (group,) = Chart(reliability_diagram({"before": BEFORE})).groups("before-bins")
    styles = [use.get("style", "") for use in group.iterfind(".//svg:use", NAMESPACES)]
    color = STYLES["before"].color
    assert [f"fill: {color}" in style for style in styles] == [False, True]


@pytest.mark.parametrize("curves", [{}, {"before": []}, {"before": [EMPTY], "after": []}])
def test_reliability_of_no_pixels_is_an_empty_plot(curves):
    chart = Chart(reliability_diagram(curves))
    assert chart.markers("before-bins") == []
    assert chart.markers("after-bins") == []


# Risk-coverage curve


def test_risk_coverage_curves_are_scaled_to_the_risk_of_many_pixels():
    noisy = [RiskCoverage(0.001, 1.0), RiskCoverage(0.5, 0.01), RiskCoverage(1.0, 0.04)]
    chart = Chart(risk_coverage_diagram({"before": noisy, "after": noisy[1:]}), top=1.05 * 0.04)
    assert chart.curve("after") == near([(0.5, 0.01), (1.0, 0.04)])
    # The first point of `before`, of few pixels, is beyond the axis and clipped.
    assert chart.curve("before")[-1] == pytest.approx((1.0, 0.04), abs=1e-4)
    assert chart.curve("before")[0][1] > chart.top
    assert "4%" in chart.texts()
    assert {"uncalibrated", "calibrated", "accepted pixels"} <= set(chart.texts())


@pytest.mark.parametrize("curve", [[], [RiskCoverage(1.0, 0.0)], [RiskCoverage(1.0, 1.0)]])
def test_risk_coverage_of_extremes_is_drawn(curve):
    assert "100%" in Chart(risk_coverage_diagram({"before": curve})).texts()


# Reproducibility


def test_same_curves_give_the_same_bytes_in_every_thread():
    curves: dict[Stage, list[ReliabilityBin]] = {"before": BEFORE, "after": AFTER}
    with ThreadPoolExecutor(4) as pool:
        charts = set(pool.map(lambda _: reliability_diagram(curves), range(8)))
    assert len(charts) == 1
    assert b"<dc:date>" not in charts.pop()


def test_importing_charts_does_not_import_matplotlib():
    code = "import app.evaluation.charts, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Curves of a calibration report


def test_curves_are_read_from_a_report():
    report = {
        "reliability": {"before": [BEFORE[1]._asdict()], "after": [AFTER[1]._asdict()]},
    }
    assert reliability_curves(report) == {"before": [BEFORE[1]], "after": [AFTER[1]]}


@pytest.mark.parametrize(
    "report",
    [{}, {"reliability": None}, {"reliability": {"before": []}},
     {"reliability": {"before": [{"lower": 0}], "after": []}}],
)  # fmt: skip
def test_reports_without_curves_are_rejected(report):
    with pytest.raises(ArtifactError, match="expected reliability curves before and after"):
        reliability_curves(report)
