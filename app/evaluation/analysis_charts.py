"""Figures of the analyses as SVG, in the style of `charts`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.calibration.metrics import subsets
from app.calibration.metrics.assessment import Assessment
from app.calibration.metrics.intervals import Interval
from app.evaluation.charts import (
    GREY,
    STYLES,
    Stage,
    create_figure,
    finish,
    percent_label,
    set_colors,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 0.38  # of a bar; its group has a width of 1
BAR_INCHES = 0.42  # of a group of bars
FRAME_INCHES = 1.2  # of axis labels and legend
SMALLEST_FRACTION_SCALE = 0.1
COLORS = {"ECE": "#c8544f", "AUIoU": "#3a86b4"}


def correctness_diagram(sides: Mapping[Stage, Assessment]) -> bytes:
    """Draw the fractions of correct and of mispredicted pixels by confidence."""
    figure = create_figure()
    panels = figure.subplots(2, 1, sharex=True)
    names = {subsets.CORRECT: "correct pixels", subsets.MISPREDICTED: "mispredicted pixels"}
    for axes, (kind, title) in zip(panels, names.items(), strict=True):
        top = SMALLEST_FRACTION_SCALE
        for stage, side in sides.items():
            curve = side.kind_reliability(kind)
            total = max(sum(bin_.pixels for bin_ in curve), 1)
            fractions = [bin_.pixels / total for bin_ in curve]
            top = max(top, *fractions)
            edges = [*(bin_.lower for bin_ in curve), 1.0]
            label, color, line = STYLES[stage]
            axes.stairs(
                fractions, edges, color=color, linestyle=line, label=label, gid=f"{kind}-{stage}"
            )
        axes.set_title(title, fontsize="medium")
        finish(axes, ylabel="fraction", ylim=(0, min(1.05 * top, 1)))
    panels[-1].set_xlabel("confidence")
    _legend(panels[0])
    return to_svg(figure)


def boundary_diagram(sides: Mapping[Stage, Assessment]) -> bytes:
    """Draw accuracy against confidence, near another class and elsewhere."""
    figure = create_figure()
    panels = figure.subplots(2, 1, sharex=True)
    names = {subsets.BOUNDARY: "within 2 pixels of another class", subsets.INTERIOR: "elsewhere"}
    for axes, (kind, title) in zip(panels, names.items(), strict=True):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
        for stage, side in sides.items():
            curve = [bin_ for bin_ in side.kind_reliability(kind) if bin_.pixels]
            label, color, line = STYLES[stage]
            axes.plot(
                [bin_.confidence for bin_ in curve],
                [bin_.accuracy for bin_ in curve],
                line,
                marker=".",
                color=color,
                label=label,
                gid=f"{kind}-{stage}",
            )
        axes.set_title(title, fontsize="medium")
        finish(axes, ylabel="accuracy", ylim=(0, 1))
    panels[-1].set_xlabel("confidence")
    _legend(panels[0])
    return to_svg(figure)


def bar_diagram(names: Sequence[str], sides: Mapping[Stage, Sequence[Interval]]) -> bytes:
    """Draw the ECE of each name as horizontal bars from top to bottom, with its interval."""
    figure = create_figure(FRAME_INCHES + BAR_INCHES * len(names))
    axes = figure.subplots()
    for number, (stage, intervals) in enumerate(sides.items()):
        style = STYLES[stage]
        shift = (number - (len(sides) - 1) / 2) * WIDTH
        places = [place + shift for place in range(len(names))]
        means = [interval.mean for interval in intervals]
        axes.barh(places, means, WIDTH, color=style.color, label=style.label, gid=stage)
        axes.errorbar(
            means, places, xerr=_reach(intervals), fmt="none", ecolor=GREY, elinewidth=1, capsize=2
        )
    # Names are not parsed as formulas: they are those of classes and models.
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel="ECE", xlim=(0, None))
    axes.locator_params(axis="x", nbins=5)  # more labels overlap beside long names
    set_colors(axes)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, labelcolor=GREY)
    return to_svg(figure)


def crop_diagram(sides: Mapping[Stage, Mapping[int, Interval]]) -> bytes:
    """Draw ECE against the side of the crops in pixels, with its intervals."""
    figure = create_figure()
    axes = figure.subplots()
    for stage, errors in sides.items():
        _interval_line(axes, list(errors), list(errors.values()), *STYLES[stage], gid=stage)
    sizes = list(next(iter(sides.values())))
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set(xlabel="side of the crops, pixels", ylabel="ECE", ylim=(0, None))
    set_colors(axes)
    _legend(axes, loc="best")
    return to_svg(figure)


def uiou_diagram(thetas: Sequence[float], sides: Mapping[Stage, Sequence[float]]) -> bytes:
    """Draw UIoU against the confidence threshold theta."""
    figure = create_figure()
    axes = figure.subplots()
    for stage, values in sides.items():
        label, color, line = STYLES[stage]
        axes.plot(thetas, values, line, marker=".", color=color, label=label, gid=stage)
    finish(axes, xlabel="confidence threshold theta", ylabel="UIoU", ylim=(0, 1))
    _legend(axes, loc="lower left")
    return to_svg(figure)


def temperature_diagram(
    temperatures: Sequence[float], errors: Sequence[Interval], auiou: Sequence[float]
) -> bytes:
    """Draw image-wise ECE and AUIoU against the temperature, one above the other."""
    figure = create_figure()
    upper, lower = figure.subplots(2, 1, sharex=True)
    _interval_line(upper, temperatures, errors, "ECE", COLORS["ECE"], "-", gid="ece")
    upper.set(ylabel="image-wise ECE", ylim=(0, None))
    lower.plot(temperatures, auiou, "-", marker="o", color=COLORS["AUIoU"], gid="auiou")
    lower.set(xlabel="temperature", ylabel="AUIoU")
    lower.yaxis.set_major_formatter(percent_label)
    lower.set_xticks(temperatures, [f"{value:g}" for value in temperatures])
    for axes in (upper, lower):
        set_colors(axes)
    return to_svg(figure)


def _interval_line(
    axes: "Axes",
    places: Sequence[float],
    intervals: Sequence[Interval],
    label: str,
    color: str,
    line: str,
    gid: str,
) -> None:
    """Draw a line through the means, with error bars where there are intervals."""
    means = [interval.mean for interval in intervals]
    axes.plot(places, means, line, marker="o", color=color, label=label, gid=gid)
    axes.errorbar(places, means, yerr=_reach(intervals), fmt="none", ecolor=color, capsize=3)


def _reach(intervals: Sequence[Interval]) -> NDArray[np.float64]:
    """Return the distances from the means to the bounds, NaN where there is no interval."""
    # A mean may lie beyond a bound by a rounding.
    return np.clip(
        [[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]], 0, None
    )


def _legend(axes: "Axes", **options: Any) -> None:  # noqa: ANN401 - matplotlib's options
    axes.legend(frameon=False, labelcolor=GREY, **({"loc": "upper left"} | options))
