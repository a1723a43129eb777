"""A fit's report: every candidate's figures, the reliability curves, and the decision."""

import math
from dataclasses import asdict

from app.calibration.certification import DELTA, Certification
from app.calibration.metrics.evaluation import IMAGE_BINS, POOLED_BINS
from app.calibration.selection import Candidate, Outcome


def report(outcome: Outcome, activated: bool, why: str) -> dict[str, object]:
    """Shape a report for JSON; undefined figures are null.

    All figures are on the test images, which neither fitted nor chose; `ece_image_select` is what
    the choice went by. `ece_image` is image-wise with 10 bins, `ece_pooled` over all pixels with
    15.
    """
    document = {
        "images": {
            "fit": len(outcome.split.fit),
            "select": len(outcome.split.select),
            "held_out": len(outcome.split.test),
            "test_images_used_for_selection": not outcome.split.independent_test,
        },
        "bins": {"ece_image": IMAGE_BINS, "ece_pooled": POOLED_BINS},
        "seed": outcome.seed,
        "uncalibrated": candidate_metrics(outcome.uncalibrated),
        "candidates": [candidate_metrics(candidate) for candidate in outcome.candidates],
        "skipped": dict(outcome.skipped),
        "chosen": outcome.chosen.method,
        "parameters": outcome.chosen.calibrator.summary(),
        "selector": selector(outcome.chosen),
        "ece_difference": outcome.ece_difference._asdict(),
        "aurc_difference": outcome.aurc_difference._asdict(),
        "reliability": {
            "before": curve(outcome.uncalibrated),
            "after": curve(outcome.chosen),
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
    assert isinstance(cleaned, dict)  # noqa: S101 - a dict goes in
    return cleaned


def candidate_metrics(candidate: Candidate) -> dict[str, object]:
    """Name a candidate's figures."""
    return {
        "method": candidate.method,
        **asdict(candidate.evaluation.result()),
        "labels_changed": candidate.labels_changed,
        "ece_image_select": candidate.ece_select,
        "fit_seconds": round(candidate.fit_seconds, 3),
        "selector": selector(candidate),
    }


def selector(candidate: Candidate) -> dict[str, float] | None:
    """Name the figures of a candidate's selector; null for those without one."""
    return None if candidate.selector is None else candidate.selector._asdict()


def certification(found: Certification) -> dict[str, object]:
    """Say how the thresholds were certified, and why some levels have none."""
    return {
        "images": found.images,
        "resolution": "image" if found.at_image_size else "logits",
        "risk": "share of wrong pixels among accepted ones, images weighing equally",
        "delta": DELTA,
        "uncertified": {str(level): reason for level, reason in found.uncertified.items()},
    }


def curve(candidate: Candidate) -> list[dict[str, float]]:
    """Give a candidate's reliability curve, empty bins left out."""
    return [bin_._asdict() for bin_ in candidate.evaluation.reliability() if bin_.pixels]


def risk_coverage(candidate: Candidate) -> list[dict[str, float]]:
    """Give a candidate's risk-coverage curve, the most confident pixels first."""
    return [step._asdict() for step in candidate.evaluation.confidence_histogram.risk_coverage()]


def without_nan(value: object) -> object:
    """Replace NaN by None all through a document: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
