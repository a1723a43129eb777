"""Prometheus metrics; each application has its own registry."""

import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.serving.drift_monitor import DriftMonitor

STANDARD_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"})
UNIT_BUCKETS = tuple(step / 20 for step in range(1, 21))  # of 0..1
ABSTENTION_BUCKETS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
STAGE_BUCKETS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60,
)  # fmt: skip


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
            ("stage",), buckets=STAGE_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.confidence = Histogram(
            "segcal_image_mean_confidence", "Mean confidence of an image, by model.",
            ("model",), buckets=UNIT_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.in_distribution = Histogram(
            "segcal_image_in_distribution",
            "In-distribution score of an image, by model; only of calibrators that compute one.",
            ("model",), buckets=UNIT_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.abstained = Histogram(
            "segcal_image_abstained_fraction",
            "Fraction of abstained pixels of an image, by model; only with a threshold.",
            ("model",), buckets=ABSTENTION_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.rejected = Counter(
            "segcal_rejected_requests", "Rejected and failed requests, by status and error.",
            ("status", "error"), registry=self.registry,
        )  # fmt: skip
        self.registry.register(DriftGauges(drift))
        ProcessCollector(registry=self.registry)

    def count_segmentation(
        self,
        model: str,
        mean_confidence: float,
        milliseconds: Mapping[str, float],
        in_distribution: float | None = None,
        abstained_fraction: float | None = None,
    ) -> None:
        """Record one segmentation: mean confidence, and the time of each stage in ms.

        The in-distribution score and the abstained fraction, in 0..1, are None where there is none.
        """
        self.confidence.labels(model).observe(mean_confidence)
        for stage, spent in milliseconds.items():
            self.stages.labels(stage).observe(spent / 1000)
        if in_distribution is not None:
            self.in_distribution.labels(model).observe(in_distribution)
        if abstained_fraction is not None:
            self.abstained.labels(model).observe(abstained_fraction)


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
