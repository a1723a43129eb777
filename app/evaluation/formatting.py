"""Text of an evaluation: the table of metrics, formatted numbers, and findings in sentences."""

import math
from dataclasses import dataclass
from typing import Literal

from app.calibration.metrics.assessment import Assessment
from app.calibration.metrics.intervals import Interval
from app.evaluation.fit_images import SharedImages
from app.evaluation.resampling import MIN_UNITS, ResamplingUnits

Better = Literal["lower", "higher", "neither"]
MINUS, NONE = "\N{MINUS SIGN}", "\N{EN DASH}"

MIN_PIXELS = 100  # fewer pixels do not estimate an accuracy
NEGLIGIBLE_SURPLUS = 0.005  # mean confidence above accuracy, absolute
ABSTENTION_COVERAGE = 0.8

METRICS: tuple[tuple[str, str, Better], ...] = (
    ("Image-wise ECE", "expected calibration error, 10 bins, mean over images", "lower"),
    ("Pooled ECE", "expected calibration error, 15 bins over all pixels", "lower"),
    ("MCE", "largest gap among the 15 bins of at least 100 pixels", "lower"),
    ("Boundary ECE", "image-wise, within 2 pixels of another class", "lower"),
    ("NLL", "mean negative log-likelihood of the true class, nats", "lower"),
    ("Brier", "squared error of the probabilities, 0 to 2", "lower"),
    ("Misprediction AUROC", "detection of wrong pixels by low confidence; 0.5 is chance", "higher"),
    ("AURC", "mean error rate over all coverages", "lower"),
    ("Mean confidence", "over all labelled pixels", "neither"),
    ("Accuracy", "fraction of labelled pixels that are correct", "higher"),
    ("mIoU", "mean intersection over union of the classes", "higher"),
)


@dataclass(frozen=True)
class MetricRow:
    """One row of the table of metrics; undefined values are NaN.

    `after` is None without a calibrator.
    """

    name: str
    note: str
    better: Better
    before: float
    after: float | None

    @property
    def change(self) -> float | None:
        """Return `after` - `before`, or None if either is missing or undefined."""
        if self.after is None or math.isnan(self.after) or math.isnan(self.before):
            return None
        return self.after - self.before

    @property
    def direction(self) -> str:
        """Return "better", "worse" or "same" for the change at four decimals, else ""."""
        if self.change is None or self.better == "neither":
            return ""
        if number(self.change) == number(0.0):
            return "same"
        return "better" if (self.change < 0) == (self.better == "lower") else "worse"


def metric_rows(before: Assessment, after: Assessment | None) -> list[MetricRow]:
    """List the metrics without and with the calibrator, the most important first."""
    values_before = _values(before)
    values_after = {} if after is None else _values(after)
    return [
        MetricRow(name, note, better, values_before[name], values_after.get(name))
        for name, note, better in METRICS
    ]


def _values(assessment: Assessment) -> dict[str, float]:
    measured = assessment.evaluation.result()
    return {
        "Image-wise ECE": measured.ece_image,
        "Pooled ECE": measured.ece_pooled,
        "MCE": assessment.evaluation.bins.mce(),
        "Boundary ECE": assessment.boundary_ece,
        "NLL": measured.nll,
        "Brier": measured.brier,
        "Misprediction AUROC": measured.auroc_misprediction,
        "AURC": measured.aurc,
        "Mean confidence": assessment.overall.confidence,
        "Accuracy": measured.accuracy,
        "mIoU": measured.miou,
    }


def number(value: float | None) -> str:
    """Format a metric with four decimals, an undefined one as a dash."""
    if value is None or math.isnan(value):
        return NONE
    return f"{abs(value):.4f}" if value >= 0 or round(value, 4) == 0 else f"{MINUS}{-value:.4f}"


def signed(value: float | None) -> str:
    """Format a change with its sign and four decimals."""
    text = number(value)
    grows = value is not None and round(value, 4) > 0
    return f"+{text}" if grows else text


def percent(fraction: float, decimals: int = 1) -> str:
    """Format a fraction in 0..1 in percent, an undefined one as a dash."""
    return NONE if math.isnan(fraction) else f"{100 * fraction:.{decimals}f}%"


def round_percent(fraction: float) -> str:
    """Format a fraction in whole percent, in tenths within 1% of 0 or 1."""
    return percent(fraction, 1 if 0 < fraction < 0.01 or 0.99 < fraction < 1 else 0)


