"""Fit every method on one backbone's logits and measure it on every group."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.calibration.base import Calibrator, FitContext
from app.calibration.methods.identity import Identity
from app.calibration.methods.selective import Selective
from app.calibration.metrics.evaluation import Evaluation
from app.calibration.registry import build
from app.calibration.selection import measure
from app.imaging.corruptions import KINDS, STRENGTHS
from benchmarks.paper.logits import StoredSet
from benchmarks.paper.scenes import RENDERED_WEATHERS

PLAIN = (
    "temperature", "vector", "vector_ti", "matrix_ti", "dirichlet", "ets", "isotonic",
    "isotonic_ova", "lts", "lts_image", "metacal", "cdc", "cmsap", "cmsop",
    "selective", "selective+temperature", "selective+isotonic", "contextual",
)  # fmt: skip
HARD_TWO, WITH_WEATHER = "selective, hard, T_mis 2", "contextual, weather"
UNCALIBRATED = "uncalibrated"
METHODS = (UNCALIBRATED, *PLAIN, HARD_TWO, WITH_WEATHER)

Results = dict[str, dict[str, Evaluation]]  # by method, by setting


@dataclass(frozen=True)
class Setting:
    """What is measured under one heading: groups of one kind of shift."""

    name: str
    groups: tuple[str, ...]


SETTINGS = (
    Setting("day", ("day",)),
    Setting("dusk", ("dusk",)),
    Setting("rendered", tuple(f"rendered {weather}" for weather in RENDERED_WEATHERS)),
    Setting("spoiled", tuple(f"{kind} {strength}" for kind in KINDS for strength in STRENGTHS)),
)


def label_keeping(method: str) -> bool:
    """Whether a method promises to keep every label."""
    return method not in PLAIN or build(method, 2).invariances.argmax


def run(
    sets: Mapping[str, StoredSet], seed: int = 0
) -> Iterator[tuple[str, dict[str, Evaluation]]]:
    """Fit and measure every method on one backbone; yields a method's evaluations by setting.

    A method that learns from spoiled copies is fitted once for each kind of corruption, without
    it, and each kind is measured with the fit that has not seen it.
    """
    classes = sets["fit"].num_classes
    yield UNCALIBRATED, measured(Identity(classes), sets)
    for method in PLAIN:
        yield method, measured(fitted(build(method, classes), sets["fit"], seed), sets)
    hard = Selective(classes, mixing="hard", mispredicted=2.0)
    yield HARD_TWO, measured(fitted(hard, sets["fit"], seed), sets)
    yield WITH_WEATHER, leaving_one_out(sets, seed)


def fitted(calibrator: Calibrator, data: StoredSet, seed: int) -> Calibrator:
    """Fit a fresh calibrator."""
    calibrator.fit(data, FitContext(seed=seed))
    return calibrator.eval()


def measured(calibrator: Calibrator, sets: Mapping[str, StoredSet]) -> dict[str, Evaluation]:
    """Measure one calibrator on every setting."""
    return {s.name: together(calibrator, sets, s.groups) for s in SETTINGS}


def together(
    calibrator: Calibrator, sets: Mapping[str, StoredSet], names: Sequence[str]
) -> Evaluation:
    """Measure a calibrator on several groups as one."""
    total = Evaluation(calibrator.num_classes)
    for name in names:
        total.merge(measure(sets[name], [calibrator], FitContext())[0].evaluation)
    return total


def leaving_one_out(sets: Mapping[str, StoredSet], seed: int) -> dict[str, Evaluation]:
    """Fit on clean frames and five kinds of copies, and measure the sixth; the rest with all."""

    def fit_without(left: str | None) -> Calibrator:
        weather = [sets[f"fit {kind}"] for kind in KINDS if kind != left]
        data = sets["fit"].with_weather(weather)
        return fitted(build("contextual", data.num_classes), data, seed)

    results = measured_but_spoiled(fit_without(None), sets)
    total = Evaluation(sets["fit"].num_classes)
    for kind in KINDS:
        names = [f"{kind} {strength}" for strength in STRENGTHS]
        total.merge(together(fit_without(kind), sets, names))
    return {**results, "spoiled": total}


def measured_but_spoiled(
    calibrator: Calibrator, sets: Mapping[str, StoredSet]
) -> dict[str, Evaluation]:
    """Measure one calibrator on every setting without corruption."""
    return {s.name: together(calibrator, sets, s.groups) for s in SETTINGS if s.name != "spoiled"}


def mean_ranks(
    results: Mapping[str, Results], figure: str, methods: Sequence[str]
) -> dict[str, float]:
    """Rank methods by a figure (less is better) in each backbone and setting: mean, 1 is best."""
    ranks: dict[str, list[int]] = {method: [] for method in methods}
    for by_method in results.values():
        for setting in SETTINGS:
            values = [
                float(getattr(by_method[method][setting.name].result(), figure))
                for method in methods
            ]
            for place, index in enumerate(np.argsort(values, kind="stable")):
                ranks[methods[int(index)]].append(place + 1)
    return {method: float(np.mean(places)) for method, places in ranks.items()}
