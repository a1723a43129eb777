"""The figures of an evaluation with their names, and how numbers are written.

What an evaluation found, in plain words.
"""

import math
from dataclasses import dataclass
from typing import Literal

from app.calibration.metrics.assessment import Assessment
from app.calibration.metrics.intervals import Interval

Better = Literal["lower", "higher", "neither"]
MINUS, NONE = "\N{MINUS SIGN}", "\N{EN DASH}"


@dataclass(frozen=True)
class MetricRow:
    """One line of the table; `after` is None without a calibrator, NaN is undefined."""

    name: str
    note: str
    better: Better
    before: float
    after: float | None

    @property
    def change(self) -> float | None:
        """What the calibrator changes, None where there is nothing to compare."""
        if self.after is None or math.isnan(self.after) or math.isnan(self.before):
            return None
        return self.after - self.before

    @property
    def direction(self) -> str:
        """Whether the change, as it is written, is for better or worse."""
        if self.change is None or self.better == "neither":
            return ""
        if number(self.change) == number(0.0):
            return "same"
        return "better" if (self.change < 0) == (self.better == "lower") else "worse"


def metric_rows(before: Assessment, after: Assessment | None) -> list[MetricRow]:
    """List the figures of the two ways of reading confidence, the ones to look at first first."""
    ours = _values(before)
    theirs = None if after is None else _values(after)
    return [
        MetricRow(name, note, better, ours[name], None if theirs is None else theirs[name])
        for name, note, better in NAMES
    ]


NAMES: tuple[tuple[str, str, Better], ...] = (
    ("Image-wise ECE", "expected calibration error, 10 bins, mean over images", "lower"),
    ("Pooled ECE", "15 bins, all pixels alike", "lower"),
    ("MCE", "widest gap among the 15 bins of at least 100 pixels", "lower"),
    ("Boundary ECE", "image-wise, within 2 pixels of another class", "lower"),
    ("NLL", "mean negative log-likelihood of the true class, nats", "lower"),
    ("Brier", "squared error of the probabilities, 0 to 2", "lower"),
    ("Misprediction AUROC", "how well low confidence finds wrong pixels; 0.5 is chance", "higher"),
    ("AURC", "mean error over all coverages, the surest pixels first", "lower"),
    ("Mean confidence", "what the service says, over all labelled pixels", "neither"),
    ("Accuracy", "labelled pixels that are right", "higher"),
    ("mIoU", "mean intersection over union of the classes", "higher"),
)


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
    """Write a figure with four decimals, an undefined one as a dash."""
    if value is None or math.isnan(value):
        return NONE
    return f"{abs(value):.4f}" if value >= 0 or round(value, 4) == 0 else f"{MINUS}{-value:.4f}"


def signed(value: float | None) -> str:
    """Write a change with its sign."""
    text = number(value)
    grows = value is not None and round(value, 4) > 0
    return f"+{text}" if grows else text


def percent(fraction: float, decimals: int = 1) -> str:
    """Write a share of 0..1 in percent, an undefined one as a dash."""
    return NONE if math.isnan(fraction) else f"{100 * fraction:.{decimals}f}%"


def round_percent(fraction: float) -> str:
    """Write a share in whole percent, in tenths where it is next to none or all."""
    return percent(fraction, 1 if 0 < fraction < 0.01 or 0.99 < fraction < 1 else 0)


def points(surplus: float) -> str:
    """Write what confidence has above accuracy in percentage points, with its sign."""
    if math.isnan(surplus):
        return NONE
    tenths = round(100 * surplus, 1)
    sign = "+" if tenths > 0 else MINUS if tenths < 0 else ""
    return f"{sign}{abs(tenths):.1f}"


def count(pixels: int) -> str:
    """Write a number of pixels with its thousands apart."""
    return f"{pixels:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


ENOUGH = 100  # pixels, for a share of them to mean something
NOTHING = 0.005  # of confidence above accuracy, which nobody would act on
KEPT = 0.8


def headline(before: Assessment, after: Assessment | None) -> str:
    """Say what a confidence of about 90% was worth, or the mean one where none was near that."""
    served = after or before
    near = served.about_90
    if near.pixels < ENOUGH:
        near = served.overall
        return (
            f"The service says {round_percent(near.confidence)} on average, and is right in "
            f"{round_percent(near.accuracy)} of pixels."
        )
    return (
        f"When the service says {round_percent(near.confidence)}, it is right in "
        f"{round_percent(near.accuracy)} of pixels."
    )


def findings(before: Assessment, after: Assessment | None, change: Interval | None) -> list[str]:
    """Give the sentences below the headline."""
    served = after or before
    found = []
    plain = before.about_90
    if after is not None and min(plain.pixels, served.about_90.pixels) >= ENOUGH:
        found.append(
            f"Uncalibrated, a confidence of {round_percent(plain.confidence)} was right in "
            f"{round_percent(plain.accuracy)}."
        )
    found.append(_overall(served))
    if after is not None and change is not None:
        found.append(_comparison(before, after, change))
    return [*found, *_abstention(served)]


def _overall(served: Assessment) -> str:
    group = served.overall
    means = (
        f"Over all pixels it says {percent(group.confidence)} and is right in "
        f"{percent(group.accuracy)}: "
    )
    if abs(group.surplus) < NOTHING:
        return means + "on the whole neither over- nor under-confident."
    side = "over" if group.surplus > 0 else "under"
    return f"{means}{side}-confident by {100 * abs(group.surplus):.1f} percentage points."


def _comparison(before: Assessment, after: Assessment, change: Interval) -> str:
    ours, theirs = (number(side.evaluation.result().ece_image) for side in (before, after))
    if number(change.low) == number(change.high) == number(0.0):
        return f"The calibrator leaves the image-wise calibration error at {ours}."
    moves = f"The calibrator takes the image-wise calibration error from {ours} to {theirs}"
    if math.isnan(change.low):
        return f"{moves}; one image gives no interval for the change."
    interval = f"95% interval of the change by image: {signed(change.low)} to {signed(change.high)}"
    if change.high < 0:
        return f"{moves}, better beyond chance ({interval})."
    if change.low > 0:
        return f"{moves}, worse beyond chance ({interval})."
    return f"{moves}, a change that these images can not tell from chance ({interval})."


def _abstention(served: Assessment) -> list[str]:
    """Say what is gained by keeping the surest pixels only; nothing where nothing is wrong."""
    curve = served.evaluation.confidence_histogram.risk_coverage()
    kept = next((point for point in curve if point.coverage >= KEPT), None)
    if kept is None or not curve[-1].risk:
        return []
    return [
        f"The surest {round_percent(kept.coverage)} of pixels are wrong in {percent(kept.risk)}, "
        f"all of them in {percent(curve[-1].risk)}."
    ]
