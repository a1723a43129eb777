"""Fit every method on a backbone's logits with five seeds, and measure it on every part."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from app.calibration.base import Calibrator, FitContext
from app.calibration.comparison import TestResult, evaluate_calibrators, select_best
from app.calibration.dataset import Subset
from app.calibration.methods.contextual import Contextual
from app.calibration.methods.contextual.features import stride_of, subsampled
from app.calibration.methods.contextual.in_distribution import image_statistics
from app.calibration.methods.identity import Identity
from app.calibration.methods.selective import Selective
from app.calibration.registry import build, discover
from app.calibration.sampling import gather
from app.calibration.selection import fit_methods
from app.calibration.splits import split_images
from app.recalibration import candidates
from app.schemas.fit import FitOptions
from benchmarks.paper.backbones import Backbone
from benchmarks.paper.cvpr_recipe import CvprSelective
from benchmarks.paper.data import StoredPart, joined
from benchmarks.paper.tuning import DEFAULT, Options, tuned

SEEDS = range(5)
SETTINGS = ("test", "shift", "corrupted")
UNCALIBRATED, AUTO, AUTO_BY_ECE = "uncalibrated", "auto", "auto by ECE"
WITH_COPIES = ", copies"
CVPR, HARD = "selective, CVPR recipe", "selective, hard, T_mis 2"
PLAIN = (
    "temperature", "vector", "vector_ti", "matrix_ti", "dirichlet", "ets", "isotonic",
    "isotonic_ova", "lts", "lts_image", "metacal", "cdc", "cmsap", "cmsop",
    "selective", "selective+temperature", "selective+isotonic", "contextual",
)  # fmt: skip
# Fits of this size that draw no random numbers; they are measured once and stand for all seeds.
DETERMINISTIC = (
    UNCALIBRATED, "temperature", "vector", "vector_ti", "matrix_ti", "dirichlet", "ets", "isotonic",
    "isotonic_ova", "cdc", "cmsap", "cmsop",
)  # fmt: skip
COPIED = ("temperature", "isotonic", "selective", "contextual")
METHODS = (
    UNCALIBRATED, *PLAIN, HARD, CVPR, *(name + WITH_COPIES for name in COPIED), AUTO, AUTO_BY_ECE
)  # fmt: skip
Metric = Literal[
    "ece_image", "ece_pooled", "aurc", "nll", "brier", "auroc_misprediction", "correctness_nll",
    "miou", "accuracy", "in_distribution",
]  # fmt: skip


class Figures(BaseModel, ser_json_inf_nan="constants"):
    """One fitted calibrator's metrics on one part; the lists have a value for each image."""

    ece_image: float
    ece_pooled: float
    aurc: float
    nll: float
    brier: float
    auroc_misprediction: float
    correctness_nll: float
    miou: float
    accuracy: float
    image_ece: list[float]
    image_aurc: list[float]
    reliability: list[tuple[float, float, int]]  # confidence, accuracy, pixels of a bin
    risk_coverage: list[tuple[float, float]]  # coverage, risk
    in_distribution: float  # mean score over the images, 1 for methods without one


class BackboneResults(BaseModel, ser_json_inf_nan="constants"):
    """All figures of one backbone: by method, by part, a list over the seeds."""

    backbone: str
    units: dict[str, list[int]]  # of each part's images, for the intervals
    figures: dict[str, dict[str, list[Figures]]]
    chosen: dict[str, list[str]]  # by the two forms of auto, over the seeds
    options: dict[str, Options]  # of the tuned methods

    def settings(self) -> list[str]:
        """Return the reported parts that this backbone has."""
        return [name for name in SETTINGS if name in self.units]

    def mean(self, method: str, setting: str, metric: Metric) -> float:
        """Return the mean of a metric over the seeds."""
        values: list[float] = [getattr(one, metric) for one in self.figures[method][setting]]
        return statistics.mean(values)


@dataclass(frozen=True)
class Fitted:
    """A method's calibrator of one seed; `choice` is the method that `auto` selected."""

    method: str
    calibrator: Calibrator
    choice: str | None = None


def label_keeping(method: str) -> bool:
    """Return whether a method keeps every label."""
    return method not in PLAIN or build(method, 2).invariances.argmax


