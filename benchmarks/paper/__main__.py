"""Run the study: `python -m benchmarks.paper fit NAME …`, then `… write NAME …`.

`fit` fits and measures every method on each named backbone, such as `camvid-unet`, and stores the
figures. `write` makes Markdown tables and a figure of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.paper.measurement import measure_missing, results_path
from benchmarks.paper.study import UNCALIBRATED, BackboneResults, Figures
from benchmarks.paper.tables import document

SHOWN = (UNCALIBRATED, "temperature", "selective", "contextual")
COLOURS = ("0.45", "#c8803c", "#6a994e", "#2a6f97")
MIN_PIXELS = 100  # of a bin that is drawn


def draw(results: Sequence[BackboneResults], path: Path) -> None:
    """Write one SVG: a row for each backbone, two diagrams for each setting."""
    columns = 2 * max(len(one.settings()) for one in results)
    figure = Figure(figsize=(2.7 * columns, 2.9 * len(results)), layout="constrained")
    grid = figure.subplots(len(results), columns, squeeze=False)
    for row, one in zip(grid, results, strict=True):
        for axes in row[2 * len(one.settings()) :]:
            axes.set_axis_off()
        for place, setting in enumerate(one.settings()):
            figures = [one.figures[method][setting][0] for method in SHOWN]
            reliability(row[2 * place], figures, f"{one.backbone}: {setting}")
            risk(row[2 * place + 1], figures)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(SHOWN), frameon=False)
    with mpl.rc_context({"svg.hashsalt": "segcal"}):  # the same numbers give the same file
        figure.savefig(path, format="svg", metadata={"Date": None})


def reliability(axes: Axes, figures: Sequence[Figures], title: str) -> None:
    """Draw accuracy against confidence in 15 bins."""
    axes.plot([0, 1], [0, 1], "--", color="0.7", linewidth=1)
    for method, colour, one in zip(SHOWN, COLOURS, figures, strict=True):
        curve = [point for point in one.reliability if point[2] >= MIN_PIXELS]
        axes.plot([p[0] for p in curve], [p[1] for p in curve], ".-", color=colour, linewidth=1,
                  label=method)  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), title=title, xlabel="confidence", ylabel="accuracy")


def risk(axes: Axes, figures: Sequence[Figures]) -> None:
    """Draw the fraction of wrong pixels among the accepted ones against coverage."""
    for colour, one in zip(COLOURS, figures, strict=True):
        coverage, risks = zip(*one.risk_coverage, strict=True)
        axes.plot(coverage, risks, color=colour, linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="coverage", ylabel="risk")


def main() -> None:
    """Run one of the two steps."""
    parser = argparse.ArgumentParser("python -m benchmarks.paper", description=__doc__)
    parser.add_argument("step", choices=("fit", "write"))
    parser.add_argument("backbones", nargs="+", help="such as camvid-unet")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="trained networks")
    parser.add_argument("--out", type=Path, default=Path("docs/paper"))
    args = parser.parse_args()
    if args.step == "fit":
        measure_missing(args.backbones, args.runs)
        return
    texts = [results_path(args.runs, name).read_text("utf-8") for name in args.backbones]
    results = [BackboneResults.model_validate_json(text) for text in texts]
    args.out.with_name(f"{args.out.name}-tables.md").write_text(document(results), "utf-8")
    draw(results, args.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
