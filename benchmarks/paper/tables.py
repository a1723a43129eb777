"""The study's results as Markdown tables."""

from collections.abc import Iterator, Mapping

from app.calibration.bootstrap import bootstrap_difference
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
    return "\n".join([*models(results), *main_table(results), *others(results), *ranks(results)])


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
    yield "### Image-wise ECE\n"
    columns = [f"{name}: {setting.name}" for name in results for setting in SETTINGS]
    yield "| method | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for method in METHODS:
        cells = [
            marked(by_method, method, setting.name)
            for by_method in results.values() for setting in SETTINGS
        ]  # fmt: skip
        yield f"| {method}{'' if label_keeping(method) else ' †'} | " + " | ".join(cells) + " |"
    yield "\n`*` better and `!` worse than the uncalibrated model: the 95% bootstrap interval of"
    yield "the difference, by image, excludes 0. † changes labels.\n"


def marked(results: Results, method: str, setting: str) -> str:
    """Write one ECE with its mark."""
    evaluation, plain = results[method][setting], results[UNCALIBRATED][setting]
    value = f"{evaluation.result().ece_image:.4f}"
    if method == UNCALIBRATED:
        return value
    difference = bootstrap_difference(
        [image.ece for image in evaluation.images], [image.ece for image in plain.images], SEED
    )
    return value + ("*" if difference.high < 0 else " !" if difference.low > 0 else "")


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
