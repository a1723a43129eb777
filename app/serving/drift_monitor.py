"""Monitor drift: compare served predictions with those of the images a calibrator was tested on.

For each model, the histograms of the last predictions by the active calibrator are kept, and their
mean is compared with the reference of the fit. A calibrator becomes stale after `patience`
consecutive predictions with a divergence above the limit, and recovers after as many below 80% of
it. Where several replicas serve, each adds the windows that the others publish to its own (see
`drift_exchange`).
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from app.calibration.drift import Divergence, Floats, divergences, histogram
from app.calibration.predictions import Prediction
from app.schemas.drift import DriftWindow
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
    """The last predictions by one calibrator: a ring buffer of histograms and their running sum.

    `others` are the windows of other replicas, by their ids, and `others_total` their sum.
    """

    stored: StoredCalibrator
    limit: Divergence | None
    reference_mean: Floats  # [64 + K]
    histograms: Floats  # [window, 64 + K]
    total: Floats  # [64 + K]
    count: int = 0
    others: dict[str, DriftWindow] = field(default_factory=dict)
    others_total: Floats = field(init=False)  # [64 + K]
    consecutive: int = 0  # latest predictions in a row that favour a change of `stale`
    state: DriftState = field(init=False)

    def __post_init__(self) -> None:
        self.others_total = np.zeros_like(self.total)
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
        self._update(1, patience)
        return self.state

    def merge(self, others: dict[str, DriftWindow], patience: int) -> None:
        """Replace the windows of other replicas, which may have recorded predictions meanwhile."""
        known = [
            (self.others[name], other) for name, other in others.items() if name in self.others
        ]
        self.others = others
        self.others_total = np.zeros_like(self.total)
        for other in others.values():
            self.others_total += other.histograms
        self._update(sum(max(now.answers - then.answers, 0) for then, now in known), patience)

    def published(self, model: str) -> DriftWindow:
        """Return the window of this replica alone, as the others read it."""
        manifest = self.stored.manifest
        return DriftWindow(
            model=model,
            model_sha256=manifest.model_sha256,
            calibrator=manifest.id,
            images=self.own_images,
            answers=self.count,
            histograms=tuple(self.histograms.sum(axis=0).tolist()),
        )

    def is_mergeable(self, model: str, other: DriftWindow) -> bool:
        """Return whether another replica's window is of the same calibrator of the same model."""
        manifest = self.stored.manifest
        own = (model, manifest.id, manifest.model_sha256, len(self.total))
        return own == (other.model, other.calibrator, other.model_sha256, len(other.histograms))

    @property
    def own_images(self) -> int:
        """Count the predictions of this replica in the window."""
        return min(self.count, len(self.histograms))

    def _update(self, predictions: int, patience: int) -> None:
        """Update the state after so many more predictions, by all replicas."""
        images = self.own_images + sum(other.images for other in self.others.values())
        if self.limit is None:
            return
        if images >= len(self.histograms):
            mean = (self.total + self.others_total) / images
            self.state = self._updated_state(mean, self.limit, predictions, patience)
        else:  # also of a window that was full with those of replicas that have ended
            self.state = replace(self.state, divergence=UNKNOWN)

    def _updated_state(
        self, mean: Floats, limit: Divergence, predictions: int, patience: int
    ) -> DriftState:
        """Compute the divergence of a full window's mean [64 + K], and whether `stale` changes."""
        confidence, classes = divergences(mean, self.reference_mean)
        divergence = Divergence(float(confidence), float(classes))
        ratio = max(
            divergence.confidence / max(limit.confidence, 1e-12),
            divergence.classes / max(limit.classes, 1e-12),
        )
        stale = self.state.stale
        favours_change = ratio < RECOVERY_RATIO if stale else ratio > 1
        self.consecutive = self.consecutive + predictions if favours_change else 0
        if self.consecutive >= patience:
            stale, self.consecutive = not stale, 0
        return DriftState(self.state.calibrator, divergence, limit, stale)


class DriftMonitor:
    """Monitor the drift of all models, in constant memory for each; safe for threads."""

    def __init__(self, policy: DriftPolicy) -> None:
        self._policy = policy
        self._windows: dict[str, Window] = {}
        self._others: Mapping[str, Sequence[DriftWindow]] = {}
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
                self._merge(model, window)
            return window.add(histograms, self._policy.patience)

    def published(self) -> list[DriftWindow]:
        """Return the windows of this replica alone, of the models whose drift can be measured."""
        with self._lock:
            return [
                window.published(model)
                for model, window in self._windows.items()
                if window.limit is not None
            ]

    def merge(self, others: Mapping[str, Sequence[DriftWindow]]) -> None:
        """Replace the windows of the other replicas, which are named by random ids.

        A window counts where this replica has answered by the same calibrator of the same model.
        """
        with self._lock:
            self._others = others
            for model, window in self._windows.items():
                self._merge(model, window)

    def _merge(self, model: str, window: Window) -> None:
        """Merge the windows of other replicas that belong to a window into it."""
        fitting = {
            name: each
            for name, windows in self._others.items()
            for each in windows
            if window.is_mergeable(model, each)
        }
        window.merge(fitting, self._policy.patience)

    def states(self) -> dict[str, DriftState]:
        """Return the state of each model with a recorded prediction."""
        with self._lock:
            return {model: window.state for model, window in self._windows.items()}

    def is_stale(self, model: str, calibrator: str) -> bool:
        """Return whether a version is the one that is monitored, and stale."""
        state = self.states().get(model)
        return state is not None and state.calibrator == calibrator and state.stale
