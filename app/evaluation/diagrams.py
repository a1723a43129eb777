"""Reliability diagrams as SVG, drawn from the numbers in a report."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from app.errors import ArtifactError

Curve = Sequence[Mapping[str, float]]

BEFORE, AFTER = "#b0413e", "#2a6f97"


def reliability_svg(report: Mapping[str, object]) -> bytes:
    """Draw accuracy against confidence before and after, over the pixels in each bin.

    Takes a report as `app.calibration.report` shapes it; raises ArtifactError for another.
    """
    curves = report.get("reliability")
    if not isinstance(curves, Mapping):
        raise ArtifactError("expected reliability curves in the report, got none")
    figure = Figure(figsize=(5, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="perfect")
    for name, color in (("before", BEFORE), ("after", AFTER)):
        _draw(upper, lower, curves[name], name, color)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title="Reliability on held-out images")
    upper.legend(frameon=False)
    lower.set(xlabel="confidence", ylabel="share of pixels", yscale="log")
    buffer = io.BytesIO()
    # Without a date the same report gives the same bytes.
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "segcal"})
    return buffer.getvalue()


def _draw(upper: Axes, lower: Axes, curve: Curve, name: str, color: str) -> None:
    confidence = [point["confidence"] for point in curve]
    upper.plot(confidence, [p["accuracy"] for p in curve], "o-", color=color, label=name)
    total = sum(point["pixels"] for point in curve)
    fraction = [point["pixels"] / total for point in curve]
    centres = [(point["lower"] + point["upper"]) / 2 for point in curve]
    lower.step(centres, fraction, where="mid", color=color)
