"""Measure the mass of mask classifiers: `python -m benchmarks.paper.mass_ablation camvid-pyramid`.

The logits of a mask classifier are log max(S, 1e-6), so that the logsumexp of a cell's logits is
the logarithm of the mass, the sum of S over classes. `contextual` is fitted with it as a feature of
the detector, as a statistic of the in-distribution score, and as both, with five seeds. `dev` and
`dev shift` decide; `shift` is shown, and nothing is chosen on it. The field has no images to spare:
a third of those of its fit are `dev`.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from scipy.stats import rankdata
from torch import Tensor

from app.calibration.base import FitContext, finite_logits
from app.calibration.comparison import TestResult, evaluate_calibrators
from app.calibration.dataset import ValidationSet, labelled_pixels
from app.calibration.methods.contextual import Contextual
from app.calibration.methods.contextual.detector import PixelSample, sample_pixels
from app.calibration.methods.contextual.features import (
    RADIUS,
    Features,
    box_mean,
    stride_of,
    subsampled,
)
from app.calibration.methods.contextual.in_distribution import (
    InDistributionScore,
    image_statistics,
)
from app.calibration.methods.temperature import Temperature
from app.calibration.metrics.evaluation import Metrics
from benchmarks.paper.ablation import Change, Figures, VariantDetector, row
from benchmarks.paper.backbones import Backbone
from benchmarks.paper.data import StoredPart
from benchmarks.paper.mask_classifier import mask_classifiers
from benchmarks.paper.study import SEEDS

PARTS = ("dev", "dev shift", "shift")
LOG_MASS = (-6.0, 2.0)  # range to which the logarithm is clipped


@dataclass(frozen=True)
class Use:
    """List what the mass of a cell is used for."""

    feature: bool = False
    window: bool = False  # its mean over 15 cells as a feature as well
    statistic: bool = False

    @property
    def features(self) -> int:
        """Return how many features it adds."""
        return self.feature + self.window


VARIANTS: Mapping[str, Use] = {
    "contextual": Use(),
    "mass as a feature": Use(feature=True),
    "mass and its window as features": Use(feature=True, window=True),
    "mass as a statistic": Use(statistic=True),
    "mass as both": Use(feature=True, statistic=True),
}


def log_mass_of(logits: Tensor) -> Tensor:
    """Compute the logarithm of the mass [N,1,h,w] of a mask classifier's logits [N,K,h,w]."""
    return logits.logsumexp(dim=1, keepdim=True).clamp(*LOG_MASS)


