"""A fit's report: every candidate's figures, the reliability curves, and the decision."""

import math
from dataclasses import asdict

from app.calibration.fitting import Candidate, Outcome
from app.calibration.metrics import IMAGE_BINS, POOLED_BINS


def report(outcome: Outcome, activated: bool, why: str) -> dict[str, object]:
    """Shape a report for JSON; undefined figures are null.

    All figures are on held-out images. `ece_image` is image-wise with 10 bins, `ece_pooled` over
    all pixels with 15.
    """
    document = {
        "images": {"fit": outcome.fit_images, "held_out": outcome.held_out_images},
        "bins": {"ece_image": IMAGE_BINS, "ece_pooled": POOLED_BINS},
        "seed": outcome.seed,
        "uncalibrated": figures(outcome.uncalibrated),
        "candidates": [figures(candidate) for candidate in outcome.candidates],
        "refused": dict(outcome.refused),
        "chosen": outcome.chosen.method,
        "parameters": outcome.chosen.calibrator.summary(),
        "ece_difference": outcome.ece_difference._asdict(),
        "reliability": {
            "before": curve(outcome.uncalibrated),
            "after": curve(outcome.chosen),
        },
        "decision": {"activated": activated, "why": why},
    }
    cleaned = without_nan(document)
    assert isinstance(cleaned, dict)  # noqa: S101 - a dict goes in
    return cleaned


def figures(candidate: Candidate) -> dict[str, object]:
    """Name a candidate's figures."""
    return {
        "method": candidate.method,
        **asdict(candidate.evaluation.result()),
        "labels_changed": candidate.labels_changed,
        "fit_seconds": round(candidate.fit_seconds, 3),
    }


def curve(candidate: Candidate) -> list[dict[str, float]]:
    """Give a candidate's reliability curve, empty bins left out."""
    return [bin_._asdict() for bin_ in candidate.evaluation.reliability() if bin_.pixels]


def without_nan(value: object) -> object:
    """Replace NaN by None all through a document: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
