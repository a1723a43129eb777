"""Tables of the study in Markdown."""

from collections.abc import Iterator, Sequence
from statistics import mean

import numpy as np
from scipy.stats import rankdata, studentized_range

from app.calibration.metrics.intervals import Interval, bootstrap_mean
from benchmarks.paper.study import (
    AUTO,
    AUTO_BY_ECE,
    METHODS,
    SETTINGS,
    UNCALIBRATED,
    BackboneResults,
    Metric,
    label_keeping,
)
from benchmarks.paper.tuning import SETTINGS_OF

MAIN_METRICS: Sequence[tuple[Metric, str]] = (
    ("ece_image", "ECE"), ("aurc", "AURC"), ("nll", "NLL"), ("brier", "Brier"),
)  # fmt: skip
COMPARED = ("temperature", "isotonic", "selective", "contextual", AUTO)
RATIO_METHODS = ("contextual", "temperature", UNCALIBRATED)
RATIO_METRICS: Sequence[Metric] = ("aurc", "ece_image")
RANK_LEVEL = 0.95
SEED = 0


def document(results: Sequence[BackboneResults]) -> str:
    """Return all tables."""
    parts = (
        backbones_table, options_table, main_tables, ranks, ratios, auto_table, differences,
        by_backbone,
    )  # fmt: skip
    return "\n".join(line for part in parts for line in part(results))


