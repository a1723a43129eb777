"""The study's results as Markdown tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from app.calibration.metrics.intervals import Interval, bootstrap_difference
from benchmarks.paper.study import (
    METHODS,
    SETTINGS,
    UNCALIBRATED,
    Results,
    label_keeping,
    mean_ranks,
)

FIGURES = (
    ("ece_image", "image-wise ECE, 10 bins"),
    ("ece_pooled", "pooled ECE, 15 bins"),
    ("nll", "NLL"),
    ("auroc_misprediction", "misprediction AUROC"),
    ("aurc", "AURC"),
)
SEED = 0


def document(results: Mapping[str, Results]) -> str:
    """Write all tables: the main one with intervals, one a figure, and the mean ranks."""
    parts = (models, main_table, intervals, others, ranks)
    return "\n".join(line for part in parts for line in part(results))


def models(results: Mapping[str, Results]) -> Iterator[str]:
    """List the backbones: mIoU and confidence against accuracy."""
    yield "### Backbones\n"
    yield "| backbone | " + " | ".join(f"{s.name}: mIoU, accuracy, ECE" for s in SETTINGS) + " |"
    yield "|---" * (len(SETTINGS) + 1) + "|"
    for name, by_method in results.items():
        cells = []
        for setting in SETTINGS:
            figures = by_method[UNCALIBRATED][setting.name].result()
            cells.append(f"{figures.miou:.3f}, {figures.accuracy:.3f}, {figures.ece_image:.3f}")
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""


def main_table(results: Mapping[str, Results]) -> Iterator[str]:
    """Image-wise ECE with what the method changes, by backbone and setting.

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
    """Tell what each method changes of the image-wise ECE, with the interval of that."""

    def interval(by_method: Results, method: str, setting: str) -> str:
        found = difference(by_method, method, setting)
        mean, low, high = (1000 * value for value in found)
        return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"

    yield "### What each method changes of the image-wise ECE, in thousandths\n"
    calibrated = [method for method in METHODS if method != UNCALIBRATED]
    yield from by_setting(results, calibrated, interval)
    yield "In brackets the 95% bootstrap interval, by image.\n"


def by_setting(
    results: Mapping[str, Results],
    methods: Sequence[str],
    cell: Callable[[Results, str, str], str],
) -> Iterator[str]:
    """Write a row for each method, a column for each backbone and setting."""
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
    """Difference of image-wise ECE to the uncalibrated model, resampled by image."""
    ours, plain = (results[name][setting].images for name in (method, UNCALIBRATED))
    return bootstrap_difference([image.ece for image in ours], [image.ece for image in plain], SEED)


def others(results: Mapping[str, Results]) -> Iterator[str]:
    """One table a backbone with all figures of the day and dusk settings."""
    for name, by_method in results.items():
        yield f"### {name}: all figures\n"
        heads = [f"{setting.name} {figure}" for setting in SETTINGS for figure, _ in FIGURES]
        yield "| method | " + " | ".join(heads) + " | day mIoU |"
        yield "|---" * (len(heads) + 2) + "|"
        for method in METHODS:
            cells = []
            for setting in SETTINGS:
                figures = by_method[method][setting.name].result()
                cells += [f"{getattr(figures, figure):.4f}" for figure, _ in FIGURES]
            miou = by_method[method]["day"].result().miou
            yield f"| {method} | " + " | ".join(cells) + f" | {miou:.3f} |"
        yield ""


def ranks(results: Mapping[str, Results]) -> Iterator[str]:
    """Mean rank over backbones and settings, of the methods that keep labels."""
    keeping = [method for method in METHODS if label_keeping(method)]
    by_ece, by_aurc = (mean_ranks(results, figure, keeping) for figure in ("ece_image", "aurc"))
    yield f"### Mean rank of the {len(keeping)} methods that keep every label (1 is best)\n"
    yield "| method | by image-wise ECE | by AURC | both |"
    yield "|---|---|---|---|"
    for method in sorted(keeping, key=lambda m: by_ece[m] + by_aurc[m]):
        both = (by_ece[method] + by_aurc[method]) / 2
        yield f"| {method} | {by_ece[method]:.1f} | {by_aurc[method]:.1f} | {both:.1f} |"
    yield ""
