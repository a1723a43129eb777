"""Write the report of a fit: metrics of all candidates, reliability curves, gate decision."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

from app.calibration.certification import DELTA, Certification
from app.calibration.metrics.evaluation import IMAGE_BINS, POOLED_BINS
from app.calibration.selection import ALPHA, Candidate, Outcome
from app.calibration.splits import Split


def build_report(
    outcome: Outcome,
    activated: bool,
    why: str,
    options: Mapping[str, object] = MappingProxyType({}),
    image_hashes: Sequence[str] | None = None,
) -> dict[str, object]:
    """Build a report as a JSON document; undefined metrics are null.

    All metrics but `correctness_nll_select` are of the test images, which take no part in fit and
    selection; that one is of the selection images, and the selection is by it. `ece_image` is
    image-wise with 10 bins, `ece_pooled` over all pixels with 15. `why` is the reason for
    `activated`; `options` are those of the method. `image_hashes` are those of the set's image
    files, None for a fit from logits; the report lists them by split.
    """
    document = {
        "images": {
            "fit": len(outcome.split.fit),
            "select": len(outcome.split.select),
            "held_out": len(outcome.split.test),
            "test_images_used_for_selection": not outcome.split.independent_test,
        },
        "image_hashes": split_hashes(outcome.split, image_hashes),
        "bins": {"ece_image": IMAGE_BINS, "ece_pooled": POOLED_BINS},
        "seed": outcome.seed,
        "uncalibrated": candidate_metrics(outcome.uncalibrated),
        "candidates": [candidate_metrics(candidate) for candidate in outcome.candidates],
        "skipped": dict(outcome.skipped),
        "chosen": outcome.chosen.method,
        "options": dict(options),
        "parameters": outcome.chosen.calibrator.summary(),
        "selector": error_detection(outcome.chosen),
        "ece_difference": outcome.ece_difference._asdict(),
        "aurc_difference": outcome.aurc_difference._asdict(),
        "gate": {
            "metric": "correctness_nll",
            "difference": outcome.score_difference._asdict(),
            "p_value": outcome.p_value,
            "alpha": ALPHA,
            "groups": outcome.test_groups,
        },
        "reliability": {
            "before": reliability_curve(outcome.uncalibrated),
            "after": reliability_curve(outcome.chosen),
        },
        "risk_coverage": {
            "before": risk_coverage(outcome.uncalibrated),
            "after": risk_coverage(outcome.chosen),
        },
        "thresholds": [asdict(entry) for entry in outcome.certification.thresholds],
        "certification": certification(outcome.certification),
        "decision": {"activated": activated, "why": why},
    }
    cleaned = without_nan(document)
    assert isinstance(cleaned, dict)  # noqa: S101 - a dict stays a dict
    return cleaned


def split_hashes(split: Split, hashes: Sequence[str] | None) -> dict[str, list[str]] | None:
    """List the hashes of the fit, selection and test images; None where they are not known."""
    if hashes is None:
        return None
    splits = {"fit": split.fit, "select": split.select, "held_out": split.test}
    return {name: [hashes[index] for index in indices] for name, indices in splits.items()}


def candidate_metrics(candidate: Candidate) -> dict[str, object]:
    """List a candidate's metrics by name."""
    return {
        "method": candidate.method,
        **asdict(candidate.evaluation.result()),
        "labels_changed": candidate.labels_changed,
        "correctness_nll_select": candidate.score_select,
        "fit_seconds": round(candidate.fit_seconds, 3),
        "selector": error_detection(candidate),
    }


def error_detection(candidate: Candidate) -> dict[str, float] | None:
    """List a candidate's error-detection metrics by name; None where it predicts no errors."""
    return None if candidate.error_detection is None else candidate.error_detection._asdict()


def certification(certified: Certification) -> dict[str, object]:
    """Describe how the thresholds were certified, and why some levels have none."""
    return {
        "images": certified.images,
        "resolution": "image" if certified.at_image_size else "logits",
        "risk": "share of wrong pixels among accepted ones, images weighing equally",
        "delta": DELTA,
        "uncertified": {str(level): reason for level, reason in certified.uncertified.items()},
    }


def reliability_curve(candidate: Candidate) -> list[dict[str, float]]:
    """List the bins of a candidate's reliability curve, without empty ones."""
    return [bin_._asdict() for bin_ in candidate.evaluation.reliability() if bin_.pixels]


def risk_coverage(candidate: Candidate) -> list[dict[str, float]]:
    """List the steps of a candidate's risk-coverage curve by rising coverage."""
    return [step._asdict() for step in candidate.evaluation.confidence_histogram.risk_coverage()]


def without_nan(value: object) -> object:
    """Replace each NaN of a nested document by None, since JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
