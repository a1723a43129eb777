"""Measure variants of `contextual` on development images: `python -m benchmarks.paper.ablation`.

Each variant changes one piece. It is fitted with five seeds and measured on `dev` (images like
those of the fit) and on `dev shift` (another drive, stained nuclei). A piece is worth its cost if
the variant without it is worse, on two sets of images, by more than the seeds vary.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from app.calibration.base import FEATURE_FLOOR, Calibrator, FitContext
from app.calibration.comparison import evaluate_calibrators
from app.calibration.methods.contextual import Contextual
from app.calibration.methods.contextual.detector import UNITS, Detector
from app.calibration.methods.contextual.features import (
    NUM_FEATURES,
    Features,
    box_mean,
    label_changes,
)
from app.calibration.methods.temperature import Temperature
from benchmarks.paper.backbones import Backbone, backbones
from benchmarks.paper.data import StoredPart, joined
from benchmarks.paper.study import SEEDS, mean_score

PARTS = ("dev", "dev shift")
ENTROPY, CHANGES = 1, 2  # columns of the features
NARROW, WIDER = 2, 15  # cells to each side of other windows


@dataclass(frozen=True)
class Change:
    """List how a variant differs from `contextual`."""

    dropped: tuple[int, ...] = ()
    classes: bool = True
    units: int = UNITS
    linear: bool = False
    scored: bool = True
    members: int = 1
    radii: tuple[int, ...] = ()  # of further windows
    log_probabilities: bool = False  # the three largest, and the entropy
    position: bool = False
    copies: bool = False
    further: int = 0  # features that a subclass adds


VARIANTS: Mapping[str, Change] = {
    "contextual": Change(),
    "no in-distribution score": Change(scored=False),
    "linear": Change(linear=True),
    "16 units": Change(units=16),
    "64 units": Change(units=64),
    "no classes": Change(classes=False),
    "no windows": Change(dropped=(ENTROPY, CHANGES)),
    "no window of entropy": Change(dropped=(ENTROPY,)),
    "no window of label changes": Change(dropped=(CHANGES,)),
    "windows of 5 as well": Change(radii=(NARROW,)),
    "windows of 31 as well": Change(radii=(WIDER,)),
    "log-probabilities as well": Change(log_probabilities=True),
    "all of these as well": Change(radii=(NARROW, WIDER), log_probabilities=True),
    "position as well": Change(position=True),
    "three networks": Change(members=3),
    "corrupted copies as well": Change(copies=True),
}


class VariantDetector(Detector):
    """A detector of other size that may ignore features."""

    def __init__(self, num_classes: int, change: Change) -> None:
        super().__init__(num_classes)
        self.change = change
        extra = (
            2 * len(change.radii)
            + 4 * change.log_probabilities
            + 2 * change.position
            + change.further
        )
        features = NUM_FEATURES + extra

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape), requires_grad=False)

        self.mean, self.scale = torch.zeros(features), torch.ones(features)
        self.inward = parameter(features, change.units)
        self.first = parameter(num_classes, change.units)
        self.second = parameter(num_classes, change.units)
        self.outward = parameter(change.units)

    def forward(self, values: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Compute the shift of the log-odds [M]; see `Detector`."""
        standardised = (values - self.mean) * self.scale
        kept = [c for c in range(values.shape[1]) if c not in self.change.dropped]
        hidden = standardised[:, kept] @ self.inward[kept]
        if self.change.classes:
            hidden = hidden + self.first[first] + self.second[second]
        if not self.change.linear:
            hidden = hidden.relu()
        return hidden @ self.outward + self.offset


