"""Run the study: `python -m benchmarks.paper NAME=WEIGHTS … --cache DIR --out docs/paper`.

It writes Markdown tables and a figure of reliability diagrams and risk-coverage curves, a row
for each backbone.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from app.calibration.metrics.evaluation import Evaluation
from app.calibration.metrics.intervals import Interval, bootstrap_difference
from benchmarks.paper.data import StoredSet, image_sets, open_network, store
from benchmarks.paper.study import (
    METHODS,
    SETTINGS,
    UNCALIBRATED,
    WITH_CORRUPTIONS,
    Results,
    label_keeping,
    mean_ranks,
    run,
)
from training.data import camvid_dir

METRICS = (
    ("ece_image", "image-wise ECE, 10 bins"),
    ("ece_pooled", "pooled ECE, 15 bins"),
    ("nll", "NLL"),
    ("auroc_misprediction", "misprediction AUROC"),
    ("aurc", "AURC"),
)
SEED = 0
SHOWN = (UNCALIBRATED, "temperature", "selective", "contextual", WITH_CORRUPTIONS)
COLOURS = ("0.45", "#c8803c", "#6a994e", "#2a6f97", "#9d4edd")


def document(results: Mapping[str, Results]) -> str:
    """Return all tables: image-wise ECE with intervals, all metrics, and mean ranks."""
    parts = (models, main_table, intervals, others, ranks)
    return "\n".join(line for part in parts for line in part(results))


def models(results: Mapping[str, Results]) -> Iterator[str]:
    """Yield the backbones' table: mIoU, accuracy and ECE."""
    yield "### Backbones\n"
    yield "| backbone | " + " | ".join(f"{s.name}: mIoU, accuracy, ECE" for s in SETTINGS) + " |"
    yield "|---" * (len(SETTINGS) + 1) + "|"
    for name, by_method in results.items():
        cells = []
        for setting in SETTINGS:
            metrics = by_method[UNCALIBRATED][setting.name].result()
            cells.append(f"{metrics.miou:.3f}, {metrics.accuracy:.3f}, {metrics.ece_image:.3f}")
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""


def main_table(results: Mapping[str, Results]) -> Iterator[str]:
    """Yield the table of image-wise ECE, by backbone and setting.

    A star marks a difference to the uncalibrated model whose 95% interval by image excludes 0:
    * better, ! worse.
    """

    def marked(by_method: Results, method: str, setting: str) -> str:
        value = f"{by_method[method][setting].result().ece_image:.4f}"
        found = difference(by_method, method, setting)
        return value + ("*" if found.high < 0 else " !" if found.low > 0 else "")

    yield "### Image-wise ECE\n"
    yield from by_setting(results, METHODS, marked)
    yield "`*` better and `!` worse than the uncalibrated model: the 95% bootstrap interval of"
    yield "the difference, by image, excludes 0. † changes labels.\n"


def intervals(results: Mapping[str, Results]) -> Iterator[str]:
    """Yield the table of differences of image-wise ECE, with their intervals."""

    def interval(by_method: Results, method: str, setting: str) -> str:
        found = difference(by_method, method, setting)
        mean, low, high = (1000 * value for value in found)
        return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"

    yield "### Difference of image-wise ECE to the uncalibrated model, in thousandths\n"
    calibrated = [method for method in METHODS if method != UNCALIBRATED]
    yield from by_setting(results, calibrated, interval)
    yield "In brackets the 95% bootstrap interval, by image.\n"


def by_setting(
    results: Mapping[str, Results],
    methods: Sequence[str],
    cell: Callable[[Results, str, str], str],
) -> Iterator[str]:
    """Yield a row for each method, a column for each backbone and setting."""
    columns = [f"{name}: {setting.name}" for name in results for setting in SETTINGS]
    yield "| method | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for method in methods:
        cells = [
            cell(by_method, method, setting.name)
            for by_method in results.values() for setting in SETTINGS
        ]  # fmt: skip
        yield f"| {method}{'' if label_keeping(method) else ' †'} | " + " | ".join(cells) + " |"
    yield ""


def difference(results: Results, method: str, setting: str) -> Interval:
    """Return the difference of image-wise ECE to the uncalibrated model, resampled by image."""
    calibrated, plain = (
        [image.ece for image in results[name][setting].images] for name in (method, UNCALIBRATED)
    )
    return bootstrap_difference(calibrated, plain, SEED)