def points(surplus: float) -> str:
    """Format a difference of fractions in percentage points, with its sign."""
    if math.isnan(surplus):
        return NONE
    tenths = round(100 * surplus, 1)
    sign = "+" if tenths > 0 else MINUS if tenths < 0 else ""
    return f"{sign}{abs(tenths):.1f}"


def count(pixels: int) -> str:
    """Format a number of pixels with a narrow space between thousands."""
    return f"{pixels:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def headline(before: Assessment, after: Assessment | None) -> str:
    """Describe the accuracy at a confidence of about 90%, or overall if too few pixels have it."""
    served = after or before
    near = served.about_90
    if near.pixels < MIN_PIXELS:
        overall = served.overall
        return (
            f"Mean confidence is {round_percent(overall.confidence)}, and "
            f"{round_percent(overall.accuracy)} of pixels are correct."
        )
    return (
        f"At a confidence of {round_percent(near.confidence)}, "
        f"{round_percent(near.accuracy)} of pixels are correct."
    )


def findings(
    before: Assessment, after: Assessment | None, change: Interval | None, units: ResamplingUnits
) -> list[str]:
    """Return the sentences below the headline; `change` is that of the image-wise ECE."""
    served = after or before
    sentences = []
    uncalibrated = before.about_90
    if after is not None and min(uncalibrated.pixels, after.about_90.pixels) >= MIN_PIXELS:
        sentences.append(
            f"Uncalibrated, at a confidence of {round_percent(uncalibrated.confidence)}, "
            f"{round_percent(uncalibrated.accuracy)} of pixels are correct."
        )
    sentences.append(_overall(served))
    if after is not None and change is not None:
        sentences.append(_comparison(before, after, change, units))
    return [*sentences, *_abstention(served)]


def _overall(served: Assessment) -> str:
    group = served.overall
    means = (
        f"Over all pixels, mean confidence is {percent(group.confidence)} and accuracy "
        f"{percent(group.accuracy)}: "
    )
    if abs(group.surplus) < NEGLIGIBLE_SURPLUS:
        return means + "on average neither over- nor under-confident."
    side = "over" if group.surplus > 0 else "under"
    return f"{means}{side}-confident by {100 * abs(group.surplus):.1f} percentage points."


def shared_images(shared: SharedImages | None, images: int) -> str:
    """Describe how many of the evaluated images the calibrator's fit has read as well."""
    if shared is None:
        return (
            "The calibrator does not record the images of its fit, so that these images may be "
            "among them; on images of its fit the metrics are optimistic."
        )
    if not shared.total:
        return "None of the images is among those of the calibrator's fit, by content of the file."
    return (
        f"{shared.total} of {images} images are among those of the calibrator's fit "
        f"({shared.fit} to fit, {shared.select} to select the method, {shared.held_out} to test "
        f"it): the metrics are optimistic."
    )


def interval_text(interval: Interval) -> str:
    """Format the bounds of an interval."""
    return f"{signed(interval.low)} to {signed(interval.high)}"


def too_few_units(units: ResamplingUnits) -> str:
    """Return the reason for a missing interval."""
    return f"fewer than {MIN_UNITS} {units.plural} give no confidence interval"


def _comparison(
    before: Assessment, after: Assessment, change: Interval, units: ResamplingUnits
) -> str:
    ece_before, ece_after = (number(side.evaluation.result().ece_image) for side in (before, after))
    if number(change.low) == number(change.high) == number(0.0):
        return f"The calibrator leaves the image-wise calibration error at {ece_before}."
    changes = (
        f"The calibrator changes the image-wise calibration error from {ece_before} to {ece_after}"
    )
    if math.isnan(change.low):
        return f"{changes}; {too_few_units(units)}."
    interval = f"95% interval of the change by {units.singular}: {interval_text(change)}"
    if change.high < 0:
        return f"{changes}, a significant improvement ({interval})."
    if change.low > 0:
        return f"{changes}, significantly worse ({interval})."
    return f"{changes}, not a significant change ({interval})."


def _abstention(served: Assessment) -> list[str]:
    """Compare the error rate of the most confident pixels with that of all; none without errors."""
    curve = served.evaluation.confidence_histogram.risk_coverage()
    kept = next((point for point in curve if point.coverage >= ABSTENTION_COVERAGE), None)
    if kept is None or not curve[-1].risk:
        return []
    return [
        f"Of the most confident {round_percent(kept.coverage)} of pixels {percent(kept.risk)} are "
        f"wrong, of all pixels {percent(curve[-1].risk)}."
    ]
