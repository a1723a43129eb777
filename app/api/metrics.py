"""Prometheus metrics; each application has its own registry."""

import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.serving.drift_monitor import DriftMonitor

STANDARD_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"})
CONFIDENCE_BUCKETS = tuple(step / 20 for step in range(1, 21))


class ServiceMetrics:
    """Counters and histograms of the service."""

    def __init__(self, drift: DriftMonitor) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "segcal_http_requests", "Requests by route, method and status.",
            ("route", "method", "status"), registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "segcal_http_request_seconds", "Time to answer, by route.",
            ("route",), registry=self.registry,
        )  # fmt: skip
        self.stages = Histogram(
            "segcal_stage_seconds", "Time of one stage of a segmentation.",
            ("stage",), registry=self.registry,
        )  # fmt: skip
        self.confidence = Histogram(
            "segcal_image_mean_confidence", "Mean confidence of an image, by model.",
            ("model",), buckets=CONFIDENCE_BUCKETS, registry=self.registry,
        )  # fmt: skip

        self.registry.register(DriftGauges(drift))

    def count_segmentation(
        self, model: str, mean_confidence: float, milliseconds: Mapping[str, float]
    ) -> None:
        """Record one segmentation: mean confidence, and the time of each stage in ms."""
        self.confidence.labels(model).observe(mean_confidence)
        for stage, spent in milliseconds.items():
            self.stages.labels(stage).observe(spent / 1000)


class DriftGauges(Collector):
    """Gauges of each model's drift, read when metrics are collected."""

    def __init__(self, drift: DriftMonitor) -> None:
        self._drift = drift

    def collect(self) -> Iterator[Metric]:
        """Yield divergence and limit by model and histogram, and staleness by model."""
        divergence = GaugeMetricFamily(
            "segcal_drift_divergence",
            "Jensen-Shannon divergence of current answers from those of the fit, in nats.",
            labels=("model", "histogram"),
        )
        limit = GaugeMetricFamily(
            "segcal_drift_limit", "Divergence above which a calibrator is stale.",
            labels=("model", "histogram"),
        )  # fmt: skip
        stale = GaugeMetricFamily(
            "segcal_calibrator_stale", "1 where the active calibrator is stale.", labels=("model",)
        )
        for model, state in self._drift.states().items():
            stale.add_metric((model,), float(state.stale))
            for name in state.divergence._fields:
                divergence.add_metric((model, name), getattr(state.divergence, name))
                limit.add_metric((model, name), getattr(state.limit, name))
        yield from (divergence, limit, stale)


class MetricsMiddleware:
    """Counts and times each response by route template, method and status.

    Ids in paths and unknown methods start no new series.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app, self._counters = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count and time one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in STANDARD_METHODS else "other"
            self._counters.requests.labels(route, method, status).inc()
            self._counters.seconds.labels(route).observe(time.perf_counter() - started)