class Variant(Contextual):
    """`contextual` with one change."""

    def __init__(self, num_classes: int, change: Change) -> None:
        super().__init__(num_classes)
        self.change = change
        self.detector = VariantDetector(num_classes, change)
        self.others: list[Variant] = []

    def features(self, logs: Tensor) -> Features:
        """Compute the features, with those of the change."""
        found = super().features(logs)
        around = torch.cat([found.entropy[:, None], label_changes(found.first[:, None])], dim=1)
        values = [found.values, *(box_mean(around, radius) for radius in self.change.radii)]
        if self.change.log_probabilities:
            largest = logs.clamp_min(FEATURE_FLOOR).topk(3, dim=1).values
            values += [largest, found.entropy[:, None]]
        if self.change.position:
            height, width = logs.shape[2:]
            rows = torch.linspace(-1, 1, height)[:, None].expand(height, width)
            columns = torch.linspace(-1, 1, width)[None].expand(height, width)
            values.append(torch.stack([rows, columns]).expand(len(logs), 2, height, width))
        return found._replace(values=torch.cat(values, dim=1))

    def fit(self, data: StoredPart, context: FitContext) -> None:  # type: ignore[override]
        """Fit the members."""
        super().fit(data, context)
        if not self.change.scored:
            self.score.precision.zero_()
        for member in range(1, self.change.members):
            other = Variant(self.num_classes, Change())
            other.fit(data, FitContext(seed=context.seed + 1000 * member))
            self.others.append(other)

    def _own_and_shift(self, logs: Tensor) -> tuple[Tensor, Tensor]:
        own, shift = super()._own_and_shift(logs)
        shifts = [shift, *(other._own_and_shift(logs)[1] for other in self.others)]  # noqa: SLF001
        return own, torch.stack(shifts).mean(dim=0)


@dataclass(frozen=True)
class Figures:
    """A calibrator's figures on one part; `score` is the mean in-distribution score."""

    ece: float
    aurc: float
    nll: float
    score: float


def measure(calibrator: Calibrator, part: StoredPart) -> Figures:
    """Measure a calibrator on a part: image-wise ECE, AURC, NLL of correctness, mean score."""
    result = evaluate_calibrators(part, [calibrator], FitContext())[0]
    metrics = result.evaluation.result()
    nll = statistics.mean(result.image_scores)
    return Figures(metrics.ece_image, metrics.aurc, nll, mean_score(calibrator, part))


def rows(backbone: Backbone) -> Iterator[str]:
    """Fit and measure all variants on one backbone; yield the rows of its table."""
    sets = backbone.parts
    temperature = Temperature(sets["fit"].num_classes)
    temperature.fit(sets["fit"], FitContext())
    fallback = {part: measure(temperature, sets[part]) for part in PARTS}
    yield row("temperature", {part: [fallback[part]] for part in PARTS})
    for name, change in VARIANTS.items():
        found: dict[str, list[Figures]] = {part: [] for part in PARTS}
        for seed in SEEDS:
            variant = Variant(sets["fit"].num_classes, change)
            images = joined(sets["fit"], sets["fit copies"]) if change.copies else sets["fit"]
            variant.fit(images, FitContext(seed=seed))
            for part in PARTS:
                found[part].append(measure(variant.eval(), sets[part]))
        yield row(name, found)


def row(name: str, found: Mapping[str, Sequence[Figures]]) -> str:
    """Return a row: means over the seeds, with the standard deviation of the first."""
    cells = []
    for figures in found.values():
        for figure in ("ece", "aurc", "nll"):
            values = [getattr(one, figure) for one in figures]
            cells.append(f"{statistics.mean(values):.4f} ±{statistics.pstdev(values):.4f}")
        cells.append(f"{statistics.mean(one.score for one in figures):.2f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Write a table for each backbone."""
    parser = argparse.ArgumentParser("python -m benchmarks.paper.ablation", description=__doc__)
    parser.add_argument("backbones", nargs="+", help="such as camvid-unet")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="trained networks")
    parser.add_argument("--out", type=Path, default=Path("docs/ablation-tables.md"))
    args = parser.parse_args()
    heads = [f"{part} {figure}" for part in PARTS for figure in ("ECE", "AURC", "NLL", "f")]
    lines = []
    for backbone in backbones(args.backbones, args.runs):
        lines += [f"### {backbone.name}\n", "| variant | " + " | ".join(heads) + " |"]
        lines.append("|---" * (len(heads) + 1) + "|")
        for line in rows(backbone):
            print(backbone.name, line, file=sys.stderr, flush=True)
            lines.append(line)
        lines.append("")
    args.out.write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    main()