def table(heads: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    """Yield a Markdown table."""
    yield "| " + " | ".join(heads) + " |"
    yield "|---" + "|---:" * (len(heads) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def backbones_table(results: Sequence[BackboneResults]) -> Iterator[str]:
    """Yield the backbones' mIoU, accuracy and image-wise ECE with its interval, by setting."""
    yield "### Backbones\n"

    def cell(one: BackboneResults, setting: str) -> str:
        if setting not in one.units:
            return "-"
        (uncalibrated,) = one.figures[UNCALIBRATED][setting]
        ece = bootstrap_mean(uncalibrated.image_ece, SEED, one.units[setting])
        return (
            f"{uncalibrated.miou:.3f}, {uncalibrated.accuracy:.3f}, "
            f"{ece.mean:.3f} ({ece.low:.3f} to {ece.high:.3f})"
        )

    rows = ([one.backbone, *(cell(one, setting) for setting in SETTINGS)] for one in results)
    yield from table(["backbone", *(f"{s}: mIoU, accuracy, ECE" for s in SETTINGS)], rows)
    yield "In brackets the 95 % bootstrap interval over units.\n"


def options_table(results: Sequence[BackboneResults]) -> Iterator[str]:
    """Yield the options that were chosen on the development images, by method and backbone."""
    yield "### Options chosen on the development images\n"
    tuned = [one for one in results if one.options]

    def cell(one: BackboneResults, method: str) -> str:
        options = one.options[method].items()
        return ", ".join(f"{name} {value}" for name, value in options) or "default"

    rows = ([method, *(cell(one, method) for one in tuned)] for method in SETTINGS_OF)
    yield from table(["method", *(one.backbone for one in tuned)], rows)


def main_tables(results: Sequence[BackboneResults]) -> Iterator[str]:
    """Yield a table for each set of images: means over its backbones and the seeds."""
    for data in dict.fromkeys(one.backbone.partition("-")[0] for one in results):
        group = [one for one in results if one.backbone.startswith(data)]
        yield f"### {data}: mean over {len(group)} backbones and five seeds\n"
        yield from method_table(group)


def by_backbone(results: Sequence[BackboneResults]) -> Iterator[str]:
    """Yield the main table of each backbone."""
    for one in results:
        yield f"### {one.backbone}\n"
        yield from method_table([one])


def method_table(group: Sequence[BackboneResults]) -> Iterator[str]:
    """Yield a row for each method, columns for each setting and main metric."""
    settings = group[0].settings()
    heads = [f"{setting} {name}" for setting in settings for _, name in MAIN_METRICS]

    def cells(method: str) -> Iterator[str]:
        yield named(method)
        for setting in settings:
            for metric, _ in MAIN_METRICS:
                yield f"{mean(one.mean(method, setting, metric) for one in group):.4f}"

    yield from table(["method", *heads], (list(cells(method)) for method in METHODS))


def named(method: str) -> str:
    """Return a method's name, marked where it changes labels."""
    return method if label_keeping(method) else f"{method} †"


def ranks(results: Sequence[BackboneResults]) -> Iterator[str]:
    """Yield mean ranks of the methods that keep labels, and the critical difference.

    A block is one backbone in one setting. Nemenyi's critical difference takes blocks as
    independent, which those of one backbone or set of images are not: it is a lower bound.
    """
    methods = [method for method in METHODS if label_keeping(method)]
    blocks = [(one, setting) for one in results for setting in one.settings()]
    means = {}
    for metric, _ in MAIN_METRICS:
        values = [[one.mean(m, setting, metric) for m in methods] for one, setting in blocks]
        means[metric] = np.mean([rankdata(row) for row in values], axis=0)
    overall = np.mean(list(means.values()), axis=0)
    distance = critical_difference(len(methods), len(blocks))
    yield f"### Mean rank of the {len(methods)} methods that keep every label (1 is best)\n"
    yield f"Over {len(blocks)} blocks; critical difference {distance:.1f} (Nemenyi, 5 %).\n"
    rows = (
        [
            methods[i],
            *(f"{means[metric][i]:.1f}" for metric, _ in MAIN_METRICS),
            f"{overall[i]:.1f}",
        ]
        for i in np.argsort(overall, kind="stable")
    )
    yield from table(["method", *(name for _, name in MAIN_METRICS), "mean of the four"], rows)


def critical_difference(methods: int, blocks: int) -> float:
    """Return Nemenyi's critical difference of mean ranks at 5 % (Demsar 2006)."""
    quantile = studentized_range.ppf(RANK_LEVEL, methods, np.inf) / 2**0.5
    return float(quantile * (methods * (methods + 1) / (6 * blocks)) ** 0.5)


def ratios(results: Sequence[BackboneResults]) -> Iterator[str]:
    """Yield what `contextual` aims at, as ratios, with its mean in-distribution score."""
    yield "### `contextual` against temperature and the uncalibrated model\n"
    heads = ["backbone", "setting", "AURC / temperature's", "ECE / better of both",
             "in-distribution score"]  # fmt: skip

    def rows() -> Iterator[Sequence[str]]:
        for one in results:
            for setting in one.settings():
                aurc, ece = (
                    [one.mean(method, setting, metric) for method in RATIO_METHODS]
                    for metric in RATIO_METRICS
                )  # fmt: skip
                score = one.mean("contextual", setting, "in_distribution")
                yield [one.backbone, setting, f"{aurc[0] / aurc[1]:.2f}",
                       f"{ece[0] / min(ece[1:]):.2f}", f"{score:.2f}"]  # fmt: skip

    yield from table(heads, rows())


def auto_table(results: Sequence[BackboneResults]) -> Iterator[str]:
    """Yield the two rules of `auto`: by the NLL of correctness and by image-wise ECE."""
    yield "### `auto` by the NLL of correctness, and by image-wise ECE\n"
    metrics: Sequence[Metric] = ("ece_image", "aurc", "correctness_nll")
    rules = (AUTO, AUTO_BY_ECE)
    figures = (f"{rule}: ECE, AURC, NLL of correctness" for rule in rules)
    heads = ["backbone", "setting", *figures, *(f"{rule} chose" for rule in rules)]

    def rows() -> Iterator[Sequence[str]]:
        for one in results:
            for setting in one.settings():
                cells = (
                    ", ".join(f"{one.mean(rule, setting, metric):.4f}" for metric in metrics)
                    for rule in rules
                )
                chosen = (counted(one.chosen[rule]) for rule in rules)
                yield [one.backbone, setting, *cells, *chosen]

    yield from table(heads, rows())


def counted(names: Sequence[str]) -> str:
    """Return names with how often each occurs."""
    return ", ".join(f"{name} {names.count(name)}" for name in dict.fromkeys(names))


def differences(results: Sequence[BackboneResults]) -> Iterator[str]:
    """Yield differences of image-wise ECE and AURC to the uncalibrated model, with intervals."""
    columns = [(one, setting) for one in results for setting in one.settings()]
    for title, name in (("image-wise ECE", "image_ece"), ("image-wise AURC", "image_aurc")):

        def row(one: BackboneResults, setting: str, values: str = name) -> list[str]:
            found = (difference(one, method, setting, values) for method in COMPARED)
            return [f"{one.backbone}, {setting}", *(thousandths(interval) for interval in found)]

        yield f"### Difference of {title} to the uncalibrated model, in thousandths\n"
        yield from table(["", *COMPARED], (row(one, setting) for one, setting in columns))
        yield "In brackets the 95 % bootstrap interval over units: blocks of eight frames of a"
        yield "drive, images elsewhere, with all corrupted copies of an image in its unit.\n"


def difference(one: BackboneResults, method: str, setting: str, values: str) -> Interval:
    """Return the mean difference of an image metric over the seeds, resampled by unit."""
    calibrated, plain = (
        np.mean([getattr(figures, values) for figures in one.figures[name][setting]], axis=0)
        for name in (method, UNCALIBRATED)
    )
    return bootstrap_mean((calibrated - plain).tolist(), SEED, one.units[setting])


def thousandths(interval: Interval) -> str:
    """Return an interval in thousandths."""
    centre, low, high = (1000 * bound for bound in interval)
    return f"{centre:+.1f} ({low:+.1f} to {high:+.1f})"
