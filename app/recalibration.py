"""Calibrate a model: fit, gate, publish, and switch the active version.

`calibrate` runs the whole flow. `decide_activation` is the gate; `publish_version` publishes the
version and is the one place of a fit that switches the active one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from app.calibration.base import FitContext, ignore_progress
from app.calibration.dataset import ValidationSet, WithImageHashes
from app.calibration.label_agreement import find_disagreement
from app.calibration.metrics.intervals import Interval
from app.calibration.registry import auto_methods, discover, require_options
from app.calibration.report import build_report
from app.calibration.selection import ALPHA, Outcome, fit
from app.errors import ActiveCalibratorError, ArgumentError
from app.inference.model_card import ModelFolder
from app.schemas.calibrator import Manifest
from app.schemas.fit import AUTO_METHOD, Activate, FitOptions
from app.storage.artifacts import ArtifactStore
from app.storage.backend import Lease
from app.storage.manifest import StoredCalibrator, new_id, timestamp

PUBLISHING = "publishing"  # progress stage from which a fit can no longer be cancelled


@dataclass(frozen=True)
class PublishedCalibrator:
    """A published version, its report, and whether it was activated."""

    manifest: Manifest
    report: dict[str, object]
    activated: bool


class Decision(NamedTuple):
    """The gate's decision on a version, with the reason for its report and the history."""

    activate: bool
    reason: str


def calibrate(
    folder: ModelFolder,
    data: ValidationSet,
    store: ArtifactStore,
    options: FitOptions,
    progress: Callable[[str, float], None] = ignore_progress,
    by: str = "command",
) -> PublishedCalibrator:
    """Fit on a validation set, publish the version, and activate it where the gate allows.

    `by` is who or what started the fit, for the store's history. Raises ArgumentError for a set
    that does not fit the method or the active version, ConflictError while the model is fitted on
    another machine, and StorageError.
    """
    with store.lease(folder.card.name, by) as lease:
        return _calibrate(folder, data, store, options, progress, by, lease)


def _calibrate(
    folder: ModelFolder,
    data: ValidationSet,
    store: ArtifactStore,
    options: FitOptions,
    progress: Callable[[str, float], None],
    by: str,
    lease: Lease,
) -> PublishedCalibrator:
    """Fit, publish and activate as `calibrate`, with the lease of the model's fit."""
    active = comparable_version(store, folder)
    if active is not None:
        first = data[0]
        require_comparable(active, images=first.image is not None, maps=first.labels.ndim == 2)
    current = None if active is None else active.calibrator
    context = FitContext(options.seed, progress)
    outcome = fit(
        data, candidates(options), context, current, options.method_options, certify=options.certify
    )
    decision = decide_activation(outcome, options.activate, active.manifest.id if active else None)
    if options.check_labels and decision.activate and options.activate == "if_better":
        reason = find_disagreement(data, options.seed)
        decision = Decision(False, f"{reason}; {decision.reason}") if reason else decision
    progress(PUBLISHING, 1.0)
    hashes = data.image_hashes if isinstance(data, WithImageHashes) else None
    manifest = build_manifest(folder, outcome, options)
    return publish_version(store, manifest, outcome, decision, by, hashes, lease)


def comparable_version(store: ArtifactStore, folder: ModelFolder) -> StoredCalibrator | None:
    """Load the active version that a fit is compared with; None for a damaged one as well.

    A new fit is one way to repair the damage, which must not prevent it.
    """
    try:
        return store.active(folder.card.name, folder.sha256, folder.weights_sha256)
    except ActiveCalibratorError:
        return None


def candidates(options: FitOptions) -> Sequence[str]:
    """Return the names of the methods to fit: those of `auto`, or the one method.

    Raises ArgumentError for an unknown method, for one that may change labels unless
    `allow_label_changes`, and for an option of other methods.
    """
    method, methods = options.method, discover()
    if method not in (AUTO_METHOD, *methods):
        raise ArgumentError(f"expected {AUTO_METHOD} or one of {', '.join(methods)}, got {method}")
    require_options(method, options.method_options)
    if method == AUTO_METHOD:
        return auto_methods(allow_label_changes=options.allow_label_changes)
    if not (options.allow_label_changes or methods[method].invariances.argmax):
        raise ArgumentError(
            f"expected allow_label_changes with the method {method}, which may change labels"
        )
    return (method,)


