"""Reliability diagrams and risk-coverage curves as SVG.

matplotlib is imported inside the functions: the import takes half a second, which only responses
that contain a chart should take. The background is transparent, and the colours have a contrast
of at least 3.9 to white and to the page's dark background.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from app.calibration.metrics.confidence_histogram import RiskCoverage
from app.calibration.metrics.reliability import ReliabilityBin
from app.errors import ArtifactError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Stage = Literal["before", "after"]  # of calibration


class Style(NamedTuple):
    """Legend entry, colour and line of a curve."""

    label: str
    color: str
    line: str


STYLES: dict[Stage, Style] = {
    "before": Style("uncalibrated", "#c8544f", "--"),  # dashed: both show where they agree
    "after": Style("calibrated", "#3a86b4", "-"),
}
GREY = "#757d86"
MIN_PIXELS = 100  # a bin of fewer has a hollow marker
MIN_FRACTION = 1e-4  # lower end of the axis of pixel fractions
SMALLEST_RISK_SCALE = 0.01
MIN_COVERAGE = 0.05  # the error rate of fewer pixels is noise and does not set the scale


def reliability_curves(report: Mapping[str, object]) -> dict[Stage, list[ReliabilityBin]]:
    """Read the reliability curves of a calibration report, see `app.calibration.report`.

    Raises ArtifactError for a report without them.
    """
    curves: Any = report.get("reliability")
    try:
        return {stage: [ReliabilityBin(**bin_) for bin_ in curves[stage]] for stage in STYLES}
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            "expected reliability curves before and after in the report, got none"
        ) from error


def reliability_diagram(curves: Mapping[Stage, Sequence[ReliabilityBin]]) -> bytes:
    """Draw accuracy against mean confidence, and the fraction of pixels in each bin, as SVG.

    Empty bins are left out. The same curves give the same bytes.
    """
    figure = create_figure()
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="perfect")
    for stage, curve in curves.items():
        _draw_reliability(upper, lower, stage, [bin_ for bin_ in curve if bin_.pixels])
    lower.set_yscale("log")
    finish(upper, ylabel="accuracy", ylim=(0, 1))
    finish(lower, xlabel="confidence", ylabel="pixels", ylim=(MIN_FRACTION, 1))
    upper.legend(frameon=False, labelcolor=GREY, loc="upper left")
    return to_svg(figure)


def risk_coverage_diagram(curves: Mapping[Stage, Sequence[RiskCoverage]]) -> bytes:
    """Draw the error rate among accepted pixels against the fraction accepted, as SVG.

    The same curves give the same bytes.
    """
    figure = create_figure()
    axes = figure.subplots()
    for stage, curve in curves.items():
        style = STYLES[stage]
        coverage, risk = [point.coverage for point in curve], [point.risk for point in curve]
        axes.plot(coverage, risk, style.line, color=style.color, label=style.label, gid=stage)
    risks = [p.risk for curve in curves.values() for p in curve if p.coverage >= MIN_COVERAGE]
    top = min(1.05 * max([*risks, SMALLEST_RISK_SCALE]), 1)
    finish(axes, xlabel="accepted pixels", ylabel="error among accepted pixels", ylim=(0, top))
    axes.legend(frameon=False, labelcolor=GREY, loc="upper left")
    return to_svg(figure)


def _draw_reliability(
    upper: "Axes", lower: "Axes", stage: Stage, curve: Sequence[ReliabilityBin]
) -> None:
    """Draw one curve of accuracy with its bins, and the bars of their fractions of pixels."""
    label, color, line = STYLES[stage]
    confidence, accuracy = [bin_.confidence for bin_ in curve], [bin_.accuracy for bin_ in curve]
    faces = [color if bin_.pixels >= MIN_PIXELS else "none" for bin_ in curve]
    upper.plot(confidence, accuracy, line, color=color, label=label, gid=stage)
    upper.scatter(confidence, accuracy, 25, faces, edgecolors=color, zorder=3, gid=f"{stage}-bins")
    total = sum(bin_.pixels for bin_ in curve)
    lower.bar(
        [bin_.lower for bin_ in curve],
        [bin_.pixels / total for bin_ in curve],
        [bin_.upper - bin_.lower for bin_ in curve],
        align="edge",
        color=(color, 0.25),
        edgecolor=color,
        linestyle=line,
    )


def create_figure(height: float = 5.2) -> "Figure":
    """Create an empty figure, without the state that `pyplot` keeps for all threads.

    It is 5 inches wide and `height` inches high.
    """
    from matplotlib import rcParams  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    # Never restored: that would race with a figure which another thread is writing.
    rcParams.update({"svg.hashsalt": "segcal", "svg.fonttype": "none"})
    return Figure(figsize=(5, height), layout="constrained", facecolor="none")


def finish(axes: "Axes", *, ylim: tuple[float, float], xlabel: str = "", ylabel: str) -> None:
    """Set limits, labels in percent, and colours that suit light and dark pages."""
    axes.set(xlim=(0, 1), ylim=ylim, xlabel=xlabel, ylabel=ylabel)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(percent_label)
    set_colors(axes)


def percent_label(value: float, _position: float) -> str:
    """Format a tick's fraction in percent."""
    return f"{100 * value:.3g}%"


def set_colors(axes: "Axes") -> None:
    """Set colours that suit light and dark pages, and the id of the plot's area."""
    axes.set(facecolor="none")
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(GREY)
    axes.title.set_color(GREY)
    axes.tick_params(which="both", color=GREY, labelcolor=GREY)
    axes.spines[:].set_color(GREY)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.7)
    axes.patch.set_gid("plot")


def to_svg(figure: "Figure") -> bytes:
    """Encode a figure as SVG, without metadata that changes between runs."""
    buffer = io.BytesIO()
    absent = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=absent)
    return buffer.getvalue()
