"""JSON document of an evaluation with its analyses, for figures drawn by other programs."""

from dataclasses import asdict

from app.calibration.metrics import subsets
from app.calibration.metrics.assessment import Assessment
from app.calibration.report import without_nan
from app.evaluation.analyses import Analyses
from app.evaluation.analysis_figures import (
    INVALID_GIVEN,
    INVALID_NONE,
    NO_TEMPERATURES,
    model_bytes,
    stages,
)
from app.evaluation.evaluate import Comparison
from app.evaluation.resampling import MIN_UNITS

KINDS = {
    "correctness": (subsets.CORRECT, subsets.MISPREDICTED),
    "boundary": (subsets.BOUNDARY, subsets.INTERIOR),
}


def analysis_document(analyses: Analyses) -> dict[str, object]:
    """Build the document; stages are "before" and "after" calibration, undefined values null.

    Intervals are {"mean", "low", "high"}, over the units that `resampling` names.
    """
    comparison = analyses.comparison
    document = {
        "images": len(comparison.pairs),
        "resampling": {
            "unit": comparison.units.singular,
            "units": comparison.units.count([image.ece for image in comparison.before.images]),
            "minimum": MIN_UNITS,
        },
        "images_of_the_fit": None if comparison.shared is None else comparison.shared._asdict(),
        "model": model_entry(comparison),
        "ece_difference": None
        if comparison.difference is None
        else comparison.difference._asdict(),
        "analyses": {
            **{name: by_kind(comparison, kinds) for name, kinds in KINDS.items()},
            "class": by_class(comparison),
            "crop_size": by_crop_size(analyses),
            "scale": [
                {"scale": "single", **model_entry(comparison)},
                {"scale": "multi", **model_entry(analyses.multiscale)},
            ],
            "capacity": [model_entry(one) for one in (comparison, *analyses.others)],
            "uiou": by_threshold(analyses),
            "temperature": by_temperature(analyses),
        },
    }
    cleaned = without_nan(document)
    assert isinstance(cleaned, dict)  # noqa: S101 - a dict stays a dict
    return cleaned


def model_entry(comparison: Comparison) -> dict[str, object]:
    """List a model, its calibrator, and its metrics by stage."""
    return {
        "name": comparison.folder.card.name,
        "sha256": comparison.folder.sha256,
        "bytes": model_bytes(comparison),
        "calibrator": None if comparison.manifest is None else comparison.manifest.id,
        **{stage: metrics(comparison, side) for stage, side in stages(comparison).items()},
    }


def metrics(comparison: Comparison, side: Assessment) -> dict[str, object]:
    """List an assessment's metrics, image-wise ECE with its interval."""
    measured = asdict(side.evaluation.result())
    return measured | {
        "ece_image": comparison.ece_interval(side)._asdict(),
        "ece_boundary": side.boundary_ece,
    }


def by_kind(comparison: Comparison, kinds: tuple[str, ...]) -> dict[str, object]:
    """List the metrics and reliability bins of kinds of pixels by stage."""
    return {
        stage: {
            kind: side.kind(kind)._asdict()
            | {"bins": [bin_._asdict() for bin_ in side.kind_reliability(kind)]}
            for kind in kinds
        }
        for stage, side in stages(comparison).items()
    }


def by_class(comparison: Comparison) -> list[dict[str, object]]:
    """List each class, with the metrics of its labelled and of its predicted pixels by stage."""
    classes = {stage: side.classes() for stage, side in stages(comparison).items()}
    return [
        {"id": index, "name": info.name}
        | {
            stage: rows[index]._asdict() | {"predicted": rows[index].predicted._asdict()}
            for stage, rows in classes.items()
        }
        for index, info in enumerate(comparison.folder.card.output.classes)
    ]


def by_crop_size(analyses: Analyses) -> list[dict[str, object]]:
    """List the ECE of crops by size and stage."""
    errors = {stage: analyses.crop_errors(stage) for stage in stages(analyses.comparison)}
    return [
        {"size": size, **{stage: sizes[size]._asdict() for stage, sizes in errors.items()}}
        for size in errors["before"]
    ]


def by_threshold(analyses: Analyses) -> dict[str, object]:
    """List UIoU by threshold and AUIoU, by stage."""
    uiou = analyses.images.uiou
    return {
        "invalid": INVALID_GIVEN if analyses.with_invalid else INVALID_NONE,
        "thetas": list(uiou["before"].thetas),
        **{stage: {"uiou": one.uiou(), "auiou": one.auiou()} for stage, one in uiou.items()},
    }


def by_temperature(analyses: Analyses) -> object:
    """List ECE, UIoU and AUIoU by temperature, or the reason why there are none."""
    if not analyses.has_temperatures:
        return {"left_out": NO_TEMPERATURES}
    return [
        {
            "temperature": scaled.temperature,
            "ece_image": analyses.scaled_error(scaled)._asdict(),
            "uiou": scaled.uiou.uiou(),
            "auiou": scaled.uiou.auiou(),
        }
        for scaled in analyses.images.scaled
    ]