class WithMass(Contextual):
    """`contextual` that uses the mass of the map at hand."""

    log_mass: Tensor

    def __init__(self, num_classes: int, use: Use) -> None:
        super().__init__(num_classes)
        self.use = use
        self.detector = VariantDetector(num_classes, Change(further=use.features))
        self.score = InDistributionScore(num_classes + use.statistic)

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits [N,K,h,w] to log-probabilities."""
        self._read(logits)
        return super().forward(logits)

    def predict_errors(self, logits: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return None: no figure here needs them."""
        return None

    @torch.inference_mode()
    def mean_score(self, part: StoredPart) -> float:
        """Return the mean in-distribution score of a part's images."""
        scores = (self.score(self._features_and_statistics(one.logits)[1]) for one in part.images)
        return statistics.mean(map(float, scores))

    def features(self, logs: Tensor) -> Features:
        """Compute the features, with those of the mass."""
        found, values = super().features(logs), [self.log_mass]
        if self.use.window:
            values.append(box_mean(self.log_mass, RADIUS))
        return found._replace(values=torch.cat([found.values, *values[: self.use.features]], dim=1))

    def statistics_of(self, features: Features) -> Tensor:
        """Compute the statistics [N,S] of images, with the mean of the logarithm of the mass."""
        found = image_statistics(features, self.num_classes)
        means = self.log_mass.flatten(1).mean(dim=1, keepdim=True)
        return torch.cat([found, means], dim=1) if self.use.statistic else found

    def _read(self, logits: Tensor) -> None:
        self.log_mass = log_mass_of(subsampled(finite_logits(logits), stride_of(logits)))

    def _features_and_statistics(self, logits: Tensor) -> tuple[Features, Tensor]:
        maps = finite_logits(logits[None])
        self._read(maps)
        cells = subsampled(maps, stride_of(maps)) * self.beta
        features = self.features(cells.log_softmax(dim=1))
        return features, self.statistics_of(features)

    def _shift_and_scores(self, logs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(logs)
        scores: Tensor = self.score(self.statistics_of(features))
        return self.detector.on_image(features), scores

    def _sample(
        self, data: ValidationSet, indices: list[int], context: FitContext
    ) -> tuple[PixelSample, Tensor]:
        generator = torch.Generator().manual_seed(context.seed)
        samples, found = [], []
        for image in (data[index] for index in indices):
            features, of_image = self._features_and_statistics(image.logits)
            labels = subsampled(image.labels, stride_of(image.logits[None]))
            samples.append(sample_pixels(features, labels, generator))
            found.append(of_image)
        return PixelSample.joined(samples), torch.cat(found)


def development(parts: Mapping[str, StoredPart]) -> dict[str, StoredPart]:
    """Return the parts of a fit and of its figures; every third image of a small fit is `dev`."""
    if "dev" in parts:
        return {name: parts[name] for name in ("fit", *PARTS)}
    whole = parts["fit"]
    images, units = list(whole.images), list(whole.units)
    dev = StoredPart(whole.num_classes, images[2::3], units[2::3])
    del images[2::3], units[2::3]
    return {"fit": StoredPart(whole.num_classes, images, units), "dev": dev}


def description(part: StoredPart, metrics: Metrics) -> str:
    """Describe the mass of a part's labelled cells, and how it and confidence separate errors."""
    pixels = [labelled_pixels(image) for image in part.images]
    wrong = torch.cat([logits.argmax(dim=1) != labels for logits, labels in pixels])
    masses = torch.cat([logits.logsumexp(dim=1).exp() for logits, _ in pixels])
    ranks, errors = torch.from_numpy(rankdata(-masses)), int(wrong.sum())
    auroc = (ranks[wrong].mean() - (errors + 1) / 2) / (len(wrong) - errors)
    return (
        f"{len(part)} images, accuracy {metrics.accuracy:.3f}, mass {masses.mean():.2f} on average "
        f"and below 0.5 at {(masses < 0.5).float().mean():.2%} of pixels; AUROC of errors "
        f"{metrics.auroc_misprediction:.3f} by confidence, {auroc:.3f} by mass."
    )


def rows(backbone: Backbone) -> Iterator[str]:
    """Fit and measure all variants on one mask classifier; yield a table for each part."""
    parts = development(backbone.parts)
    fit = parts.pop("fit")
    temperature = Temperature(fit.num_classes)
    temperature.fit(fit, FitContext())
    fitted = {
        name: [fitted_variant(use, fit, seed) for seed in SEEDS] for name, use in VARIANTS.items()
    }
    for name, part in parts.items():
        variants = list(chain.from_iterable(fitted.values()))
        of_temperature, *results = evaluate_calibrators(
            part, [temperature, *variants], FitContext()
        )
        yield f"{name}: {description(part, of_temperature.evaluation.result())}\n"
        yield "| variant | ECE | AURC | NLL | f |\n|---|---|---|---|---|"
        yield row("temperature", {name: [figures_of(of_temperature, 1.0)]})
        for variant, (first, *_) in fitted.items():
            own, results = results[: len(SEEDS)], results[len(SEEDS) :]
            score = first.mean_score(part)  # the seed has no part in it
            yield row(variant, {name: [figures_of(result, score) for result in own]})
        yield ""


def fitted_variant(use: Use, fit: StoredPart, seed: int) -> WithMass:
    """Fit a variant with one seed."""
    variant = WithMass(fit.num_classes, use)
    variant.fit(fit, FitContext(seed=seed))
    return variant.eval()


def figures_of(result: TestResult, score: float) -> Figures:
    """Return a result's figures."""
    metrics = result.evaluation.result()
    return Figures(metrics.ece_image, metrics.aurc, statistics.mean(result.image_scores), score)


def main() -> None:
    """Write a table for each mask classifier."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.paper.mass_ablation", description=__doc__
    )
    parser.add_argument("backbones", nargs="+", help="such as camvid-pyramid")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="trained networks")
    parser.add_argument("--out", type=Path, default=Path("docs/mass-tables.md"))
    args = parser.parse_args()
    lines = []
    for backbone in mask_classifiers(args.backbones, args.runs, ("fit", *PARTS)):
        lines.append(f"### {backbone.name}\n")
        for line in rows(backbone):
            print(line, file=sys.stderr, flush=True)
            lines.append(line)
        lines.append("")
    args.out.write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    main()
