"""What an evaluation found, in plain words."""

import math

from app.calibration.assessment import Assessment
from app.calibration.bootstrap import Interval
from app.reporting.figures import number, percent, round_percent, signed

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
        found.append(_verdict(before, after, change))
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


def _verdict(before: Assessment, after: Assessment, change: Interval) -> str:
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
    curve = served.evaluation.ranking.risk_coverage()
    kept = next((point for point in curve if point.coverage >= KEPT), None)
    if kept is None or not curve[-1].risk:
        return []
    return [
        f"The surest {round_percent(kept.coverage)} of pixels are wrong in {percent(kept.risk)}, "
        f"all of them in {percent(curve[-1].risk)}."
    ]
