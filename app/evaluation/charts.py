"""Reliability and risk-coverage as SVG for a page: shapes with classes, coloured by its style.

Nothing but numbers goes in, so nothing has to be escaped.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from app.calibration.metrics.confidence_histogram import RiskCoverage
from app.calibration.metrics.reliability import ReliabilityBin
from app.evaluation.formatting import count, percent

LEFT, TOP, SIDE = 58, 10, 260  # of the plot, in the drawing's own units
MASS_TOP, MASS_HEIGHT = 286, 54
DECADES = 4  # of shares of pixels, from 0.01% to 100%
FEW = 100  # pixels; a bin of fewer is drawn faint
STEPS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Curve(NamedTuple):
    """One risk-coverage curve and the class of its colour."""

    kind: str
    points: Sequence[RiskCoverage]


def reliability(curve: Sequence[ReliabilityBin], kind: str) -> Markup:
    """Draw accuracy by confidence as bars with the gap to mean confidence, and shares below.

    `kind` is the class of the colour, "before" or "after".
    """
    total = sum(point.pixels for point in curve) or 1
    shapes = [_axes(1.0, "accuracy")]
    shapes += [_bar(point, kind, point.pixels / total) for point in curve if point.pixels]
    shapes += [
        _line("ideal", (0, 0), (1, 1)),
        _text(LEFT - 6, MASS_TOP + 8, "100%", "end"),
        _text(LEFT - 6, MASS_TOP + MASS_HEIGHT, "0.01%", "end"),
        _side_title(MASS_TOP + MASS_HEIGHT / 2, "pixels"),
        _ticks(MASS_TOP + MASS_HEIGHT + 15),
        _text(LEFT + SIDE / 2, MASS_TOP + MASS_HEIGHT + 32, "confidence", "middle"),
    ]
    return _svg(shapes, MASS_TOP + MASS_HEIGHT + 38, "Accuracy by confidence")


def risk_coverage(lines: Sequence[Curve]) -> Markup:
    """Draw the error among accepted pixels over the share accepted."""
    # The first few pixels' error rate is noise and would set the scale.
    risks = [p.risk for line in lines for p in line.points if p.coverage >= 0.05]
    top = next(step for step in STEPS if step >= min(max([*risks, 0.0]) * 1.02, 1))
    shapes = [_axes(top, "error among accepted pixels")]
    for line in reversed(lines):  # the first one is dashed, so that both show where they agree
        points = " ".join(_point(p.coverage, min(p.risk / top, 1)) for p in line.points)
        shapes.append(f'<polyline class="curve {line.kind}" points="{points}"/>')
    shapes += [
        _ticks(TOP + SIDE + 15),
        _text(LEFT + SIDE / 2, TOP + SIDE + 32, "share of pixels accepted", "middle"),
    ]
    return _svg(shapes, TOP + SIDE + 38, "Error by coverage")


def fraction_bar(fraction: float) -> Markup:
    """Draw a share in 0..1 as a small bar; nothing where it is undefined."""
    if math.isnan(fraction):
        return Markup("")
    return Markup(  # noqa: S704 - numbers only
        '<svg class="share" viewBox="0 0 60 8" aria-hidden="true"><rect class="track" width="60" '
        f'height="8" rx="2"/><rect class="fill" width="{60 * fraction:.1f}" height="8" rx="2"/>'
        "</svg>"
    )


def swatch(color: str) -> Markup:
    """Draw a class's colour, `#rrggbb` by its card."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 10 10" aria-hidden="true">'
        '<rect width="10" height="10" rx="2" fill="{}"/></svg>'
    ).format(color)


def _bar(point: ReliabilityBin, kind: str, fraction: float) -> str:
    """Draw one bin: what was right, the gap to what was said, and how many pixels it holds."""
    x = LEFT + SIDE * point.lower + 0.75
    width = SIDE * (point.upper - point.lower) - 1.5
    right, said = _y(point.accuracy), _y(point.confidence)
    faint = " faint" if point.pixels < FEW else ""
    height = MASS_HEIGHT * max(0.0, 1 + math.log10(fraction) / DECADES)
    return (
        f'<g class="bin{faint}"><title>{percent(point.lower)} to {percent(point.upper)}: '
        f"{count(point.pixels)} pixels, says {percent(point.confidence)}, "
        f"right in {percent(point.accuracy)}</title>"
        f"{_rect(f'bar {kind}', x, right, width, _y(0) - right)}"
        f"{_rect('gap', x, min(right, said), width, abs(right - said))}"
        f"{_rect(f'bar {kind}', x, MASS_TOP + MASS_HEIGHT - height, width, height)}</g>"
    )


def _axes(top: float, title: str) -> str:
    """Draw the plot's grid of fifths, the numbers at its left, and what they are."""
    parts = []
    for step in range(6):
        fraction = step / 5
        parts += [
            _line("grid", (0, fraction), (1, fraction)),
            _line("grid", (fraction, 0), (fraction, 1)),
        ]
        parts.append(_text(LEFT - 6, _y(fraction) + 4, f"{100 * top * fraction:.3g}%", "end"))
    return "".join([*parts, _side_title(TOP + SIDE / 2, title)])


def _ticks(y: float) -> str:
    """Write the shares along the bottom."""
    return "".join(_text(LEFT + SIDE * s / 5, y, f"{20 * s}%", "middle") for s in range(6))


def _side_title(y: float, text: str) -> str:
    return (
        f'<text class="axis" transform="translate(12 {y:.1f}) rotate(-90)" '
        f'text-anchor="middle">{text}</text>'
    )


def _svg(shapes: Sequence[str], height: float, title: str) -> Markup:
    return Markup(  # noqa: S704 - shapes of numbers, and texts of this module
        f'<svg viewBox="0 0 {LEFT + SIDE + 16} {height:.0f}" role="img" aria-label="{title}">'
        f"{''.join(shapes)}</svg>"
    )


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="{kind}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"/>'
    )


def _line(kind: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    return f'<polyline class="{kind}" points="{_point(*start)} {_point(*end)}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="axis" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _point(x: float, y: float) -> str:
    return f"{LEFT + SIDE * x:.2f},{_y(y):.2f}"


def _y(fraction: float) -> float:
    return TOP + SIDE * (1 - fraction)