def require_inputs(method: str, *, maps: bool) -> None:
    """Raise ArgumentError for a method that can't be fitted on logits without images.

    `maps` is true for logits [N,K,h,w] and false for a table of pixels.
    """
    if method == AUTO_METHOD:
        return
    calibrator = discover()[method]
    if calibrator.needs_image:
        raise ArgumentError(f"expected images with the method {method}, got logits alone")
    if calibrator.needs_maps and not maps:
        raise ArgumentError(
            f"expected maps [N,K,h,w] with the method {method}, which reads neighbours, got a "
            f"table of pixels"
        )


def require_comparable(active: StoredCalibrator, *, images: bool, maps: bool) -> None:
    """Raise ArgumentError where the active version can't be evaluated on the data.

    `images` is true for data with images, `maps` for data that is no table of pixels.
    """
    if active.calibrator.needs_image and not images:
        expected, got = "images", "logits alone"
    elif active.calibrator.needs_maps and not maps:
        expected, got = "maps of images", "a table of pixels"
    else:
        return
    raise ArgumentError(
        f"expected {expected}, which the active calibrator {active.manifest.id} reads, to "
        f"compare with it, got {got}; activate another version to do without"
    )


def decide_activation(outcome: Outcome, activate: Activate, active_id: str | None) -> Decision:
    """Decide whether to activate: the gate, unless the caller asks for "always" or "never".

    The gate opens where the chosen calibrator is significantly better than the current one on the
    test images (`Outcome.better`). `active_id` is the current version; None where there is none.
    """
    ece, aurc, score = outcome.ece_difference, outcome.aurc_difference, outcome.score_difference
    unit = "images" if outcome.test_groups == len(outcome.split.test) else "groups of images"
    measured = (
        f"the NLL of correctness changes by {score.mean:+.4f} (sign-flip p "
        f"{outcome.p_value:.2g} over {outcome.test_groups} held-out {unit}), image-wise "
        f"ECE by {ece.mean:+.4f} ({_format_interval(ece)}), AURC by {aurc.mean:+.4f} "
        f"({_format_interval(aurc)}) against {active_id or 'the uncalibrated model'}"
    )
    if not outcome.split.independent_test:
        measured += "; these images also chose the method, so nothing can be shown on them"
    elif 2.0**-outcome.test_groups > ALPHA:
        measured += f"; fewer than six {unit} can show nothing"
    if activate == "always":
        return Decision(True, f"activate=always; {measured}")
    if activate == "never":
        return Decision(False, f"activate=never; {measured}")
    result = "better" if outcome.better else "not shown to be better"
    return Decision(outcome.better, f"{result}: {measured}")


def publish_version(
    store: ArtifactStore,
    manifest: Manifest,
    outcome: Outcome,
    decision: Decision,
    by: str,
    image_hashes: Sequence[str] | None = None,
    lease: Lease | None = None,
) -> PublishedCalibrator:
    """Publish a fit as a new version, and switch the active version to it if so decided.

    `image_hashes` are as for `build_report`. Raises StorageError, and ConflictError where the fit
    has lost its lease.
    """
    document = build_report(
        outcome, decision.activate, decision.reason, manifest.options, image_hashes
    )
    manifest = store.publish(
        manifest, outcome.chosen.calibrator, document, outcome.reference, lease
    )
    if decision.activate:
        store.activate(manifest.model, manifest.id, decision.reason, by, lease)
    return PublishedCalibrator(manifest, document, decision.activate)


def build_manifest(folder: ModelFolder, outcome: Outcome, options: FitOptions) -> Manifest:
    """Build the manifest of a new version, with the current time."""
    metrics = outcome.chosen.evaluation.result()
    return Manifest(
        id=new_id(outcome.chosen.method),
        model=folder.card.name,
        model_sha256=folder.sha256,
        weights_sha256=folder.weights_sha256,
        method=outcome.chosen.method,
        num_classes=folder.num_classes,
        fitted_at=timestamp(),
        images=outcome.images,
        pixels=metrics.pixels,
        ece_before=outcome.uncalibrated.evaluation.result().ece_image,
        ece_after=metrics.ece_image,
        seed=outcome.seed,
        note=options.note,
        options=options.method_options,
        summary=outcome.chosen.calibrator.summary(),
        thresholds=outcome.certification.thresholds,
    )


def _format_interval(interval: Interval) -> str:
    if math.isnan(interval.low):
        return "too few images for an interval"
    return f"95% interval {interval.low:+.4f} to {interval.high:+.4f}"
