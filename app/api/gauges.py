"""Gauges of the service's state, read when metrics are collected."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import get_args

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app import __version__
from app.api.dependencies import State
from app.errors import ActiveCalibratorError, UnavailableError
from app.schemas.fit import State as JobState
from app.serving.segmenter import ACTIVE, Segmenter


class ServiceGauges(Collector):
    """Models, calibrators and jobs of a service, which all of its processes share."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Yield all gauges; those of models once models are loaded."""
        state = self._state
        yield _labelled("segcal_build_info", "Release of the service.", {"version": __version__})
        counts = Counter(job.state for job in state.jobs.files.all())
        jobs = GaugeMetricFamily(
            "segcal_jobs", "Calibration jobs on record, by state.", labels=("state",)
        )
        for name in get_args(JobState):
            jobs.add_metric((name,), counts[name])
        yield jobs
        refused = GaugeMetricFamily(
            "segcal_model_refused", "1 for a model folder that can't be loaded.", labels=("model",)
        )
        for name in state.readiness.refused:
            refused.add_metric((name,), 1)
        yield refused
        if state.readiness.segmenter is not None:
            yield from _models(state.readiness.segmenter)


class ProcessGauges(Collector):
    """Queue and memory of a server process."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Yield all gauges."""
        yield from self._queue()
        yield from self._memory()

    def _queue(self) -> Iterator[Metric]:
        """Yield readiness, and the running and the waiting requests with their limit."""
        readiness, admission = self._state.readiness, self._state.admission
        ready = readiness.segmenter is not None and not readiness.draining.is_set()
        running = admission.running.count
        waiting = max(admission.active_requests.count - running, 0)
        yield from (
            _gauge("segcal_ready", "1 where /readyz responds 200.", ready),
            _gauge("segcal_requests_running", "Segmentations that run.", running),
            _gauge("segcal_requests_waiting", "Segmentations that wait for a thread.", waiting),
            _gauge(
                "segcal_queue_limit",
                "Requests that may wait, above which requests are rejected.",
                self._state.settings.queue_limit,
            ),
        )

    def _memory(self) -> Iterator[Metric]:
        """Yield the memory of kept results and of uploads, and the limit of the service."""
        state = self._state
        yield from (
            _gauge(
                "segcal_memory_limit_bytes", "SEGCAL_MEMORY_BYTES.", state.settings.memory_bytes
            ),
            _gauge("segcal_results_bytes", "Memory of kept results.", state.results.nbytes),
            _gauge("segcal_uploads_bytes", "Memory of image uploads.", state.uploads.nbytes),
        )


def _gauge(name: str, description: str, value: float) -> Metric:
    return GaugeMetricFamily(name, description, value=float(value))


def _labelled(name: str, description: str, labels: dict[str, str]) -> GaugeMetricFamily:
    """Return a gauge of the value 1 whose labels are the information."""
    family = GaugeMetricFamily(name, description, labels=tuple(labels))
    family.add_metric(tuple(labels.values()), 1)
    return family


def _models(segmenter: Segmenter) -> Iterable[Metric]:
    """Return the identity of each model and of its active calibrator, and its damage."""
    models = GaugeMetricFamily(
        "segcal_model_info", "1 for each model.", labels=("model", "sha256", "device")
    )
    calibrators = GaugeMetricFamily(
        "segcal_calibrator_info", "1 for the active calibrator of each model.",
        labels=("model", "calibrator", "method"),
    )  # fmt: skip
    fitted_ece = GaugeMetricFamily(
        "segcal_calibrator_ece",
        "Image-wise ECE (10 bins) of the active calibrator on the images of its test.",
        labels=("model",),
    )
    damaged = GaugeMetricFamily(
        "segcal_calibrator_damaged", "1 where the active calibrator is damaged.", labels=("model",)
    )
    for name, predictor in segmenter.predictors.items():
        models.add_metric((name, predictor.folder.sha256, predictor.backbone.device), 1)
        try:
            stored = segmenter.calibrator(predictor, ACTIVE)
        except ActiveCalibratorError:
            damaged.add_metric((name,), 1)
            continue
        except UnavailableError:  # of an object store that was down since the start
            continue
        damaged.add_metric((name,), 0)
        if stored is not None:
            manifest = stored.manifest
            calibrators.add_metric((name, manifest.id, manifest.method), 1)
            fitted_ece.add_metric((name,), manifest.ece_after)
    return models, calibrators, fitted_ece, damaged
