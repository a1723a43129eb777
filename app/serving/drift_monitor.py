"""Monitor drift: compare served predictions with those of the images a calibrator was tested on.

For each model, the histograms of the last predictions by the active calibrator are kept, and their
mean is compared with the reference of the fit. A calibrator becomes stale after `patience`
consecutive predictions with a divergence above the limit, and recovers after as many below 80% of
it. Each server process monitors its own predictions.
"""

import threading
from dataclasses import dataclass, field

import numpy as np

from app.calibration.drift import Divergence, Floats, divergences, histogram
from app.calibration.predictions import Prediction
from app.storage.manifest import StoredCalibrator

RECOVERY_RATIO = 0.8  # of the limit; a stale calibrator recovers below it
UNKNOWN = Divergence(np.nan, np.nan)


@dataclass(frozen=True)
class DriftPolicy:
    """Sizes, in predictions, of the window and of the run that changes `stale`."""

    window: int
    patience: int


@dataclass(frozen=True)
class DriftState:
    """The drift of a model; divergences in nats, NaN until a window is full or without reference.

    `calibrator` is the version id that the state is about.
    """

    calibrator: str
    divergence: Divergence
    limit: Divergence
    stale: bool = False


@dataclass
class Window:
    """The last predictions by one calibrator: a ring buffer of histograms and their running sum."""

    stored: StoredCalibrator
    limit: Divergence | None
    reference_mean: Floats  # [64 + K]
    histograms: Floats  # [window, 64 + K]
    total: Floats  # [64 + K]
    count: int = 0
    consecutive: int = 0  # latest predictions in a row that favour a change of `stale`
    state: DriftState = field(init=False)

    def __post_init__(self) -> None:
        self.state = DriftState(self.stored.manifest.id, UNKNOWN, self.limit or UNKNOWN)

    @classmethod
    def for_calibrator(cls, stored: StoredCalibrator, policy: DriftPolicy) -> "Window":
        """Build an empty window; resampling the reference for the limit takes some 50 ms."""
        reference = stored.reference
        width = 0 if reference is None else reference.images.shape[1]
        return cls(
            stored,
            None if reference is None else reference.limits(policy.window),
            np.zeros(0) if reference is None else reference.mean,
            np.zeros((policy.window, width)),
            np.zeros(width),
        )

    def add(self, histograms: Floats, patience: int) -> DriftState:
        """Add one prediction's histograms [64 + K] and return the new state."""
        position = self.count % len(self.histograms)
        self.total += histograms - self.histograms[position]
        self.histograms[position] = histograms
        self.count += 1
        if position == 0:  # once per window, so that rounding errors do not add up
            self.total = self.histograms.sum(axis=0)
        if self.limit is not None and self.count >= len(self.histograms):
            self.state = self._updated_state(self.limit, patience)
        return self.state

    def _updated_state(self, limit: Divergence, patience: int) -> DriftState:
        """Compute the divergence of a full window, and whether `stale` changes."""
        confidence, classes = divergences(self.total / len(self.histograms), self.reference_mean)
        divergence = Divergence(float(confidence), float(classes))
        ratio = max(
            divergence.confidence / max(limit.confidence, 1e-12),
            divergence.classes / max(limit.classes, 1e-12),
        )
        stale = self.state.stale
        favours_change = ratio < RECOVERY_RATIO if stale else ratio > 1
        self.consecutive = self.consecutive + 1 if favours_change else 0
        if self.consecutive >= patience:
            stale, self.consecutive = not stale, 0
        return DriftState(self.state.calibrator, divergence, limit, stale)


class DriftMonitor:
    """Monitor the drift of all models, in constant memory for each; safe for threads."""

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
        """Record a prediction [H,W] of the active calibrator, before abstention; return the state.

        The first prediction by another version starts a new window.
        """
        histograms = np.zeros(0)
        if stored.reference is not None:
            classes = stored.manifest.num_classes
            histograms = histogram(prediction.confidence, prediction.mask, classes)
        with self._lock:
            window = self._windows.get(model)
            if window is None or window.stored.manifest.id != stored.manifest.id:
                window = self._windows[model] = Window.for_calibrator(stored, self._policy)
            return window.add(histograms, self._policy.patience)

    def states(self) -> dict[str, DriftState]:
        """Return the state of each model with a recorded prediction."""
        with self._lock:
            return {model: window.state for model, window in self._windows.items()}

    def is_stale(self, model: str, calibrator: str) -> bool:
        """Return whether a version is the one that is monitored, and stale."""
        state = self.states().get(model)
        return state is not None and state.calibrator == calibrator and state.stale