def others(results: Mapping[str, Results]) -> Iterator[str]:
    """Yield a table of all metrics for each backbone."""
    for name, by_method in results.items():
        yield f"### {name}: all metrics\n"
        heads = [f"{setting.name} {metric}" for setting in SETTINGS for metric, _ in METRICS]
        yield "| method | " + " | ".join(heads) + " | day mIoU |"
        yield "|---" * (len(heads) + 2) + "|"
        for method in METHODS:
            cells = []
            for setting in SETTINGS:
                result = by_method[method][setting.name].result()
                cells += [f"{getattr(result, metric):.4f}" for metric, _ in METRICS]
            miou = by_method[method]["day"].result().miou
            yield f"| {method} | " + " | ".join(cells) + f" | {miou:.3f} |"
        yield ""


def ranks(results: Mapping[str, Results]) -> Iterator[str]:
    """Yield mean ranks over backbones and settings of the methods that keep labels."""
    keeping = [method for method in METHODS if label_keeping(method)]
    by_ece, by_aurc = (mean_ranks(results, metric, keeping) for metric in ("ece_image", "aurc"))
    yield f"### Mean rank of the {len(keeping)} methods that keep every label (1 is best)\n"
    yield "| method | by image-wise ECE | by AURC | both |"
    yield "|---|---|---|---|"
    for method in sorted(keeping, key=lambda m: by_ece[m] + by_aurc[m]):
        both = (by_ece[method] + by_aurc[method]) / 2
        yield f"| {method} | {by_ece[method]:.1f} | {by_aurc[method]:.1f} | {both:.1f} |"
    yield ""


def draw(results: Mapping[str, Results], path: Path) -> None:
    """Write one SVG."""
    columns = 2 * len(SETTINGS)
    figure = Figure(figsize=(2.7 * columns, 2.9 * len(results)), layout="constrained")
    grid = figure.subplots(len(results), columns, squeeze=False)
    for row, (name, by_method) in zip(grid, results.items(), strict=True):
        for place, setting in enumerate(SETTINGS):
            evaluations = [by_method[method][setting.name] for method in SHOWN]
            reliability(row[2 * place], evaluations, f"{name}: {setting.name}")
            risk(row[2 * place + 1], evaluations)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(SHOWN), frameon=False)
    with mpl.rc_context({"svg.hashsalt": "segcal"}):  # the same numbers give the same file
        figure.savefig(path, format="svg", metadata={"Date": None})


def reliability(axes: Axes, evaluations: Sequence[Evaluation], title: str) -> None:
    """Draw accuracy against confidence in 15 bins."""
    axes.plot([0, 1], [0, 1], "--", color="0.7", linewidth=1)
    for method, colour, evaluation in zip(SHOWN, COLOURS, evaluations, strict=True):
        curve = [point for point in evaluation.reliability() if point.pixels >= 100]
        axes.plot([p.confidence for p in curve], [p.accuracy for p in curve], ".-",
                  color=colour, linewidth=1, label=method)  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), title=title, xlabel="confidence", ylabel="accuracy")


def risk(axes: Axes, evaluations: Sequence[Evaluation]) -> None:
    """Draw the fraction of wrong pixels among the accepted ones against coverage."""
    for colour, evaluation in zip(COLOURS, evaluations, strict=True):
        curve = evaluation.confidence_histogram.risk_coverage()
        axes.plot([p.coverage for p in curve], [p.risk for p in curve], color=colour, linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="coverage", ylabel="risk")


def main() -> None:
    """Write `OUT-tables.md` and `OUT.svg`."""
    parser = argparse.ArgumentParser("python -m benchmarks.paper", description=__doc__)
    parser.add_argument("backbones", nargs="+", help="NAME=WEIGHTS, trained on 0016E5 only")
    parser.add_argument("--camvid", help="CamVid's folder (default: CAMVID_DIR)")
    parser.add_argument("--cache", type=Path, default=Path("runs/paper"), help="for logits")
    parser.add_argument("--out", type=Path, default=Path("docs/paper"))
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    results: dict[str, Results] = {}
    for given in args.backbones:
        name, _, weights = given.partition("=")
        sets = logits(Path(weights), args.cache / name, camvid_dir(args.camvid))
        results[name] = {}
        for method, evaluations in run(sets):
            results[name][method] = evaluations
            eces = (f"{setting} {e.result().ece_image:.4f}" for setting, e in evaluations.items())
            print(f"{name:12} {method:26}", *eces, file=sys.stderr, flush=True)
    args.out.with_name(f"{args.out.name}-tables.md").write_text(document(results), "utf-8")
    draw(results, args.out.with_suffix(".svg"))


def logits(weights: Path, folder: Path, root: Path) -> dict[str, StoredSet]:
    """Run one backbone on all sets of images."""
    network = open_network(weights)
    return {images.name: store(network, images, folder) for images in image_sets(root)}


if __name__ == "__main__":
    main()
