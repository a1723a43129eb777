"""The drift monitor: whether live answers still look like those a calibrator was measured on.

For each model it keeps the histograms of the last answers that the active calibrator gave, and
compares their mean with the reference of the fit. A calibrator is stale once the divergence has
stayed above its limit for as many answers as `patience` says, and fresh again once it has stayed
below 80% of the limit for as many. Each process watches what it answers itself.
"""

import threading
from dataclasses import dataclass, field

import numpy as np

from app.calibration.drift import Divergence, Floats, divergences, histogram
from app.calibration.predictions import Prediction
from app.storage.manifest import StoredCalibrator

RETURN = 0.8  # of the limit, below which a stale calibrator recovers


@dataclass(frozen=True)
class DriftPolicy:
    """How many answers make a window, and how many must agree before `stale` turns."""

    window: int
    patience: int


@dataclass(frozen=True)
class DriftState:
    """What is known of a model's drift; NaN until a window is full, or without a reference."""

    calibrator: str
    divergence: Divergence
    limit: Divergence
    stale: bool = False


UNKNOWN = Divergence(np.nan, np.nan)


@dataclass
class Window:
    """The last answers under one calibrator: a ring of histograms and their running sum."""

    stored: StoredCalibrator
    limit: Divergence | None
    mean: Floats
    rows: Floats
    total: Floats
    count: int = 0
    beyond: int = 0  # answers in a row that speak for turning
    state: DriftState = field(init=False)

    def __post_init__(self) -> None:
        self.state = DriftState(self.stored.manifest.id, UNKNOWN, self.limit or UNKNOWN)

    @classmethod
    def of(cls, stored: StoredCalibrator, policy: DriftPolicy) -> "Window":
        """Open an empty window; resampling the reference for the limit takes some 50 ms."""
        reference = stored.reference
        width = 0 if reference is None else reference.images.shape[1]
        return cls(
            stored,
            None if reference is None else reference.limits(policy.window),
            np.zeros(0) if reference is None else reference.mean,
            np.zeros((policy.window, width)),
            np.zeros(width),
        )

    def add(self, row: Floats, patience: int) -> DriftState:
        """Take one answer's histograms [64 + K]."""
        place = self.count % len(self.rows)
        self.total += row - self.rows[place]
        self.rows[place] = row
        self.count += 1
        if place == 0:  # once a round, so that roundings do not add up
            self.total = self.rows.sum(axis=0)
        if self.limit is not None and self.count >= len(self.rows):
            self.state = self._judged(self.limit, patience)
        return self.state

    def _judged(self, limit: Divergence, patience: int) -> DriftState:
        found = divergences(self.total / len(self.rows), self.mean)
        divergence = Divergence(float(found[0]), float(found[1]))
        ratio = max(
            divergence.confidence / max(limit.confidence, 1e-12),
            divergence.classes / max(limit.classes, 1e-12),
        )
        stale = self.state.stale
        turning = ratio < RETURN if stale else ratio > 1
        self.beyond = self.beyond + 1 if turning else 0
        if self.beyond >= patience:
            stale, self.beyond = not stale, 0
        return DriftState(self.state.calibrator, divergence, limit, stale)


class DriftMonitor:
    """Watches all models; constant memory for each, safe for threads."""

    def __init__(self, policy: DriftPolicy) -> None:
        self._policy = policy
        self._windows: dict[str, Window] = {}
        self._lock = threading.Lock()

    def observe(
        self,
        model: str,
        stored: StoredCalibrator,
        prediction: Prediction,
    ) -> DriftState:
        """Take an answer of the active calibrator: [H,W], before any pixel was abstained from.

        Another version than before starts anew.
        """
        row = np.zeros(0)
        if stored.reference is not None:
            classes = stored.manifest.num_classes
            row = histogram(prediction.confidence, prediction.mask, classes)
        with self._lock:
            window = self._windows.get(model)
            if window is None or window.stored.manifest.id != stored.manifest.id:
                window = self._windows[model] = Window.of(stored, self._policy)
            return window.add(row, self._policy.patience)

    def states(self) -> dict[str, DriftState]:
        """Tell each watched model's state."""
        with self._lock:
            return {model: window.state for model, window in self._windows.items()}

    def is_stale(self, model: str, calibrator: str) -> bool:
        """Tell whether a version is the one that is watched, and stale."""
        state = self.states().get(model)
        return state is not None and state.calibrator == calibrator and state.stale
