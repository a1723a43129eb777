"""Fit every method on a backbone's logits, measure it on every set of images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.calibration.base import Calibrator, FitContext
from app.calibration.comparison import evaluate_calibrators
from app.calibration.methods.identity import Identity
from app.calibration.methods.selective import Selective
from app.calibration.metrics.evaluation import Evaluation
from app.calibration.registry import build
from app.imaging.corruptions import KINDS, STRENGTHS
from benchmarks.paper.data import RENDERED_CONDITIONS, StoredSet

PLAIN = (
    "temperature", "vector", "vector_ti", "matrix_ti", "dirichlet", "ets", "isotonic",
    "isotonic_ova", "lts", "lts_image", "metacal", "cdc", "cmsap", "cmsop",
    "selective", "selective+temperature", "selective+isotonic", "contextual",
)  # fmt: skip
HARD_TWO, WITH_CORRUPTIONS = "selective, hard, T_mis 2", "contextual, corruptions"
UNCALIBRATED = "uncalibrated"
METHODS = (UNCALIBRATED, *PLAIN, HARD_TWO, WITH_CORRUPTIONS)

Results = dict[str, dict[str, Evaluation]]  # by method, by setting


@dataclass(frozen=True)
class Setting:
    """Sets of images under one kind of distribution shift, measured as one."""

    name: str
    sets: tuple[str, ...]


SETTINGS = (
    Setting("day", ("day",)),
    Setting("dusk", ("dusk",)),
    Setting("rendered", tuple(f"rendered {condition}" for condition in RENDERED_CONDITIONS)),
    Setting("corrupted", tuple(f"{kind} {strength}" for kind in KINDS for strength in STRENGTHS)),
)


def label_keeping(method: str) -> bool:
    """Return whether a method keeps every label."""
    return method not in PLAIN or build(method, 2).invariances.argmax


def run(
    sets: Mapping[str, StoredSet], seed: int = 0
) -> Iterator[tuple[str, dict[str, Evaluation]]]:
    """Fit and measure every method on one backbone; yields a method's evaluations by setting.

    A method that is fitted on corrupted copies is fitted once without each kind of corruption, and
    each kind is measured with the fit that excludes it.
    """
    classes = sets["fit"].num_classes
    yield UNCALIBRATED, measured(Identity(classes), sets)
    for method in PLAIN:
        yield method, measured(fitted(build(method, classes), sets["fit"], seed), sets)
    hard = Selective(classes, mixing="hard", mispredicted=2.0)
    yield HARD_TWO, measured(fitted(hard, sets["fit"], seed), sets)
    yield WITH_CORRUPTIONS, leaving_one_out(sets, seed)


def fitted(calibrator: Calibrator, data: StoredSet, seed: int) -> Calibrator:
    """Fit a calibrator."""
    calibrator.fit(data, FitContext(seed=seed))
    return calibrator.eval()


def measured(calibrator: Calibrator, sets: Mapping[str, StoredSet]) -> dict[str, Evaluation]:
    """Measure one calibrator on every setting."""
    return {s.name: together(calibrator, sets, s.sets) for s in SETTINGS}


def together(
    calibrator: Calibrator, sets: Mapping[str, StoredSet], names: Sequence[str]
) -> Evaluation:
    """Measure a calibrator on several sets as one."""
    total = Evaluation(calibrator.num_classes)
    for name in names:
        total.merge(evaluate_calibrators(sets[name], [calibrator], FitContext())[0].evaluation)
    return total


def leaving_one_out(sets: Mapping[str, StoredSet], seed: int) -> dict[str, Evaluation]:
    """Measure each corruption with the fit that excludes it, other settings with all copies."""

    def fit_without(left: str | None) -> Calibrator:
        augmented = [sets[f"fit {kind}"] for kind in KINDS if kind != left]
        data = sets["fit"].with_augmented(augmented)
        return fitted(build("contextual", data.num_classes), data, seed)

    results = measured_uncorrupted(fit_without(None), sets)
    total = Evaluation(sets["fit"].num_classes)
    for kind in KINDS:
        names = [f"{kind} {strength}" for strength in STRENGTHS]
        total.merge(together(fit_without(kind), sets, names))
    return {**results, "corrupted": total}


def measured_uncorrupted(
    calibrator: Calibrator, sets: Mapping[str, StoredSet]
) -> dict[str, Evaluation]:
    """Measure one calibrator on every setting without corruption."""
    return {s.name: together(calibrator, sets, s.sets) for s in SETTINGS if s.name != "corrupted"}


def mean_ranks(
    results: Mapping[str, Results], metric: str, methods: Sequence[str]
) -> dict[str, float]:
    """Return mean ranks by a metric (less is better) over backbones and settings; 1 is best."""
    ranks: dict[str, list[int]] = {method: [] for method in methods}
    for by_method in results.values():
        for setting in SETTINGS:
            values = [
                float(getattr(by_method[method][setting.name].result(), metric))
                for method in methods
            ]
            for place, index in enumerate(np.argsort(values, kind="stable")):
                ranks[methods[int(index)]].append(place + 1)
    return {method: float(np.mean(places)) for method, places in ranks.items()}
