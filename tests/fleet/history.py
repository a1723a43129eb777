"""History of a model's active version, and how stale the versions are that answers name."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.storage.objects import Objects

Change = Mapping[str, Any]  # an object of the history


@dataclass(frozen=True)
class Answer:
    """An answer: when its request was sent, when it was received, and the version it names."""

    sent: float
    received: float
    calibrator: str | None


@dataclass(frozen=True)
class Times:
    """When a change was requested, and when its answer was received, in s since the epoch."""

    sent: float
    received: float


def read_history(objects: Objects, model: str) -> tuple[list[Change], list[int]]:
    """Read the changes of a model in order, and their numbers."""
    names = objects.names(f"{model}/history")
    found = [objects.read(f"{model}/history/{name}") for name in names]
    return [each.document for each in found if each], [int(name.split(".")[0]) for name in names]


def largest_staleness(
    answers: Sequence[Answer], changes: Sequence[Change], times: Mapping[str, Times]
) -> float:
    """Return the longest time in s from a version's end to a request whose answer names it.

    A version ends when the next change is answered. `times` has those of the changes, by reason or
    author. A change without them was not answered, as a process was killed: it began at its time
    in the history, and had taken effect at the latest when a later one was answered. At most 0
    without a stale answer; infinite where an answer names a version that was not active before it.
    """
    known = [times.get(each["reason"]) or times.get(each["by"]) for each in changes]
    began = [each.sent if each else since_epoch(change["at"])
             for each, change in zip(known, changes, strict=True)]  # fmt: skip
    ends = [each.received if each else math.inf for each in known[1:]] + [math.inf]
    for index in reversed(range(len(ends) - 1)):
        ends[index] = min(ends[index], ends[index + 1])
    active = list(zip(changes, began, ends, strict=True))
    return max(
        answer.sent
        - max(
            (
                end
                for change, start, end in active
                if change["calibrator"] == answer.calibrator and start <= answer.received
            ),
            default=-math.inf,
        )
        for answer in answers
        if answer.calibrator is not None
    )


def since_epoch(timestamp: str) -> float:
    """Return the seconds since the epoch of a time as RFC 3339."""
    return datetime.fromisoformat(timestamp).timestamp()
