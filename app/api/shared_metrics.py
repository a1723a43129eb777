"""Metrics of several server processes as one: counters summed, gauges summed or their worst value.

prometheus_client's multiprocess mode, which it enters where PROMETHEUS_MULTIPROC_DIR is set, keeps
counters and histograms in files that every process reads. Gauges that are computed when metrics are
collected are not among them, so each process publishes its own once a second.
"""

import asyncio
import math
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.api.dependencies import State
from app.api.gauges import ProcessGauges, ServiceGauges
from app.api.metrics import DriftGauges
from app.process_group import ProcessGroup

PUBLISH_S = 1.0
# How the values of the running processes become one; all others are summed.
MODES = {
    "segcal_ready": "livemin",
    "segcal_drift_divergence": "livemax",
    "segcal_drift_limit": "livemax",
    "segcal_calibrator_stale": "livemax",
    "process_start_time_seconds": "livemin",
}


class SharedMetrics:
    """The metrics of a group of processes, of which this process publishes its part."""

    def __init__(self, state: State, group: ProcessGroup) -> None:
        self._own: tuple[Collector, ...] = (
            ProcessGauges(state), DriftGauges(state.drift), ProcessCollector(registry=None),
        )  # fmt: skip
        self._gauges: dict[str, Gauge] = {}
        self._registry = CollectorRegistry()
        self._registry.register(ServiceGauges(state))
        self._registry.register(MultiProcessCollector(None, str(group.metrics)))  # type: ignore[no-untyped-call]

    def text(self) -> bytes:
        """Return the metrics of all processes in Prometheus' text format."""
        self.publish()
        return generate_latest(self._registry)

    def publish(self) -> None:
        """Write this process's gauges to its file; a value that is not known yet is left out."""
        for name, family in self._families():
            for sample in family.samples:
                if math.isnan(sample.value):
                    continue
                if name not in self._gauges:
                    self._gauges[name] = Gauge(
                        name, family.documentation, tuple(sample.labels), registry=None,
                        multiprocess_mode=MODES.get(name, "livesum"),  # type: ignore[arg-type]
                    )  # fmt: skip
                gauge = self._gauges[name]
                (gauge.labels(**sample.labels) if sample.labels else gauge).set(sample.value)

    def _families(self) -> Iterator[tuple[str, Metric]]:
        """Yield this process's metrics; a counter has the name of its sample."""
        for collector in self._own:
            for family in collector.collect():
                yield family.name + "_total" * (family.type == "counter"), family


async def publish_regularly(metrics: SharedMetrics | None) -> None:
    """Publish until cancelled, where several processes have metrics in common."""
    while metrics is not None:
        metrics.publish()
        await asyncio.sleep(PUBLISH_S)
