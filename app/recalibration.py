"""Calibrate a model: fit on a validation set, publish the version, and activate it if better."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.calibration.base import FitContext
from app.calibration.dataset import Augmentation, ValidationSet
from app.calibration.registry import auto_methods, discover
from app.calibration.report import report
from app.calibration.selection import Outcome, fit
from app.errors import ArgumentError
from app.inference.model_card import ModelFolder
from app.storage.artifacts import ArtifactStore
from app.storage.manifest import Manifest, StoredCalibrator, new_id, timestamp

AUTO_METHOD = "auto"
PUBLISHING = "publishing"  # the stage from which a fit is carried through
Activate = Literal["if_better", "always", "never"]


class FitOptions(BaseModel):
    """Options of a fit; `ignore_index` is the label of void pixels."""

    model_config = ConfigDict(frozen=True)

    method: str = AUTO_METHOD
    activate: Activate = "if_better"
    allow_label_changes: bool = False
    augmentation: Augmentation = "none"
    ignore_index: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 255
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    note: Annotated[str, Field(max_length=1000)] = ""


@dataclass(frozen=True)
class PublishedCalibrator:
    """A published version and what became of it."""

    manifest: Manifest
    report: dict[str, object]
    activated: bool
    why: str


def calibrate(
    folder: ModelFolder,
    data: ValidationSet,
    store: ArtifactStore,
    context: FitContext,
    method: str = "auto",
    activate: Activate = "if_better",
    note: str = "",
    by: str = "command",
    *,
    allow_label_changes: bool = False,
) -> PublishedCalibrator:
    """Fit, publish, and activate or not; raises ArgumentError, StorageError."""
    name = folder.card.name
    active = store.active(name, folder.sha256)
    if active is not None:
        first = data[0]
        require_comparable(active, images=first.image is not None, maps=first.labels.ndim == 2)
    current = None if active is None else active.calibrator
    outcome = fit(data, candidates(method, allow_label_changes), context, current)
    activated, why = decide(outcome, activate, active.manifest.id if active else None)
    manifest = describe(folder, outcome, note)
    document = report(outcome, activated, why)
    context.progress(PUBLISHING, 1.0)
    store.publish(manifest, outcome.chosen.calibrator, document, outcome.reference)
    if activated:
        store.activate(name, manifest.id, why, by)
    return PublishedCalibrator(manifest, document, activated, why)


def candidates(method: str, allow_label_changes: bool) -> Sequence[str]:
    """Name the methods to fit.

    Raises ArgumentError for an unknown one, and for one that changes labels unless that is allowed.
    """
    if method == AUTO_METHOD:
        return auto_methods(allow_label_changes=allow_label_changes)
    methods = discover()
    if method not in methods:
        raise ArgumentError(f"expected {AUTO_METHOD} or one of {', '.join(methods)}, got {method}")
    if not (allow_label_changes or methods[method].invariances.argmax):
        raise ArgumentError(
            f"expected allow_label_changes with the method {method}, which may change labels"
        )
    return (method,)


def require_inputs(method: str, *, augmentation: Augmentation, maps: bool) -> None:
    """Raise ArgumentError where a fit on logits alone can't do what is asked for.

    `maps` says whether the logits are maps of images or a table of pixels.
    """
    if augmentation != "none":
        raise ArgumentError(
            f"expected images with augmentation={augmentation}, got logits, of which no corrupted "
            f"copies can be made"
        )
    if method == AUTO_METHOD:
        return
    calibrator = discover()[method]
    if calibrator.needs_image:
        raise ArgumentError(f"expected images with the method {method}, got logits alone")
    if calibrator.needs_maps and not maps:
        raise ArgumentError(
            f"expected maps [N,K,h,w] with the method {method}, which looks at neighbours, got a "
            f"table of pixels"
        )


def require_comparable(active: StoredCalibrator, *, images: bool, maps: bool) -> None:
    """Raise ArgumentError where the active version can't be measured on the data."""
    if active.calibrator.needs_image and not images:
        wanted, came = "images", "logits alone"
    elif active.calibrator.needs_maps and not maps:
        wanted, came = "maps of images", "a table of pixels"
    else:
        return
    raise ArgumentError(
        f"expected {wanted}, which the active calibrator {active.manifest.id} looks at, to "
        f"compare with it, got {came}; activate another version to do without"
    )


def decide(outcome: Outcome, activate: Activate, active: str | None) -> tuple[bool, str]:
    """Decide on activation: by the bootstrap interval, unless the caller already has."""
    (mean, low, high), aurc = outcome.ece_difference, outcome.aurc_difference
    independent = outcome.split.independent_test
    test_images = "held-out images" if independent else "images that also chose the method"
    measured = (
        f"image-wise ECE changes by {mean:+.4f} ({_interval(low, high)}), "
        f"AURC by {aurc.mean:+.4f} ({_interval(aurc.low, aurc.high)}) against "
        f"{active or 'the uncalibrated model'} on {len(outcome.split.test)} "
        f"{test_images}"
    )
    if activate == "always":
        return True, f"asked to activate always; {measured}"
    if activate == "never":
        return False, f"asked never to activate; {measured}"
    return outcome.better, f"{'better' if outcome.better else 'not surely better'}: {measured}"


def _interval(low: float, high: float) -> str:
    if math.isnan(low):
        return "too few images for an interval"
    return f"95% interval {low:+.4f} to {high:+.4f}"


def describe(folder: ModelFolder, outcome: Outcome, note: str) -> Manifest:
    """Write a new version's manifest."""
    after = outcome.chosen.evaluation.result()
    return Manifest(
        id=new_id(outcome.chosen.method),
        model=folder.card.name,
        model_sha256=folder.sha256,
        method=outcome.chosen.method,
        num_classes=folder.num_classes,
        fitted_at=timestamp(),
        images=outcome.images,
        pixels=after.pixels,
        ece_before=outcome.uncalibrated.evaluation.result().ece_image,
        ece_after=after.ece_image,
        seed=outcome.seed,
        note=note,
        summary=outcome.chosen.calibrator.summary(),
        thresholds=outcome.certification.thresholds,
    )
