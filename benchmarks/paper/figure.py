"""Reliability diagrams and risk-coverage curves of a few methods, one row a backbone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from app.calibration.metrics.evaluation import Evaluation
from benchmarks.paper.study import SETTINGS, UNCALIBRATED, WITH_WEATHER, Results

SHOWN = (UNCALIBRATED, "temperature", "selective", "contextual", WITH_WEATHER)
COLOURS = ("0.45", "#c8803c", "#6a994e", "#2a6f97", "#9d4edd")


def draw(results: Mapping[str, Results], path: Path) -> None:
    """Write one SVG."""
    columns = 2 * len(SETTINGS)
    figure = Figure(figsize=(2.7 * columns, 2.9 * len(results)), layout="constrained")
    grid = figure.subplots(len(results), columns, squeeze=False)
    for row, (name, by_method) in zip(grid, results.items(), strict=True):
        for place, setting in enumerate(SETTINGS):
            those = [by_method[method][setting.name] for method in SHOWN]
            reliability(row[2 * place], those, f"{name}: {setting.name}")
            risk(row[2 * place + 1], those)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(SHOWN), frameon=False)
    with mpl.rc_context({"svg.hashsalt": "segcal"}):  # the same numbers give the same file
        figure.savefig(path, format="svg", metadata={"Date": None})


def reliability(axes: Axes, evaluations: Sequence[Evaluation], title: str) -> None:
    """Accuracy against confidence in 15 bins."""
    axes.plot([0, 1], [0, 1], "--", color="0.7", linewidth=1)
    for method, colour, evaluation in zip(SHOWN, COLOURS, evaluations, strict=True):
        curve = [point for point in evaluation.reliability() if point.pixels >= 100]
        axes.plot([p.confidence for p in curve], [p.accuracy for p in curve], ".-",
                  color=colour, linewidth=1, label=method)  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), title=title, xlabel="confidence", ylabel="accuracy")


def risk(axes: Axes, evaluations: Sequence[Evaluation]) -> None:
    """Share of wrong pixels among the accepted, against the share accepted."""
    for colour, evaluation in zip(COLOURS, evaluations, strict=True):
        curve = evaluation.ranking.risk_coverage()
        axes.plot([p.coverage for p in curve], [p.risk for p in curve], color=colour, linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="coverage", ylabel="risk")
