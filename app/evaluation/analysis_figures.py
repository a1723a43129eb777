"""Figures of the analyses with their captions and tables, for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.calibration.metrics.assessment import Assessment
from app.calibration.metrics.intervals import Interval
from app.evaluation import analysis_charts as charts
from app.evaluation.analyses import CROPS, Analyses
from app.evaluation.charts import STYLES, Stage
from app.evaluation.evaluate import Comparison
from app.evaluation.formatting import number

INVALID_GIVEN = "Nonzero pixels of the given masks are the invalid ones."
INVALID_NONE = (
    "No masks of invalid pixels were given (--invalid), so no pixel counts as invalid and no "
    "rejected pixel is credited: rejecting a correct pixel lowers UIoU, rejecting a wrong one only "
    "removes a false positive of another class."
)
NO_TEMPERATURES = (
    "Not available for a running service, which returns the confidence of the label alone: other "
    "temperatures need the logits. Evaluate the model without --url."
)
NO_CAPACITY = (
    "No other model was given; --compare MODEL, which may be repeated, puts some beside it."
)


@dataclass(frozen=True)
class AnalysisFigure:
    """One analysis: its title, its explanation, its chart as SVG or None, and its table."""

    title: str
    text: str
    chart: bytes | None = None
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def analysis_figures(analyses: Analyses) -> list[AnalysisFigure]:
    """Build the figures of all analyses, in the order of the page."""
    return [
        correctness_figure(analyses.comparison),
        boundary_figure(analyses.comparison),
        class_figure(analyses.comparison),
        crop_figure(analyses),
        scale_figure(analyses),
        capacity_figure(analyses),
        uiou_figure(analyses),
        temperature_figure(analyses),
    ]


def stages(comparison: Comparison) -> dict[Stage, Assessment]:
    """Return the assessments of a comparison by stage."""
    sides: dict[Stage, Assessment] = {"before": comparison.before}
    if comparison.after is not None:
        sides["after"] = comparison.after
    return sides


def model_bytes(comparison: Comparison) -> int | None:
    """Return the size of a model's file, None for a model of a running service."""
    path = comparison.folder.path
    return path.stat().st_size if path.is_file() else None


def correctness_figure(comparison: Comparison) -> AnalysisFigure:
    """Build the figure of correct and mispredicted pixels."""
    return AnalysisFigure(
        "Correctness",
        "Where the confidence of the correct and of the mispredicted pixels lies: the further the "
        "two are apart, the better mispredictions are detected.",
        charts.correctness_diagram(stages(comparison)),
    )


def boundary_figure(comparison: Comparison) -> AnalysisFigure:
    """Build the figure of the boundary band."""
    return AnalysisFigure(
        "Boundary",
        "Accuracy by confidence within 2 pixels of another class and elsewhere. Perfect "
        "calibration is the diagonal.",
        charts.boundary_diagram(stages(comparison)),
    )


def class_figure(comparison: Comparison) -> AnalysisFigure:
    """Build the figure of the classes."""
    names = [info.name for info in comparison.folder.card.output.classes]
    errors = {
        stage: [_alone(row.predicted.ece) for row in side.classes()]
        for stage, side in stages(comparison).items()
    }
    return AnalysisFigure(
        "Class",
        "ECE (15 bins) of the pixels predicted as each class; none where no pixel is.",
        charts.bar_diagram(names, errors),
    )


def crop_figure(analyses: Analyses) -> AnalysisFigure:
    """Build the figure of the crop sizes."""
    errors = {stage: analyses.crop_errors(stage) for stage in stages(analyses.comparison)}
    sizes = list(errors["before"])
    return AnalysisFigure(
        "Crop size",
        f"ECE (10 bins) on {CROPS} random crops of each size in each image, limited by the "
        f"image's sides. In a small crop fewer gaps cancel, so that ECE falls with the size "
        f"whatever the calibrator: compare calibrators at one size.",
        charts.crop_diagram(errors),
        ["Side, pixels", *_headings(analyses.comparison)],
        [[str(size), *(with_bounds(errors[s][size]) for s in errors)] for size in sizes],
    )


def scale_figure(analyses: Analyses) -> AnalysisFigure:
    """Build the figure of single-scale against multi-scale predictions."""
    rows = {"single scale": analyses.comparison, "multi-scale": analyses.multiscale}
    return _comparison_figure(
        "Scale",
        "Image-wise ECE of single-scale and of multi-scale predictions (the mean of three scales' "
        "log-probabilities). The calibrator was fitted on single-scale ones.",
        rows,
    )


