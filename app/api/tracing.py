"""Export of traces to an OpenTelemetry collector; needs the optional packages `segcal[otel]`.

The collector, sampling and names are set by OpenTelemetry's own variables, such as
`OTEL_EXPORTER_OTLP_ENDPOINT` and `OTEL_SERVICE_NAME`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI

from app import __version__
from app.api.request_log import Trace, TraceSource, parse_traceparent
from app.errors import SettingsError

UNTRACED = "healthz,readyz,metrics"
RESPONSE_HEADERS = ["X-Model", "X-Calibrator", "X-Request-Id", "Server-Timing"]


@dataclass(frozen=True)
class Tracing:
    """The source of trace ids for the log, and the end of the export."""

    source: TraceSource = parse_traceparent
    shutdown: Callable[[], None] = lambda: None


def install_tracing(app: FastAPI, exporter: str) -> Tracing:
    """Export a span for each request, where `exporter` is "otlp"; "none" exports nothing.

    A span continues the trace of `traceparent` and has the response's model, calibrator and stage
    times as attributes. Raises SettingsError without the optional packages.
    """
    if exporter == "none":
        return Tracing()
    try:
        from opentelemetry import trace  # noqa: PLC0415 - optional packages
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(
            "SEGCAL_TRACES: expected the packages of segcal[otel] for otlp, got none: "
            "pip install 'segcal[otel]'"
        ) from error
    name = os.environ.get("OTEL_SERVICE_NAME") or "segcal"
    resource = Resource.create({"service.name": name, "service.version": __version__})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=provider,
        excluded_urls=UNTRACED,
        exclude_spans=["receive", "send"],
        http_capture_headers_server_response=RESPONSE_HEADERS,
    )

    def current(traceparent: str) -> Trace | None:
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:  # an untraced path
            return parse_traceparent(traceparent)
        return Trace(f"{context.trace_id:032x}", f"{context.span_id:016x}")

    return Tracing(current, provider.shutdown)
