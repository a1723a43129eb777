"""Calibrate a model: fit on a validation set, publish the version, and activate it if better."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from app.artifacts import ArtifactStore, Manifest, new_id, timestamp
from app.calibration.base import FitContext
from app.calibration.fitting import AUTO, Outcome, fit
from app.calibration.report import report
from app.calibration.validation import ValidationSet
from app.inference.card import ModelFolder

Activate = Literal["if_better", "always", "never"]


@dataclass(frozen=True)
class Calibrated:
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
) -> Calibrated:
    """Fit, publish, and activate or not; raises ArgumentError, StorageError."""
    name = folder.card.name
    active = store.active(name, folder.sha256)
    current = None if active is None else active.calibrator
    outcome = fit(data, candidates(method), context, current)
    activated, why = decide(outcome, activate, active.manifest.id if active else None)
    manifest = describe(folder, outcome, note)
    document = report(outcome, activated, why)
    store.publish(manifest, outcome.chosen.calibrator, document)
    if activated:
        store.activate(name, manifest.id, why, by)
    return Calibrated(manifest, document, activated, why)


def candidates(method: str) -> Sequence[str]:
    """Name the methods to fit."""
    return AUTO if method == "auto" else (method,)


def decide(outcome: Outcome, activate: Activate, active: str | None) -> tuple[bool, str]:
    """Decide on activation: by the bootstrap interval, unless the caller already has."""
    mean, low, high = outcome.ece_difference
    measured = (
        f"image-wise ECE changes by {mean:+.4f} (95% interval {low:+.4f} to {high:+.4f}) against "
        f"{active or 'the uncalibrated model'} on {outcome.held_out_images} held-out images"
    )
    if activate == "always":
        return True, f"asked to activate always; {measured}"
    if activate == "never":
        return False, f"asked never to activate; {measured}"
    return outcome.better, f"{'better' if outcome.better else 'not surely better'}: {measured}"


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
        images=outcome.fit_images + outcome.held_out_images,
        pixels=after.pixels,
        ece_before=outcome.uncalibrated.evaluation.result().ece_image,
        ece_after=after.ece_image,
        seed=outcome.seed,
        note=note,
        summary=outcome.chosen.calibrator.summary(),
    )