def capacity_figure(analyses: Analyses) -> AnalysisFigure:
    """Build the figure of several models."""
    if not analyses.others:
        return AnalysisFigure("Capacity", NO_CAPACITY)
    rows = {capacity_name(one): one for one in (analyses.comparison, *analyses.others)}
    return _comparison_figure(
        "Capacity",
        "Image-wise ECE of several models on the same images, each with its calibrator. The size "
        "is that of the model's file: a quantised model has as many parameters in fewer bytes.",
        rows,
    )


def capacity_name(comparison: Comparison) -> str:
    """Return a model's name, with the size of its file where it is known."""
    size = model_bytes(comparison)
    name = comparison.folder.card.name
    return name if size is None else f"{name}, {size / 1e6:.1f} MB"


def uiou_figure(analyses: Analyses) -> AnalysisFigure:
    """Build the figure of UIoU by threshold."""
    uiou = analyses.images.uiou
    thetas = analyses.images.uiou["before"].thetas
    return AnalysisFigure(
        "UIoU and AUIoU",
        f"IoU in which a rejected pixel, of confidence below theta, counts as right where it is "
        f"invalid in the ground truth and as wrong elsewhere; AUIoU is its mean over the "
        f"{len(thetas)} thetas. Void pixels take no part. "
        f"{INVALID_GIVEN if analyses.with_invalid else INVALID_NONE}",
        charts.uiou_diagram(thetas, {stage: one.uiou() for stage, one in uiou.items()}),
        ["", *_headings(analyses.comparison)],
        [["AUIoU", *(number(one.auiou()) for one in uiou.values())]],
    )


def temperature_figure(analyses: Analyses) -> AnalysisFigure:
    """Build the figure of the experiment on ECE and AUIoU."""
    title = "Temperature: ECE beside AUIoU"
    if not analyses.has_temperatures:
        return AnalysisFigure(title, NO_TEMPERATURES)
    scaled = analyses.images.scaled
    errors, areas = ([analyses.scaled_error(s) for s in scaled], [s.uiou.auiou() for s in scaled])
    return AnalysisFigure(
        title,
        f"{temperature_finding([e.mean for e in errors], areas)} The uncalibrated logits are "
        f"divided by each temperature, which changes no label. AUIoU depends on the temperature "
        f"and does not measure calibration.{'' if analyses.with_invalid else ' ' + INVALID_NONE}",
        charts.temperature_diagram([s.temperature for s in scaled], errors, areas),
        ["Temperature", "Image-wise ECE", "AUIoU"],
        [
            [f"{s.temperature:g}", with_bounds(error), number(area)]
            for s, error, area in zip(scaled, errors, areas, strict=True)
        ],
    )


def temperature_finding(errors: Sequence[float], areas: Sequence[float]) -> str:
    """Describe whether the temperature of the lowest ECE also has the highest AUIoU."""
    if int(np.argmin(errors)) == int(np.argmax(areas)):
        return "On these images the temperature of the lowest ECE has the highest AUIoU as well."
    return "The temperature of the lowest ECE does not have the highest AUIoU."


def with_bounds(interval: Interval) -> str:
    """Format a value with its interval, where it has one."""
    value = number(interval.mean)
    if np.isnan(interval.low):
        return value
    return f"{value} ({number(interval.low)} to {number(interval.high)})"


def _comparison_figure(
    title: str, text: str, comparisons: Mapping[str, Comparison]
) -> AnalysisFigure:
    """Build the figure of several comparisons by name; calibrated only where all are."""
    errors: dict[Stage, list[Interval]] = {
        "before": [one.ece_interval(one.before) for one in comparisons.values()]
    }
    if any(one.after is not None for one in comparisons.values()):
        errors["after"] = [
            _alone(np.nan) if one.after is None else one.ece_interval(one.after)
            for one in comparisons.values()
        ]
    rows = [
        [
            name,
            *(with_bounds(side[index]) for side in errors.values()),
            number(one.before.evaluation.result().miou),
        ]
        for index, (name, one) in enumerate(comparisons.items())
    ]
    header = ["", *(f"ECE, {STYLES[stage].label}" for stage in errors), "mIoU"]
    return AnalysisFigure(title, text, charts.bar_diagram(list(comparisons), errors), header, rows)


def _headings(comparison: Comparison) -> list[str]:
    return [STYLES[stage].label.capitalize() for stage in stages(comparison)]


def _alone(value: float) -> Interval:
    """Return a value without an interval."""
    return Interval(value, np.nan, np.nan)