def run(backbone: Backbone) -> BackboneResults:
    """Fit and measure every method with every seed on one backbone."""
    reported = {name: part for name, part in backbone.parts.items() if name in SETTINGS}
    results = BackboneResults(
        backbone=backbone.name,
        units={name: list(part.units) for name, part in reported.items()},
        figures={method: {name: [] for name in reported} for method in METHODS},
        chosen={AUTO: [], AUTO_BY_ECE: []},
        options=tuned(backbone.parts),
    )
    for seed in SEEDS:
        fitted = list(fits(backbone.parts, seed, results.options))
        for one in fitted:
            if one.choice is not None:
                results.chosen[one.method].append(one.choice)
        calibrators = [one.calibrator for one in fitted]
        for name, part in reported.items():
            measured = evaluate_calibrators(part, calibrators, FitContext())
            for one, result in zip(fitted, measured, strict=True):
                score = mean_score(one.calibrator, part)
                results.figures[one.method][name].append(figures_of(result, score))
    return results


def fits(
    parts: Mapping[str, StoredPart], seed: int, options: Mapping[str, Options]
) -> Iterator[Fitted]:
    """Fit the methods with one seed, the deterministic ones with the first seed only."""
    data, context = parts["fit"], FitContext(seed=seed)
    classes = data.num_classes
    copied = joined(data, parts["fit copies"])
    unfitted = {
        UNCALIBRATED: Identity(classes),
        **{name: discover()[name](classes, **options.get(name, DEFAULT)) for name in PLAIN},
        HARD: Selective(classes, mixing="hard", mispredicted=2.0),
        CVPR: CvprSelective(classes),
        **{
            name + WITH_COPIES: discover()[name](classes, **options.get(name, DEFAULT))
            for name in COPIED
        },
    }
    for name, calibrator in unfitted.items():
        if seed == SEEDS[0] or name.removesuffix(WITH_COPIES) not in DETERMINISTIC:
            calibrator.fit(copied if name.endswith(WITH_COPIES) else data, context)
            yield Fitted(name, calibrator.eval())
    yield from selected(data, context)


def selected(data: StoredPart, context: FitContext) -> Iterator[Fitted]:
    """Fit the candidates of `auto`; yield its choice, and that of the least image-wise ECE."""
    split = split_images(range(len(data)), context.seed, choosing=True)
    images = Subset(data, split.fit)
    methods = candidates(FitOptions())
    fitted, _ = fit_methods(methods, images, gather(images, context), context, {})
    results = evaluate_calibrators(
        Subset(data, split.select), [one.calibrator for one in fitted], context
    )
    least = min(range(len(results)), key=lambda i: results[i].evaluation.result().ece_image)
    for name, index in ((AUTO, select_best(results)), (AUTO_BY_ECE, least)):
        yield Fitted(name, fitted[index].calibrator, fitted[index].method)


def figures_of(result: TestResult, score: float) -> Figures:
    """Return a result's metrics as they are stored."""
    evaluation = result.evaluation
    metrics = evaluation.result()
    bins, curve = evaluation.reliability(), evaluation.confidence_histogram.risk_coverage()
    names = ("ece_image", "ece_pooled", "aurc", "nll", "brier", "auroc_misprediction",
             "correctness_nll", "miou", "accuracy")  # fmt: skip
    return Figures(
        **{name: getattr(metrics, name) for name in names},
        image_ece=[image.ece for image in evaluation.images],
        image_aurc=[image.aurc for image in evaluation.images],
        reliability=[(b.confidence, b.accuracy, b.pixels) for b in bins if b.pixels],
        risk_coverage=[(p.coverage, p.risk) for p in curve[:: max(len(curve) // 100, 1)]],
        in_distribution=score,
    )


def mean_score(calibrator: Calibrator, part: StoredPart) -> float:
    """Return the mean in-distribution score of a part's images, 1 where there is none."""
    if not isinstance(calibrator, Contextual):
        return 1.0
    return statistics.mean(score_of(calibrator, image.logits) for image in part.images)


@torch.inference_mode()
def score_of(calibrator: Contextual, logits: Tensor) -> float:
    """Return the in-distribution score of one image's logits [K,h,w]."""
    cells = subsampled(logits[None], stride_of(logits[None]))
    features = calibrator.features((cells * calibrator.beta).log_softmax(dim=1))
    return float(calibrator.score(image_statistics(features, calibrator.num_classes)))
